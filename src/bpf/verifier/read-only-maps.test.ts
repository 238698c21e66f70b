import { describe, expect, it } from "vitest";
import type { MapSpec } from "../program.ts";
import { parseProgram } from "../text.ts";
import { verifyProgram } from "./verify.ts";

/** map[0] and map[1]. */
const maps: readonly MapSpec[] = [
  { name: "fixed", kind: "array", keyBytes: 4, valueBytes: 16, maxEntries: 1, isReadOnly: true },
  { name: "words", kind: "hash", keyBytes: 8, valueBytes: 8, maxEntries: 4, isReadOnly: true },
];
const key = "*(u64 *)(r10 -8) = 1\nr2 = r10\nr2 += -8\nr1 = map[1]";

function verdictOn(text: string) {
  const parsed = parseProgram(text);
  if (parsed.kind !== "parsed") throw new Error(JSON.stringify(parsed));
  return verifyProgram({ insns: parsed.insns }, maps);
}

describe("maps that programs may only read", () => {
  it.each([
    { name: "a load", text: "r1 = map[0][0]+8\nr0 = *(u64 *)(r1 +0)\nexit" },
    {
      name: "a lookup and a load",
      text: `${key}\ncall bpf_map_lookup_elem\nif r0 == 0 goto out\nr0 = *(u64 *)(r0 +0)\nout: exit`,
    },
  ])("accepts $name", ({ text }) => {
    expect(verdictOn(text)).toMatchObject({ kind: "accepted" });
  });

  it.each([
    {
      name: "a store",
      text: "r1 = map[0][0]+8\n*(u32 *)(r1 +4) = 1\nr0 = 0\nexit",
      message: "write into map forbidden, value_size=16 off=12 size=4",
    },
    {
      name: "an atomic addition",
      text: "r1 = map[0][0]+0\nr2 = 1\nlock *(u64 *)(r1 +0) += r2\nr0 = 0\nexit",
      message: "write into map forbidden, value_size=16 off=0 size=8",
    },
    {
      name: "a helper that fills memory",
      text: "r1 = map[0][0]+0\nr2 = 16\ncall bpf_get_current_comm\nr0 = 0\nexit",
      message: "write into map forbidden, value_size=16 off=0 size=16",
    },
    {
      name: "a store into what was looked up",
      text: `${key}\ncall bpf_map_lookup_elem\nif r0 == 0 goto out\n*(u64 *)(r0 +0) = 1\nout: r0 = 0\nexit`,
      message: "write into map forbidden, value_size=8 off=0 size=8",
    },
    {
      name: "an update",
      text: `${key}\nr3 = r2\nr4 = 0\ncall bpf_map_update_elem\nr0 = 0\nexit`,
      message: "write into map forbidden",
    },
    {
      name: "a deletion",
      text: `${key}\ncall bpf_map_delete_elem\nr0 = 0\nexit`,
      message: "write into map forbidden",
    },
  ])("rejects $name", ({ text, message }) => {
    expect(verdictOn(text)).toMatchObject({ kind: "rejected", message });
  });
});

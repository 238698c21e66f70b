/** Every helper that is given memory with a size: more than there is, or a size that nobody knows, is refused. */
import { describe, expect, it } from "vitest";
import { HELPER_SNPRINTF, type HelperArg, helperSpecs } from "../helpers.ts";
import { assembleCase } from "./test-text.ts";
import { verifyProgram } from "./verify.ts";
import { caseMaps } from "./verify-cases.ts";

/** Everything lies in the upper 64 bytes of the stack: what a size belongs to in the last 16 of them. */
const ROOM = 16;

/** Sets r`number` to something that the helper takes. */
function argument(arg: HelperArg, number: number, size: string): string | undefined {
  const reg = `r${number}`;
  switch (arg.kind) {
    case "anything":
      return `${reg} = 0`;
    case "ctx":
      return `${reg} = r6`;
    case "map": {
      const index = caseMaps.findIndex(({ kind }) => arg.kinds.includes(kind));
      return index < 0 ? undefined : `${reg} = map[${index}]`;
    }
    case "memory-in":
    case "memory-out":
      return `${reg} = r10\n${reg} += -${ROOM}`;
    case "size":
      return size === "unknown" ? `${reg} = r7` : `${reg} = ${size}`;
    case "u64-out":
      return `${reg} = r10\n${reg} += -32`;
    case "const-string":
      return `${reg} = map[13][0]+0`;
    default:
      return undefined;
  }
}

// What bpf_snprintf is given must also fit its format: test-map-cases.ts.
const sized = helperSpecs.filter(
  ({ args, number }) => number !== HELPER_SNPRINTF && args.some(({ kind }) => kind === "size"),
);

describe.each(sized.map((spec) => ({ name: spec.name, spec })))("$name", ({ spec }) => {
  const verify = (size: string, at: number) => {
    const sizes = spec.args.map((_, index) => (index === at ? size : "8"));
    const setUp = spec.args.map((arg, index) => argument(arg, index + 1, sizes[index]!));
    expect(setUp.every((line) => line !== undefined)).toBe(true);
    const zeros = Array.from({ length: 8 }, (_, word) => `*(u64 *)(r10 -${8 * (word + 1)}) = 0`);
    // A number from the traced function: anything of 64 bits.
    const text = [
      "r6 = r1",
      "r7 = *(u64 *)(r6 +112)",
      ...zeros,
      ...setUp,
      `call ${spec.name}`,
      "r0 = 0",
      "exit",
    ];
    return verifyProgram({ insns: assembleCase(text.join("\n")) }, caseMaps);
  };
  const places = spec.args.flatMap(({ kind }, index) => (kind === "size" ? [index] : []));

  it.each(places)("the size in argument %i", (at) => {
    const inside = verify("8", at);
    expect(inside.kind === "rejected" ? inside.log : "accepted").toBe("accepted");
    for (const size of [`${ROOM + 1}`, "4096", "-1", "2147483647", "unknown"])
      expect({ size, kind: verify(size, at).kind }).toEqual({ size, kind: "rejected" });
  });
});

it("there is no helper with a size that this does not know", () => {
  expect(sized.length).toBeGreaterThan(12);
});

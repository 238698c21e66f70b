/** Helpers that only look at their arguments, against the kernel's own. */
import { describe, expect, it } from "vitest";
import { canAskKernel } from "../../test/support/bpf-kernel.ts";
import { runInKernel } from "../../test/support/kernel-run.ts";
import { SeededRandom } from "../../test/support/seeded-random.ts";
import { InsnBuilder, r0, r1, r2, r3, r4, r5, r6, r10 } from "./builder.ts";
import { HELPER_SNPRINTF, HELPER_STRNCMP, HELPER_STRTOL, HELPER_STRTOUL } from "./helpers.ts";
import { parseFormat, printFormat } from "./print-format.ts";
import { checkFormat } from "./printk.ts";
import type { MapSpec } from "./program.ts";
import { readNumber } from "./text-number.ts";

const VALUE_BYTES = 1024;
const [OUT, TEXT, RESULT] = [0, 512, 1016];
const value: MapSpec = { name: "v", kind: "array", keyBytes: 4, valueBytes: VALUE_BYTES, maxEntries: 1 };
const constant = (text: string): MapSpec => ({
  ...value,
  name: "c",
  isReadOnly: true,
  contents: Uint8Array.from([...Buffer.from(text, "latin1"), ...new Uint8Array(VALUE_BYTES - text.length)]),
});
const latin1 = (text: string) => Uint8Array.from(Buffer.from(text, "latin1"));

/** r0 goes into the map. */
const finish = (b: InsnBuilder) =>
  b.ldMapValue(r1, 0, RESULT).stx(8, r1, 0, r0).mov64(r0, 0).exit().build().insns;
const resultOf = (memory: Uint8Array) => new DataView(memory.buffer).getBigInt64(RESULT, true);
const textAt = (text: string) => {
  const before = new Uint8Array(VALUE_BYTES);
  before.set(latin1(text), TEXT);
  return before;
};

/** An argument: a number, or "s" for the address of the text. */
type Arg = bigint | "s";

function kernelPrint(format: string, args: readonly Arg[], size: number, text: string) {
  const b = new InsnBuilder().ldMapValue(r6, 0, TEXT);
  args.forEach((arg, i) => {
    if (arg === "s") b.stx(8, r10, -96 + 8 * i, r6);
    else b.ldImm64(r1, BigInt.asUintN(64, arg)).stx(8, r10, -96 + 8 * i, r1);
  });
  b.ldMapValue(r1, 0, OUT).mov64(r2, size).ldMapValue(r3, 1).mov64(r4, r10).alu64("add", r4, -96);
  b.mov64(r5, 8 * args.length).call(HELPER_SNPRINTF);
  const memory = runInKernel(finish(b), [value, constant(format)], textAt(text));
  const out = Buffer.from(memory.subarray(OUT, memory.indexOf(0))).toString("latin1");
  return { result: Number(resultOf(memory)), out };
}

function ourPrint(format: string, args: readonly Arg[], size: number, text: string) {
  const parts = parseFormat(latin1(format));
  const values = args.map((arg) => (arg === "s" ? 1n : arg));
  const memory = { string: () => latin1(text), bytes: () => undefined };
  const full = Buffer.from(printFormat(parts!, values, memory)).toString("latin1");
  return { result: full.length + 1, out: full.slice(0, size - 1) };
}

describe.skipIf(!canAskKernel())("the kernel agrees about", () => {
  it("bpf_snprintf", () => {
    const random = new SeededRandom(3);
    const numbers = [
      0n,
      1n,
      9n,
      10n,
      -1n,
      -10n,
      2n ** 31n,
      2n ** 32n - 1n,
      2n ** 63n,
      0x1234_5678_9abc_def0n,
    ];
    const types = ["d", "i", "u", "x", "X", "ld", "lu", "llx", "llX", "lld", "c", "s", "px"];
    for (let i = 0; i < 150; i++) {
      const specs = Array.from({ length: 1 + random.below(3) }, () => {
        const flags = Array.from({ length: random.below(3) }, () => random.pick([..."0 +-"])).join("");
        return `%${flags}${random.pick(["", "1", "5", "12", "30"])}${random.pick(types)}`;
      });
      const format = specs.join(random.pick([" ", "-", "%% and "]));
      const args = specs.map(
        (spec): Arg =>
          spec.endsWith("s")
            ? "s"
            : spec.endsWith("c")
              ? 65n + BigInt(random.below(26))
              : random.pick(numbers),
      );
      const size = 1 + random.below(90);
      expect({ format, args, size, ...ourPrint(format, args, size, "text") }).toEqual({
        format,
        args,
        size,
        ...kernelPrint(format, args, size, "text"),
      });
    }
  });

  it("the formats that bpf_snprintf takes", () => {
    const random = new SeededRandom(5);
    const alphabet = [..."%%%%%%dxscpuliIkKBS46 0-+1.#*fn%\n"];
    for (let i = 0; i < 250; i++) {
      const format = Array.from({ length: 1 + random.below(7) }, () => random.pick(alphabet)).join("");
      const ours = checkFormat(format, 3);
      let theirs: string | undefined;
      try {
        kernelPrint(format, [0n, 0n, 0n], 64, "");
      } catch (error) {
        theirs = String(error).includes("Invalid format string") ? "Invalid format string" : String(error);
      }
      expect({ format, verdict: ours }).toEqual({ format, verdict: theirs });
    }
  });

  it.each([
    { name: "bpf_strtol", helper: HELPER_STRTOL },
    { name: "bpf_strtoul", helper: HELPER_STRTOUL },
  ])("$name", ({ helper }) => {
    const random = new SeededRandom(9);
    const alphabet = [..." -0x1f9Xg8\t7\0"];
    const edges = [
      "9223372036854775807",
      "-9223372036854775808",
      "18446744073709551616",
      "0x",
      "0xg",
      "\xa01",
    ];
    for (let i = 0; i < 150; i++) {
      const length = 1 + random.below(24);
      const text = edges[i] ?? Array.from({ length }, () => random.pick(alphabet)).join("");
      const flags = random.pick([0, 8, 10, 16, 7, 42]);
      const b = new InsnBuilder().ldMapValue(r1, 0, TEXT).mov64(r2, text.length).mov64(r3, flags);
      b.ldMapValue(r4, 0, OUT).call(helper);
      const memory = runInKernel(finish(b), [value], textAt(text));
      const ours = readNumber(latin1(text), BigInt(flags), helper === HELPER_STRTOL);
      expect({ text, flags, result: ours.result, value: BigInt.asIntN(64, ours.value) }).toEqual({
        text,
        flags,
        result: Number(resultOf(memory)),
        value: new DataView(memory.buffer).getBigInt64(OUT, true),
      });
    }
  });

  it.each([
    ["nginx", "nginx", 8],
    ["mginx", "nginx", 8],
    ["nginy", "nginx", 8],
    ["nginx2", "nginx", 8],
    ["nginx2", "nginx", 5],
    ["\xff", "\x01", 4],
  ])("bpf_strncmp of %j and %j, %i bytes", (text, known, size) => {
    const b = new InsnBuilder()
      .ldMapValue(r1, 0, TEXT)
      .mov64(r2, size)
      .ldMapValue(r3, 1)
      .call(HELPER_STRNCMP);
    const memory = runInKernel(finish(b), [value, constant(known)], textAt(text));
    const [ours, theirs] = [latin1(`${text}\0`), latin1(`${known}\0`)];
    const at = ours.findIndex((byte, i) => i < size && byte !== theirs[i]);
    expect(resultOf(memory)).toBe(at < 0 ? 0n : ours[at]! < theirs[at]! ? -1n : 1n);
  });
});

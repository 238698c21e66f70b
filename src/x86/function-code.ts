/**
 * One function as the region rules need it: its instructions, and every address inside it that something may jump
 * to, each with its source.
 *
 * Known are: branches of the function itself, entries of its jump tables, pointers in the image's data, addresses that
 * the function takes by `lea`, landing pads of exceptions. Branches from other functions are searched for
 * separately, many at once (branch-scan.ts).
 */
import { type CodeImage, type FunctionRange, textBytes } from "./code-image.ts";
import { type CodeBlock, decodeBlock, effectsOf, int32At, ripTargetOf } from "./decode.ts";
import { resolveIndirectJumps } from "./indirect-jumps.ts";

/** Why an address may be jumped to. */
export type EntrySource =
  | { readonly kind: "branch"; readonly from: bigint }
  | { readonly kind: "jump-table"; readonly from: bigint }
  | { readonly kind: "address-taken"; readonly from: bigint }
  | { readonly kind: "pointer" }
  | { readonly kind: "landing-pad" };

export interface FunctionCode {
  readonly start: bigint;
  /** End of the function proper. */
  readonly end: bigint;
  readonly name: string | undefined;
  readonly code: CodeBlock;
  /** Addresses that may be jumped to, by offset from `start`. The function's start is here only if a branch leads back. */
  readonly entries: ReadonlyMap<number, EntrySource>;
  /** An indirect jump that may lead to any instruction of the function. */
  readonly unresolvedAt: bigint | undefined;
}

export function analyseFunction(image: CodeImage, range: FunctionRange): FunctionCode | undefined {
  const bytes = textBytes(image, range.start, range.end);
  if (bytes === undefined || bytes.length === 0) return undefined;
  const code = decodeBlock(range.start, bytes);
  const entries = new Map<number, EntrySource>();
  const add = (to: bigint, source: EntrySource) => {
    const offset = Number(to - range.start);
    if (offset >= 0 && offset < bytes.length && !entries.has(offset)) entries.set(offset, source);
  };

  for (let i = 0; i < code.count; i++) {
    const flow = code.flowAt(i);
    if (flow === "jump" || flow === "branch" || flow === "call") {
      const to = code.targets[i]!;
      // A call to the function's own start is recursion, not a loop.
      const isInside = to >= 0 && to < bytes.length && !(flow === "call" && to === 0);
      if (isInside && !entries.has(to)) entries.set(to, { kind: "branch", from: code.insn(i).addr });
    } else if (flow === "next") {
      const to = takenAddress(code, i);
      if (to !== undefined && to !== range.start) add(to, { kind: "address-taken", from: code.insn(i).addr });
    }
  }
  const indirect = resolveIndirectJumps(image, code);
  for (const { from, to } of indirect.targets) add(to, { kind: "jump-table", from });
  // The first byte is no interior: pointers to it are ordinary function pointers.
  for (const to of image.pointersInto(range.start + 1n, range.end)) add(to, { kind: "pointer" });
  for (const to of image.landingPads(range)) add(to, { kind: "landing-pad" });
  return {
    start: range.start,
    end: range.end,
    name: range.name,
    code,
    entries,
    unresolvedAt: indirect.unresolvedAt,
  };
}

/**
 * The address in the same block that `lea reg, [rip+x]` takes, or that an instruction holds as its 32-bit constant
 * (only text below 2 GiB has such addresses).
 */
function takenAddress(code: CodeBlock, index: number): bigint | undefined {
  const from = code.offsets[index]!;
  const end = code.offsets[index + 1]!;
  const { bytes } = code;
  if (end - from < 5) return undefined;
  if (code.start < 0x8000_0000n) {
    const constant = int32At(bytes, end - 4) - Number(code.start);
    if (constant > 0 && constant < bytes.length) return code.start + BigInt(constant);
  }
  // REX 8D modrm(mod 00, rm 101) disp32
  if (end - from < 6 || bytes[end - 6] !== 0x8d || (bytes[end - 5]! & 0xc7) !== 0x05) return undefined;
  const insn = code.insn(index);
  if (effectsOf(insn.bytes).mnemonic !== "lea") return undefined;
  const to = ripTargetOf(insn);
  return to !== undefined && to >= code.start && to < code.end ? to : undefined;
}

/**
 * Compilers move unlikely blocks of a function elsewhere (`f.cold`), and jump tables may lead there; nothing calls
 * such a part. In a stripped image it has no name at all.
 */
export function mayBeColdPart(fn: FunctionCode): boolean {
  return fn.name === undefined || /\.cold(\.\d+)?$/.test(fn.name);
}

/**
 * Bytes that stand between code for the sake of alignment, and that nothing executes: nop instructions of any length, and
 * int3.
 *
 * Looking like padding is not enough: a nop before a loop is executed. Padding is what follows an instruction that goes
 * elsewhere (a jump, a return, a call that does not come back at a function's end) and that nothing known leads to.
 */
import { type CodeImage, textBytes } from "./code-image.ts";
import type { CodeBlock, Insn } from "./decode.ts";
import type { FunctionCode } from "./function-code.ts";

/** Half-open range of addresses. */
export interface PaddingRun {
  readonly start: bigint;
  readonly end: bigint;
}

/** Compilers align by 64 bytes at most. */
const LONGEST_RUN = 64;

/** The runs of padding inside a function, behind its end, and before its start, ascending. */
export function paddingRuns(
  image: CodeImage,
  fn: FunctionCode,
  functionAt: (addr: bigint) => FunctionCode | undefined,
): PaddingRun[] {
  const runs: PaddingRun[] = [];
  const before = runBefore(image, fn, functionAt);
  if (before !== undefined) runs.push(before);
  const { code } = fn;
  // Where an indirect jump may lead anywhere, nothing inside is known to be padding.
  if (fn.unresolvedAt === undefined && code.undecodableAt === undefined) {
    for (let i = 0; i + 1 < code.count; i++) {
      if (code.fallsThrough(i)) continue;
      const start = fn.start + BigInt(code.offsets[i + 1]!);
      const length = paddingInside(fn, i + 1, LONGEST_RUN);
      if (length > 0) runs.push({ start, end: start + BigInt(length) });
    }
  }
  const behind = paddingBehindFunction(image, fn, LONGEST_RUN);
  if (behind > 0) runs.push({ start: fn.end, end: fn.end + BigInt(behind) });
  return runs;
}

function runBefore(
  image: CodeImage,
  fn: FunctionCode,
  functionAt: (addr: bigint) => FunctionCode | undefined,
): PaddingRun | undefined {
  let start = fn.start;
  while (fn.start - start < BigInt(LONGEST_RUN) && image.findFunction(start - 1n) === undefined) start--;
  // The function in front must be known: its last instruction tells whether anything comes out of it.
  const previous = start === fn.start ? undefined : functionAt(start - 1n);
  if (previous === undefined || previous.end !== start) return undefined;
  const length = paddingBehindFunction(image, previous, LONGEST_RUN);
  return length === 0 ? undefined : { start, end: start + BigInt(length) };
}

/** How many bytes of padding follow from instruction `index` on, where nothing comes from the one before it. */
export function paddingInside(fn: FunctionCode, index: number, most: number): number {
  const { code } = fn;
  const from = code.offsets[index];
  if (from === undefined || index >= code.count) return 0;
  const found = Math.min(most, nopOrInt3Bytes(code.bytes.subarray(from, from + LONGEST_RUN)));
  for (let i = 0; i < found; i++) if (fn.entries.has(from + i)) return i;
  return found;
}

/** How many bytes of padding stand behind a function's end, where nothing comes out of it. */
export function paddingBehindFunction(image: CodeImage, fn: FunctionCode, most: number): number {
  const { code } = fn;
  if (code.count === 0 || code.undecodableAt !== undefined || fallsOut(code.insn(code.count - 1))) return 0;
  let bytes: Uint8Array | undefined;
  for (let lenBytes = LONGEST_RUN; bytes === undefined && lenBytes > 0; lenBytes >>= 1)
    bytes = textBytes(image, fn.end, fn.end + BigInt(lenBytes));
  if (bytes === undefined) return 0;
  const nops = Math.min(most, nopOrInt3Bytes(bytes));
  for (let i = 0; i < nops; i++) {
    const at = fn.end + BigInt(i);
    if (image.findFunction(at) !== undefined || image.pointersInto(at, at + 1n).length > 0) return i;
  }
  return nops;
}

/** Can execution leave this last instruction of a function at its end? A call there never comes back. */
export function fallsOut(last: Insn): boolean {
  return !["jump", "jump-indirect", "return", "stop", "call", "call-indirect"].includes(last.flow);
}

/** Do `lenBytes` bytes from instruction `index` on consist of nops and int3? */
export function isPadding(code: CodeBlock, index: number, lenBytes: number): boolean {
  if (lenBytes === 0) return true;
  const from = code.offsets[index];
  if (from === undefined || index >= code.count) return false;
  return nopOrInt3Bytes(code.bytes.subarray(from, Math.min(code.bytes.length, from + 16))) >= lenBytes;
}

/** How many bytes from the beginning are nop instructions of any length, or int3. */
export function nopOrInt3Bytes(bytes: Uint8Array): number {
  let at = 0;
  while (at < bytes.length) {
    const length = nopLength(bytes, at);
    if (length === 0) break;
    at += length;
  }
  return Math.min(at, bytes.length);
}

/** Length of the nop or int3 at an offset, 0 if it is something else. `nop` = 90, `nop r/m` = 0f 1f /0. */
function nopLength(bytes: Uint8Array, from: number): number {
  let at = from;
  while (bytes[at] === 0x66 || bytes[at] === 0x2e) at++;
  if (bytes[at] === 0x90) return at + 1 - from;
  if (bytes[at] === 0xcc) return at === from ? 1 : 0;
  if (bytes[at] !== 0x0f || bytes[at + 1] !== 0x1f) return 0;
  const modRm = bytes[at + 2];
  if (modRm === undefined || (modRm & 0x38) !== 0) return 0;
  const mod = modRm >> 6;
  const hasSib = (modRm & 7) === 4 && mod !== 3;
  const dispBytes = mod === 1 ? 1 : mod === 2 || (mod === 0 && (modRm & 7) === 5) ? 4 : 0;
  return at + 3 + (hasSib ? 1 : 0) + dispBytes - from;
}

/**
 * Entries of functions that were compiled to be patched: five bytes of NOPs that a `call rel32` fits into.
 *
 *     f:  [f3 0f 1e fa]            endbr64, where the compiler marks targets of indirect calls (-fcf-protection)
 *         0f 1f 44 00 00           gcc -pg -mfentry -mnop-mcount; clang -fpatchable-function-entry=5
 *         90 90 90 90 90 ...       gcc -fpatchable-function-entry=N[,M]; M of the N stand before f
 *
 * Any NOPs do that make exactly five bytes (66 66 90 66 90, for example), so that the instruction behind the call is one of
 * the function's own. The bytes alone decide: `__patchable_function_entries`, which lists such places, is not there in
 * every file.
 *
 * A call writes a return address below the stack pointer, so it may stand only where nothing lies there: at the entry of a
 * function, before any of its instructions (psABI, 3.2.2: the red zone belongs to whoever runs). And nothing may lead into
 * the five bytes; behind `endbr64` nothing may lead to their first byte either, since that would pass the entry by.
 */
import { effectsOf, type Insn } from "./decode.ts";
import { type FunctionCode, mayBeColdPart } from "./function-code.ts";
import {
  entryRefusal,
  type ImageCode,
  interiorOf,
  type Region,
  type RegionRefusal,
  type RegionResult,
} from "./regions.ts";

/** `e8 rel32`. */
export const CALL_BYTES = 5;

export type PatchableEntryRefusal =
  | RegionRefusal
  /** The return address is not on top of the stack there, or data may lie below it. */
  | { readonly reason: "not-a-function-entry"; readonly at: bigint }
  /** The function begins with no NOP. */
  | { readonly reason: "no-patchable-entry"; readonly at: bigint }
  /** It begins with fewer bytes of NOPs than a call needs. */
  | { readonly reason: "short-nop-sled"; readonly at: bigint; readonly lenBytes: number }
  /** One of its NOPs goes on behind the call. */
  | { readonly reason: "nop-behind-call"; readonly at: bigint };

export type PatchableEntryResult =
  | Extract<RegionResult, { kind: "region" }>
  | { readonly kind: "refused"; readonly refusal: PatchableEntryRefusal };

/** `f3 0f 1e fa` */
const ENDBR64 = [0xf3, 0x0f, 0x1e, 0xfa] as const;

/** Could a NOP stand there? Most functions are told apart by their first bytes alone. */
function mayBeNop(bytes: Uint8Array, offset: number): boolean {
  const first = bytes[offset];
  return first === 0x90 || first === 0x0f || first === 0x66;
}

/**
 * The five bytes of NOPs at the entry of each function, or why it has none; in order. Every site and what is armed counts as
 * another probe, unless each is to be judged as if it were `alone`.
 */
export function findPatchableEntries(
  code: ImageCode,
  functions: readonly bigint[],
  options: { readonly armed?: Iterable<bigint>; readonly alone?: boolean } = {},
): PatchableEntryResult[] {
  const { armed = [], alone = false } = options;
  const found = functions.map((at) => findNops(code, at));
  const regions = found.flatMap((result) => (result.kind === "region" ? [result] : []));
  if (regions.length === 0) return found;
  const probes = new Set(alone ? armed : [...functions, ...armed]);
  const refusals = code.foreignEntries(
    regions.map(({ region, fn }) => ({ addresses: closedTo(region, fn), fn, isOutside: false })),
  );
  const refusalOf = new Map(
    regions.map((result, index) => [result, otherProbe(result, probes) ?? refusals[index]]),
  );
  return found.map((result) => {
    const refusal = result.kind === "region" ? refusalOf.get(result) : undefined;
    return refusal === undefined ? result : { kind: "refused", refusal };
  });
}

function findNops(code: ImageCode, at: bigint): PatchableEntryResult {
  const refused = (refusal: PatchableEntryRefusal): PatchableEntryResult => ({ kind: "refused", refusal });
  const fn = code.functionAt(at);
  if (fn === undefined || fn.start !== at) return refused({ reason: "not-a-function-entry", at });
  const { bytes } = fn.code;
  const start = ENDBR64.every((byte, index) => bytes[index] === byte) ? ENDBR64.length : 0;
  if (!mayBeNop(bytes, start)) return refused({ reason: "no-patchable-entry", at });
  const insns: Insn[] = [];
  let lenBytes = 0;
  for (let i = fn.code.indexAt(start); i >= 0 && i < fn.code.count && lenBytes < CALL_BYTES; i++) {
    const insn = fn.code.insn(i);
    if (effectsOf(insn.bytes).mnemonic !== "nop") break;
    insns.push(insn);
    lenBytes += insn.lenBytes;
  }
  if (lenBytes === 0) return refused({ reason: "no-patchable-entry", at });
  if (lenBytes < CALL_BYTES) return refused({ reason: "short-nop-sled", at: insns[0]!.addr, lenBytes });
  if (lenBytes > CALL_BYTES) return refused({ reason: "nop-behind-call", at: insns.at(-1)!.addr });
  // A loop back to the first instruction comes there with a stack of its own.
  if (fn.entries.has(0) || mayBeColdPart(fn)) return refused({ reason: "not-a-function-entry", at });
  const region: Region = { start: insns[0]!.addr, lenBytes, insns, paddingBytes: 0, fallsThrough: true };
  for (const to of closedTo(region, fn)) {
    const source = fn.entries.get(Number(to - fn.start));
    if (source === undefined || (source.kind === "jump-table" && fn.code.findInsn(to) === undefined))
      continue;
    return refused(entryRefusal(source, to));
  }
  // An indirect jump of which nothing is known leads to a label of the source: there is none before its first instruction.
  return { kind: "region", region, fn };
}

/** Where nothing may lead. */
function closedTo(region: Region, fn: FunctionCode): bigint[] {
  const inside = interiorOf(region, CALL_BYTES);
  return region.start === fn.start ? inside : [region.start, ...inside];
}

function otherProbe(
  { region, fn }: Extract<PatchableEntryResult, { kind: "region" }>,
  probes: ReadonlySet<bigint>,
): PatchableEntryRefusal | undefined {
  const at = closedTo(region, fn).find((addr) => probes.has(addr));
  return at === undefined ? undefined : { reason: "other-probe-in-region", at };
}

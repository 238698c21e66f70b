/**
 * What a comparison teaches about its operands.
 *
 * `refine` gives what is known about both after the jump went one way; undefined if it cannot go that way. So a
 * comparison is decided exactly when one way is impossible.
 */
import { evalJump32, evalJump64 } from "../alu.ts";
import {
  JMP_JEQ,
  JMP_JGE,
  JMP_JGT,
  JMP_JLE,
  JMP_JLT,
  JMP_JNE,
  JMP_JSET,
  JMP_JSGE,
  JMP_JSGT,
  JMP_JSLE,
  JMP_JSLT,
} from "../opcodes.ts";
import {
  type Draft,
  draftOf,
  findScalar,
  isConstant,
  max,
  meetBits,
  min,
  type Scalar,
  U32_MAX,
  U64_MAX,
} from "./scalar.ts";

export interface Refined {
  readonly dst: Scalar;
  readonly src: Scalar;
}

/** The condition that holds when the jump is not taken. JSET has none. */
const opposite: ReadonlyMap<number, number> = new Map([
  [JMP_JEQ, JMP_JNE],
  [JMP_JNE, JMP_JEQ],
  [JMP_JGT, JMP_JLE],
  [JMP_JLE, JMP_JGT],
  [JMP_JGE, JMP_JLT],
  [JMP_JLT, JMP_JGE],
  [JMP_JSGT, JMP_JSLE],
  [JMP_JSLE, JMP_JSGT],
  [JMP_JSGE, JMP_JSLT],
  [JMP_JSLT, JMP_JSGE],
]);

/** Knowledge about `dst` and `src` where `dst op src` is `taken`; both keep their ids. */
export function refine(
  is64: boolean,
  op: number,
  dst: Scalar,
  src: Scalar,
  taken: boolean,
): Refined | undefined {
  if (isConstant(dst) && isConstant(src)) {
    const holds = (is64 ? evalJump64 : evalJump32)(op, dst.value, src.value);
    return holds === taken ? { dst, src } : undefined;
  }
  const a = draftOf(dst);
  const b = draftOf(src);
  const fits =
    op === JMP_JSET ? applySet(is64, a, b, taken) : apply(is64, taken ? op : opposite.get(op)!, a, b);
  if (!fits) return undefined;
  const newDst = findScalar(a, dst.id);
  const newSrc = findScalar(b, src.id);
  return newDst && newSrc && { dst: newDst, src: newSrc };
}

/** The fields of a draft that a comparison of this width and sign reads. */
interface Range {
  readonly min: "umin" | "smin" | "umin32" | "smin32";
  readonly max: "umax" | "smax" | "umax32" | "smax32";
}

const unsigned64: Range = { min: "umin", max: "umax" };
const signed64: Range = { min: "smin", max: "smax" };
const unsigned32: Range = { min: "umin32", max: "umax32" };
const signed32: Range = { min: "smin32", max: "smax32" };

/** Returns false if the condition contradicts the bits or bounds; other contradictions show when drafts are made scalars. */
function apply(is64: boolean, op: number, a: Draft, b: Draft): boolean {
  const u = is64 ? unsigned64 : unsigned32;
  const s = is64 ? signed64 : signed32;
  switch (op) {
    case JMP_JEQ:
      return equal(is64, a, b);
    case JMP_JNE:
      return notEqual(u, a, b) && notEqual(s, a, b) && notEqual(u, b, a) && notEqual(s, b, a);
    case JMP_JGT:
      return less(u, b, a, 1n);
    case JMP_JGE:
      return less(u, b, a, 0n);
    case JMP_JLT:
      return less(u, a, b, 1n);
    case JMP_JLE:
      return less(u, a, b, 0n);
    case JMP_JSGT:
      return less(s, b, a, 1n);
    case JMP_JSGE:
      return less(s, b, a, 0n);
    case JMP_JSLT:
      return less(s, a, b, 1n);
    case JMP_JSLE:
      return less(s, a, b, 0n);
    default:
      return true;
  }
}

/** a + gap <= b */
function less(r: Range, a: Draft, b: Draft, gap: 0n | 1n): boolean {
  a[r.max] = min(a[r.max], b[r.max] - gap);
  b[r.min] = max(b[r.min], a[r.min] + gap);
  return a[r.min] <= a[r.max] && b[r.min] <= b[r.max];
}

/** A range loses an end that the other operand is known to be. */
function notEqual(r: Range, a: Draft, b: Draft): boolean {
  if (b[r.min] !== b[r.max]) return true;
  const only = b[r.min];
  if (a[r.min] === only) a[r.min] = only + 1n;
  if (a[r.max] === only) a[r.max] = only - 1n;
  return a[r.min] <= a[r.max];
}

function equal(is64: boolean, a: Draft, b: Draft): boolean {
  const ranges = is64 ? [unsigned64, signed64, unsigned32, signed32] : [unsigned32, signed32];
  for (const r of ranges) {
    a[r.min] = b[r.min] = max(a[r.min], b[r.min]);
    a[r.max] = b[r.max] = min(a[r.max], b[r.max]);
    if (a[r.min] > a[r.max]) return false;
  }
  // Equal low halves say nothing about the high bits: those stay unknown in what is exchanged.
  const outside = is64 ? 0n : U64_MAX ^ U32_MAX;
  const { value, mask } = a;
  return meetBits(a, b.value & ~outside, b.mask | outside) && meetBits(b, value & ~outside, mask | outside);
}

/** `dst & src` is not 0 (`taken`) or 0. Teaches about dst only, and only if src is known. */
function applySet(is64: boolean, a: Draft, b: Draft, taken: boolean): boolean {
  const width = is64 ? U64_MAX : U32_MAX;
  if (!taken) {
    // No bit may be known to be 1 in both; bits that are 1 in one are 0 in the other.
    if ((a.value & b.value & width) !== 0n) return false;
    const inB = b.value & width;
    const inA = a.value & width;
    return meetBits(a, 0n, U64_MAX ^ inB) && meetBits(b, 0n, U64_MAX ^ inA);
  }
  const possible = (a.value | a.mask) & (b.value | b.mask) & width;
  if (possible === 0n) return false;
  // If only one bit can be in both, it is.
  if ((possible & (possible - 1n)) !== 0n) return true;
  return meetBits(a, possible, U64_MAX ^ possible) && meetBits(b, possible, U64_MAX ^ possible);
}

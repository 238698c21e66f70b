/**
 * Where the stack pointer stands, relative to a function's entry, as far as its instructions tell.
 *
 * 0 is the entry: the return address is on top of the stack. A compiler's function comes back to 0 before it returns or
 * jumps to another function, so the height tells a return from `push address; ret`, and a tail call from a jump inside a
 * function. The frame pointer is followed as well, because `leave` and `lea rsp, [rbp-n]` come back by it.
 *
 * `weak`: nothing is known yet (a landing pad, a label whose address is taken); whoever knows better decides. `lost`: it was
 * computed in a way that is not followed here, or two ways to the instruction disagree.
 */
import { effectsOf, int32At } from "./decode.ts";
import { isLegacyPrefix, parseModRm } from "./modrm.ts";
import { hasReg, RBP, RSP } from "./registers.ts";

/** A distance in bytes, 0 or negative, or one of the constants below. */
export type Height = number;

export const WEAK: Height = 1 << 30;
export const LOST: Height = (1 << 30) + 1;

const isKnown = (height: Height): boolean => height < WEAK;

const moved = (height: Height, bytes: number): Height => (isKnown(height) ? height + bytes : height);

/** Of the stack pointer and the frame pointer. */
export interface Heights {
  readonly sp: Height;
  readonly fp: Height;
}

/** What is known where two ways meet. */
export function joinHeights(a: Heights, b: Heights): Heights {
  const sp = joined(a.sp, b.sp);
  const fp = joined(a.fp, b.fp);
  return sp === a.sp && fp === a.fp ? a : { sp, fp };
}

function joined(a: Height, b: Height): Height {
  if (a === b || b === WEAK) return a;
  return a === WEAK ? b : LOST;
}

/** Behind an instruction that is no call, no jump and no return. */
export function heightsBehind(bytes: Uint8Array, before: Heights): Heights {
  const { sp, fp } = before;
  let at = 0;
  while (isLegacyPrefix(bytes[at]!)) at++;
  let rex = 0;
  if ((bytes[at]! & 0xf0) === 0x40) rex = bytes[at++]!;
  const opcode = bytes[at]!;
  const isWide = (rex & 8) !== 0;
  if (bytes[0] !== 0x66) {
    if (opcode >= 0x50 && opcode <= 0x57) return { sp: moved(sp, -8), fp };
    if (opcode >= 0x58 && opcode <= 0x5f) {
      const reg = (opcode & 7) | ((rex & 1) << 3);
      return { sp: reg === RSP ? LOST : moved(sp, 8), fp: reg === RBP ? LOST : fp };
    }
    if (opcode === 0x68 || opcode === 0x6a || opcode === 0x9c) return { sp: moved(sp, -8), fp };
    if (opcode === 0x9d) return { sp: moved(sp, 8), fp };
    if (opcode === 0xc9) return { sp: moved(fp, 8), fp: LOST };
  }
  const { writes } = effectsOf(bytes);
  if (!hasReg(writes, RSP) && !hasReg(writes, RBP)) return before;
  const lost = { sp: hasReg(writes, RSP) ? LOST : sp, fp: hasReg(writes, RBP) ? LOST : fp };
  const operand = parseModRm(bytes);
  if (operand === undefined) return lost;
  const field = operand.field | ((rex & 4) << 1);
  switch (opcode) {
    case 0x81:
    case 0x83: {
      if (operand.kind !== "reg" || operand.reg !== RSP || !isWide) return lost;
      const imm = opcode === 0x83 ? (bytes.at(-1)! << 24) >> 24 : int32At(bytes, bytes.length - 4);
      if (operand.field === 0) return { sp: moved(sp, imm), fp };
      return operand.field === 5 ? { sp: moved(sp, -imm), fp } : lost;
    }
    case 0x89:
      return operand.kind === "reg" && isWide ? assigned(before, operand.reg, field, 0, lost) : lost;
    case 0x8b:
      return operand.kind === "reg" && isWide ? assigned(before, field, operand.reg, 0, lost) : lost;
    case 0x8d:
      return operand.kind === "mem" && operand.index === undefined && isWide
        ? assigned(before, field, operand.base, operand.disp, lost)
        : lost;
    case 0xff:
      return operand.field === 6 ? { sp: moved(sp, -8), fp } : lost;
    case 0x8f:
      return operand.kind === "mem" ? { sp: moved(sp, 8), fp } : lost;
    default:
      return lost;
  }
}

/** `to = from + disp`. */
function assigned(
  before: Heights,
  to: number,
  from: number | "rip" | undefined,
  disp: number,
  lost: Heights,
): Heights {
  const source = from === RSP ? before.sp : from === RBP ? before.fp : undefined;
  if (source === undefined) return lost;
  const height = moved(source, disp);
  if (to === RSP) return { sp: height, fp: before.fp };
  return to === RBP ? { sp: before.sp, fp: height } : lost;
}

/**
 * The ModRM operand of an instruction, read from its bytes.
 *
 *      prefixes  REX  opcode  ModRM(mod:2 reg:3 rm:3)  SIB(scale:2 index:3 base:3)  disp  imm
 *
 * Only the one-byte opcode map: that is where jumps, calls, moves and address arithmetic are.
 * Facts: Intel SDM 2A, 2.1 and tables 2-2, 2-3; REX in 2.2.1.
 */
import { int32At } from "./decode.ts";
import { type Reg, RSP } from "./registers.ts";

export type ModRmOperand =
  | { readonly kind: "reg"; readonly reg: Reg; readonly field: number; readonly modRmAt: number }
  | {
      readonly kind: "mem";
      readonly base: Reg | "rip" | undefined;
      readonly index: Reg | undefined;
      readonly scale: number;
      readonly disp: number;
      /** The reg field without REX.R. */
      readonly field: number;
      readonly modRmAt: number;
      readonly dispAt: number;
      readonly dispBytes: 0 | 1 | 4;
    };

/**
 * The ModRM operand of an instruction of the one-byte opcode map (legacy prefixes, REX, opcode, ModRM; Intel SDM
 * 2A, 2.1). The caller knows that the opcode has a ModRM byte.
 */
export function parseModRm(bytes: Uint8Array): ModRmOperand | undefined {
  let at = 0;
  while (at < bytes.length && isLegacyPrefix(bytes[at]!)) at++;
  let rex = 0;
  if ((bytes[at]! & 0xf0) === 0x40) rex = bytes[at++]!;
  if (bytes[at] === 0x0f || bytes[at] === 0xc4 || bytes[at] === 0xc5 || bytes[at] === 0x62) return undefined;
  const modRmAt = at + 1;
  const modRm = bytes[modRmAt];
  if (modRm === undefined) return undefined;
  const mod = modRm >> 6;
  const field = (modRm >> 3) & 7;
  const rm = modRm & 7;
  if (mod === 3) return { kind: "reg", reg: rm | ((rex & 1) << 3), field, modRmAt };
  let base: Reg | "rip" | undefined = rm | ((rex & 1) << 3);
  let index: Reg | undefined;
  let scale = 1;
  let dispAt = modRmAt + 1;
  let dispBytes: 0 | 1 | 4 = mod === 1 ? 1 : mod === 2 ? 4 : 0;
  if (rm === 4) {
    const sib = bytes[dispAt++];
    if (sib === undefined) return undefined;
    const indexReg = ((sib >> 3) & 7) | ((rex & 2) << 2);
    if (indexReg !== RSP) {
      index = indexReg;
      scale = 1 << (sib >> 6);
    }
    base = (sib & 7) | ((rex & 1) << 3);
    if ((sib & 7) === 5 && mod === 0) {
      base = undefined;
      dispBytes = 4;
    }
  } else if (rm === 5 && mod === 0) {
    base = "rip";
    dispBytes = 4;
  }
  if (dispAt + dispBytes > bytes.length) return undefined;
  const disp = dispBytes === 4 ? int32At(bytes, dispAt) : dispBytes === 1 ? (bytes[dispAt]! << 24) >> 24 : 0;
  return { kind: "mem", base, index, scale, disp, field, modRmAt, dispAt, dispBytes };
}

export function isLegacyPrefix(byte: number): boolean {
  switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
      return true;
    default:
      return false;
  }
}

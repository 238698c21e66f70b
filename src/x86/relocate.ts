/**
 * Displaced instructions, made to run somewhere else with the same effect.
 *
 * Every instruction becomes a copy of known size at a known offset, so that each position between two originals has
 * an exact twin in the copy: a thread that stands at one may be moved to the other.
 *
 *     original                      copy
 *     anything else                 the same bytes
 *     op [rip+d]                    op [rip+d'], same length
 *     jcc rel8, jcc rel32           0f 8x rel32
 *     jmp rel8, jmp rel32           e9 rel32
 *     loop, jrcxz  rel8             e2 02; eb 05; e9 rel32
 *     call rel32                    push [rip+return address]; e9 rel32
 *     call r/m64                    push [rip+return address]; jmp r/m64  (rsp-relative operands move by 8)
 *     behind the last               e9 rel32 to the instruction after the region
 *
 * A call pushes the original return address, so the callee, unwinders and `call $+5; pop` see what they always saw;
 * the eight bytes stand behind the copies. No copy changes a register or a flag that the original does not change.
 *
 * Refused: rsp as a call target, a call through memory that the pushed address overwrites, EIP-relative
 * operands, far and 16-bit branches, traps (they report their own address), and operands or targets out of reach.
 */
import { effectsOf, type Insn, int32At } from "./decode.ts";
import { isLegacyPrefix, parseModRm } from "./modrm.ts";
import type { Region } from "./regions.ts";
import { RSP } from "./registers.ts";

/** Two addresses that are the same position. */
export interface Twin {
  readonly original: bigint;
  readonly copy: bigint;
}

/** One stretch of the copy: a displaced instruction, the jump back, or constants. */
export interface CopyPart {
  readonly kind: "insn" | "jump-back" | "constant";
  /** Offset from the copy's beginning. */
  readonly offset: number;
  readonly lenBytes: number;
  /** The original instruction of an `insn`. */
  readonly original: Insn | undefined;
}

export interface Relocated {
  readonly kind: "relocated";
  readonly at: bigint;
  readonly bytes: Uint8Array;
  /** For every displaced instruction, and for the address behind the last one if execution goes on there. */
  readonly twins: readonly Twin[];
  readonly parts: readonly CopyPart[];
}

export type RelocationRefusal =
  | { readonly reason: "unrelocatable"; readonly at: bigint; readonly what: string }
  | { readonly reason: "operand-out-of-reach"; readonly at: bigint; readonly to: bigint }
  | { readonly reason: "detour-out-of-reach"; readonly site: bigint; readonly detour: bigint };

export type RelocateResult = Relocated | { readonly kind: "refused"; readonly refusal: RelocationRefusal };

class Refused extends Error {
  readonly refusal: RelocationRefusal;
  constructor(refusal: RelocationRefusal) {
    super(refusal.reason);
    this.refusal = refusal;
  }
}

/** The region's instructions for execution at `at`. The size depends only on the region. */
export function relocate(region: Region, at: bigint): RelocateResult {
  try {
    return new Copy(region, at).make();
  } catch (error) {
    if (error instanceof Refused) return { kind: "refused", refusal: error.refusal };
    throw error;
  }
}

/** Why the region could not be relocated anywhere, or undefined if near its place it can. */
export function findUnrelocatable(region: Region): RelocationRefusal | undefined {
  const result = relocate(region, region.start);
  return result.kind === "refused" ? result.refusal : undefined;
}

class Copy {
  readonly #region: Region;
  readonly #at: bigint;
  readonly #bytes: number[] = [];
  readonly #twins: Twin[] = [];
  readonly #parts: CopyPart[] = [];
  /** Constants behind the code: where their address goes, and their value. */
  readonly #constants: { field: number; value: bigint }[] = [];

  constructor(region: Region, at: bigint) {
    this.#region = region;
    this.#at = at;
  }

  make(): Relocated {
    const region = this.#region;
    for (const insn of region.insns) {
      const offset = this.#bytes.length;
      this.#twins.push({ original: insn.addr, copy: this.#here() });
      this.#insn(insn);
      this.#parts.push({ kind: "insn", offset, lenBytes: this.#bytes.length - offset, original: insn });
    }
    if (region.fallsThrough && !endsInCall(region)) {
      const offset = this.#bytes.length;
      const back = region.start + BigInt(region.lenBytes);
      this.#twins.push({ original: back, copy: this.#here() });
      this.#jump([0xe9], back, region.start);
      this.#parts.push({ kind: "jump-back", offset, lenBytes: 5, original: undefined });
    }
    for (const { field, value } of this.#constants) {
      const offset = this.#bytes.length;
      this.#patch32(field, offset - (field + 4));
      for (let i = 0n; i < 8n; i++) this.#bytes.push(Number((value >> (8n * i)) & 0xffn));
      this.#parts.push({ kind: "constant", offset, lenBytes: 8, original: undefined });
    }
    return {
      kind: "relocated",
      at: this.#at,
      bytes: Uint8Array.from(this.#bytes),
      twins: this.#twins,
      parts: this.#parts,
    };
  }

  #here(): bigint {
    return this.#at + BigInt(this.#bytes.length);
  }

  #insn(insn: Insn): void {
    switch (insn.flow) {
      case "next":
      case "jump-indirect":
      case "return":
      case "syscall":
      case "stop":
        this.#copy(insn, insn.bytes);
        break;
      case "jump":
        this.#checkSize(insn);
        this.#jump([0xe9], insn.target!, insn.addr);
        break;
      case "branch":
        this.#checkSize(insn);
        this.#branch(insn);
        break;
      case "call":
        this.#checkSize(insn);
        this.#pushReturnAddress(insn);
        this.#jump([0xe9], insn.target!, insn.addr);
        break;
      case "call-indirect":
        this.#callIndirect(insn);
        break;
      case "trap":
        throw this.#unrelocatable(insn, "a trap reports its own address");
      default:
        insn.flow satisfies never;
    }
  }

  /** The same bytes, with a RIP-relative displacement that leads to the same place. */
  #copy(insn: Insn, bytes: Uint8Array): void {
    const { ripDispOffset, mnemonic } = effectsOf(insn.bytes);
    if (insn.flow === "jump-indirect") this.#checkNearOperand(insn, 4);
    if (insn.flow === "return" && mnemonic !== "ret")
      throw this.#unrelocatable(insn, `${mnemonic} is no near return`);
    const start = this.#bytes.length;
    this.#bytes.push(...bytes);
    if (ripDispOffset < 0) return;
    if (hasPrefix(insn.bytes, 0x67)) throw this.#unrelocatable(insn, "its operand is relative to EIP");
    const to = insn.addr + BigInt(insn.lenBytes) + BigInt(int32At(insn.bytes, ripDispOffset));
    const disp = to - this.#here();
    if (BigInt.asIntN(32, disp) !== disp)
      throw new Refused({ reason: "operand-out-of-reach", at: insn.addr, to });
    this.#patch32(start + ripDispOffset, Number(disp));
  }

  #branch(insn: Insn): void {
    const { bytes } = insn;
    const opcodeAt = bytes.findIndex((byte) => !isLegacyPrefix(byte) && (byte & 0xf0) !== 0x40);
    const opcode = bytes[opcodeAt]!;
    const target = insn.target!;
    if (opcode === 0x0f) {
      this.#jump([0x0f, bytes[opcodeAt + 1]!], target, insn.addr);
    } else if ((opcode & 0xf0) === 0x70) {
      this.#jump([0x0f, 0x80 | (opcode & 0x0f)], target, insn.addr);
    } else if ((opcode & 0xfc) === 0xe0) {
      // loop +2; jmp +5; jmp target. The prefix 67 selects ecx.
      this.#bytes.push(...bytes.subarray(0, bytes.length - 1), 0x02, 0xeb, 0x05);
      this.#jump([0xe9], target, insn.addr);
    } else {
      // xbegin rel32: the target is where an abort goes on.
      this.#jump([...bytes.subarray(0, bytes.length - 4)], target, insn.addr);
    }
  }

  #callIndirect(insn: Insn): void {
    const operand = this.#checkNearOperand(insn, 2);
    // Prefixes and REX as they are, opcode FF, ModRM with /4 (jmp) instead of /2 (call).
    const bytes = Uint8Array.from(insn.bytes);
    bytes[operand.modRmAt] = (bytes[operand.modRmAt]! & 0xc7) | (4 << 3);
    this.#pushReturnAddress(insn);
    if (operand.kind === "reg") {
      if (operand.reg === RSP) throw this.#unrelocatable(insn, "rsp changes before it is used");
      this.#bytes.push(...bytes);
      return;
    }
    if (operand.base !== RSP) {
      this.#copy(insn, bytes);
      return;
    }
    // [rsp+x]: the pushed address moved rsp by 8, and now lies at rsp-8 of before.
    if (operand.disp > -16 && operand.disp < 0)
      throw this.#unrelocatable(insn, "its operand is where the return address goes");
    const disp = operand.disp + 8;
    bytes[operand.modRmAt] = (bytes[operand.modRmAt]! & 0x3f) | 0x80;
    this.#bytes.push(...bytes.subarray(0, operand.dispAt), disp & 0xff);
    this.#bytes.push((disp >> 8) & 0xff, (disp >> 16) & 0xff, (disp >> 24) & 0xff);
  }

  /** The operand of `FF /n`; anything but a plain 64-bit near jump or call is refused. */
  #checkNearOperand(insn: Insn, field: number): NonNullable<ReturnType<typeof parseModRm>> {
    const operand = parseModRm(insn.bytes);
    const opcode = operand === undefined ? undefined : insn.bytes[operand.modRmAt - 1];
    if (operand === undefined || opcode !== 0xff || operand.field !== field)
      throw this.#unrelocatable(insn, "it is no near jump or call");
    this.#checkSize(insn);
    return operand;
  }

  /** Intel ignores 66 before a jump or call, AMD truncates the target to 16 bits unless REX.W is there as well. */
  #checkSize({ bytes, addr }: Insn): void {
    let is16Bit = false;
    let rex = 0;
    for (const byte of bytes) {
      // A REX counts only right before the opcode.
      if ((byte & 0xf0) === 0x40) rex = byte;
      else if (isLegacyPrefix(byte)) {
        is16Bit ||= byte === 0x66;
        rex = 0;
      } else break;
    }
    if (!is16Bit || (rex & 8) !== 0) return;
    const what = "its operand has 16 bits on some processors";
    throw new Refused({ reason: "unrelocatable", at: addr, what });
  }

  /** `push [rip+constant]` = ff 35 disp32. */
  #pushReturnAddress(insn: Insn): void {
    this.#bytes.push(0xff, 0x35);
    this.#constants.push({ field: this.#bytes.length, value: insn.addr + BigInt(insn.lenBytes) });
    this.#bytes.push(0, 0, 0, 0);
  }

  #jump(opcode: readonly number[], to: bigint, from: bigint): void {
    this.#bytes.push(...opcode, 0, 0, 0, 0);
    const rel = to - this.#here();
    if (BigInt.asIntN(32, rel) !== rel) throw new Refused({ reason: "operand-out-of-reach", at: from, to });
    this.#patch32(this.#bytes.length - 4, Number(rel));
  }

  #patch32(offset: number, value: number): void {
    for (let i = 0; i < 4; i++) this.#bytes[offset + i] = (value >> (8 * i)) & 0xff;
  }

  #unrelocatable(insn: Insn, what: string): Refused {
    return new Refused({ reason: "unrelocatable", at: insn.addr, what });
  }
}

function endsInCall(region: Region): boolean {
  const last = region.insns.at(-1)!;
  return last.flow === "call" || last.flow === "call-indirect";
}

function hasPrefix(bytes: Uint8Array, prefix: number): boolean {
  for (const byte of bytes) {
    if (byte === prefix) return true;
    if (!isLegacyPrefix(byte)) return false;
  }
  return false;
}

/**
 * How to unwind out of our own code, for debuggers: DWARF frame descriptions of detours, trampolines, programs and routines,
 * found by following the code that was emitted.
 *
 * A detour is described as if the site had called it: its caller is the function that is probed, at the site, with the
 * registers that the gate has saved. So the debugger goes on with the function's own description, and nothing of that has to be
 * known here. The return address of this pretended call is one byte behind the site, because debuggers look one byte before
 * a return address. In the copy of a displaced instruction the caller stands at its original.
 *
 * Everything else is called, by a gate or by a program, and is described by the height of its stack. Where the height is
 * lost (a gate that runs programs on a private stack), the description ends.
 *
 * Facts: DWARF 5, 6.4; LSB Core, Exception Frames; psABI 3.6.2 (numbers of registers).
 */
import { decodeBlock } from "../x86/decode.ts";
import { parseModRm } from "../x86/modrm.ts";
import { hasReg, R12, R13, R14, R15, RBP, RBX, RSP, regSet } from "../x86/registers.ts";
import { heightsBehind, LOST, WEAK } from "../x86/stack-height.ts";

/** Code to be described. */
export interface FramedCode {
  readonly at: bigint;
  readonly bytes: Uint8Array;
  /** A detour by its site and where the copies of its instructions lie. */
  readonly detour?:
    | {
        readonly site: bigint;
        readonly displacedOffset: number;
        readonly twins: readonly { readonly original: bigint; readonly copy: bigint }[];
      }
    | undefined;
}

/** From an offset on. */
export interface FrameRow {
  readonly offset: number;
  /** Distance from rsp to what rsp was at the entry. */
  readonly height: number;
  /** Callee-saved registers by number, and how far below the entry's rsp each was stored. */
  readonly saved: ReadonlyMap<number, number>;
  /** The address that the caller stands at, if no return address says so. */
  readonly caller?: bigint | undefined;
}

const calleeSaved = regSet(RBX, RBP, R12, R13, R14, R15);

interface State {
  readonly height: number;
  readonly saved: ReadonlyMap<number, number>;
}

/** Rows in the order of their offsets; code that nothing leads to, or whose height is lost, has none. */
export function findFrameRows(code: FramedCode): FrameRow[] {
  const states = followCode(code);
  const rows: FrameRow[] = [];
  const twins = new Map(code.detour?.twins.map(({ original, copy }) => [Number(copy - code.at), original]));
  for (const [offset, state] of [...states].sort(([a], [b]) => a - b)) {
    const row = rowOf(code, offset, state, twins, rows.at(-1));
    const last = rows.at(-1);
    if (last !== undefined && sameRow(last, row)) continue;
    rows.push(row);
  }
  return rows;
}

function rowOf(
  { detour }: FramedCode,
  offset: number,
  state: State,
  twins: ReadonlyMap<number, bigint>,
  last: FrameRow | undefined,
): FrameRow {
  if (detour === undefined) return { offset, ...state };
  if (offset < detour.displacedOffset) return { offset, ...state, caller: detour.site };
  // A copy may be several instructions long.
  const caller = twins.get(offset) ?? last?.caller ?? detour.site;
  return { offset, height: 0, saved: new Map(), caller };
}

function sameRow(a: FrameRow, b: FrameRow): boolean {
  return (
    a.height === b.height &&
    a.caller === b.caller &&
    a.saved.size === b.saved.size &&
    [...a.saved].every(([reg, below]) => b.saved.get(reg) === below)
  );
}

/** What is known before each instruction. */
function followCode({ at, bytes, detour }: FramedCode): Map<number, State> {
  const block = decodeBlock(at, bytes);
  const insns = new Map(block.insns().map((insn) => [Number(insn.addr - at), insn]));
  const states = new Map<number, State>();
  const pending: [number, State][] = [[0, { height: 0, saved: new Map() }]];
  const end = detour?.displacedOffset ?? bytes.length;
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    const [offset, state] = next;
    const insn = insns.get(offset);
    if (insn === undefined || offset >= end || states.has(offset)) continue;
    states.set(offset, state);
    const behind = offset + insn.lenBytes;
    const target = insn.target === undefined ? undefined : Number(insn.target - at);
    switch (insn.flow) {
      case "call":
        // A routine of the same piece of code.
        if (target !== undefined && target !== behind)
          pending.push([target, { height: 0, saved: new Map() }]);
        pending.push([behind, state]);
        break;
      case "jump":
        if (target !== undefined) pending.push([target, state]);
        break;
      case "branch":
        if (target !== undefined) pending.push([target, state]);
        pending.push([behind, state]);
        break;
      case "next":
      case "syscall":
      case "call-indirect": {
        const after = insn.flow === "next" ? stateBehind(insn.bytes, state) : state;
        if (after !== undefined) pending.push([behind, after]);
        break;
      }
      default:
        break;
    }
  }
  // What is displaced is described by its twins.
  if (detour !== undefined)
    for (const { copy } of detour.twins) states.set(Number(copy - at), { height: 0, saved: new Map() });
  return states;
}

function stateBehind(bytes: Uint8Array, { height, saved }: State): State | undefined {
  const { sp } = heightsBehind(bytes, { sp: 0 - height, fp: LOST });
  if (sp >= WEAK || sp > 0) return undefined;
  const after = 0 - sp;
  const stored = storedRegister(bytes, height);
  if (stored === undefined || saved.has(stored.reg)) return { height: after, saved: dropBelow(saved, after) };
  return { height: after, saved: new Map(saved).set(stored.reg, stored.below) };
}

/** What lies below the stack pointer is not kept. */
function dropBelow(saved: ReadonlyMap<number, number>, height: number): ReadonlyMap<number, number> {
  const kept = [...saved].filter(([, below]) => below <= height);
  return kept.length === saved.size ? saved : new Map(kept);
}

/** `push reg`, or `mov [rsp+disp], reg`, of a register that calls preserve. */
function storedRegister(
  bytes: Uint8Array,
  height: number,
): { readonly reg: number; readonly below: number } | undefined {
  const rex = (bytes[0]! & 0xf0) === 0x40 ? bytes[0]! : 0;
  const opcode = bytes[rex === 0 ? 0 : 1]!;
  if (opcode >= 0x50 && opcode <= 0x57) {
    const reg = (opcode & 7) | ((rex & 1) << 3);
    return hasReg(calleeSaved, reg) ? { reg, below: height + 8 } : undefined;
  }
  if (opcode !== 0x89 || (rex & 8) === 0) return undefined;
  const operand = parseModRm(bytes);
  if (operand?.kind !== "mem" || operand.base !== RSP || operand.index !== undefined) return undefined;
  const reg = operand.field | ((rex & 4) << 1);
  return hasReg(calleeSaved, reg) ? { reg, below: height - operand.disp } : undefined;
}

/** DWARF's numbers of our registers. */
const dwarfNumber = [0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15] as const;
const RA_COLUMN = 16;

/** Unwind information for code, as a section `.eh_frame`: all addresses are absolute. */
export function encodeEhFrame(codes: readonly FramedCode[], more: readonly Uint8Array[] = []): Uint8Array {
  const cie = record([
    ...le32(0),
    1,
    0x7a, // "zR"
    0x52,
    0,
    1,
    0x78, // data alignment: -8
    RA_COLUMN,
    1,
    0x00, // absolute pointers
    0x0c, // DW_CFA_def_cfa rsp, 8: the return address is on top
    7,
    8,
    0x80 | RA_COLUMN, // DW_CFA_offset ra, 1
    1,
  ]);
  const parts: Uint8Array[] = [cie];
  let at = cie.length;
  for (const code of codes) {
    const instructions = frameInstructions(code);
    if (instructions.length === 0) continue;
    const fde = record([
      ...le32(at + 4),
      ...le64(code.at),
      ...le64(BigInt(code.bytes.length)),
      0,
      ...instructions,
    ]);
    parts.push(fde);
    at += fde.length;
  }
  return joined([...parts, ...more, new Uint8Array(4)]);
}

function frameInstructions(code: FramedCode): number[] {
  const rows = findFrameRows(code);
  const out: number[] = [];
  let at = 0;
  let described = new Set<number>();
  for (const row of rows) {
    if (row.offset > at) out.push(0x04, ...le32(row.offset - at)); // DW_CFA_advance_loc4
    at = row.offset;
    const hasCaller = row.caller !== undefined;
    out.push(0x0e, ...uleb(row.height + (hasCaller ? 0 : 8))); // DW_CFA_def_cfa_offset
    if (hasCaller) out.push(0x16, RA_COLUMN, 9, 0x03, ...le64(row.caller! + 1n)); // val_expression: DW_OP_addr
    // The CFA is the stack pointer of the site, or 8 more where a return address was pushed.
    for (const [reg, below] of row.saved)
      out.push(0x80 | dwarfNumber[reg]!, ...uleb((below + (hasCaller ? 0 : 8)) / 8)); // DW_CFA_offset
    for (const reg of described) if (!row.saved.has(reg)) out.push(0x08, dwarfNumber[reg]!); // DW_CFA_same_value
    described = new Set(row.saved.keys());
  }
  return out;
}

/** A record of the section with its length, filled up with DW_CFA_nop. */
function record(content: readonly number[]): Uint8Array {
  const padded = Math.ceil((content.length + 4) / 8) * 8;
  const bytes = new Uint8Array(padded);
  bytes.set(le32(padded - 4));
  bytes.set(content, 4);
  return bytes;
}

function uleb(value: number): number[] {
  const bytes: number[] = [];
  for (let left = value; ; left >>>= 7) {
    if (left < 0x80) return [...bytes, left];
    bytes.push((left & 0x7f) | 0x80);
  }
}

const le32 = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
const le64 = (value: bigint): number[] => [
  ...le32(Number(BigInt.asUintN(32, value))),
  ...le32(Number(BigInt.asUintN(32, value >> 32n))),
];

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

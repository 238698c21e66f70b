/**
 * Reads the text form of instructions: what `printInsn` writes, and the spellings of llvm-objdump and verifier logs.
 *
 * One instruction per line. A line may begin with its slot index (`12:`) and the opcode (`(b7)`), both ignored, and
 * end in a comment (`;`, `//` or `#` after a space) or in llvm's `<label>`. `name:` before an instruction is a label
 * for `goto name`. Numbers are decimal or hexadecimal.
 */
import { findHelperNumber } from "./helpers.ts";
import type { Insn } from "./insn.ts";
import {
  ALU_DIV,
  ALU_END,
  ALU_MOD,
  ALU_MOV,
  ALU_NEG,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  ATOMIC_XCHG,
  CALL_HELPER,
  CALL_LOCAL,
  CALL_PLATFORM,
  CLASS_ALU,
  CLASS_ALU64,
  CLASS_JMP,
  CLASS_JMP32,
  CLASS_LD,
  CLASS_LDX,
  CLASS_ST,
  CLASS_STX,
  isConditionalJump,
  MODE_ABS,
  MODE_ATOMIC,
  MODE_IND,
  MODE_MEM,
  MODE_MEMSX,
  OP_CALL,
  OP_CALLX,
  OP_EXIT,
  OP_JA,
  OP_JA32,
  OP_LDIMM64,
  PSEUDO_FUNCTION,
  PSEUDO_MAP_FD,
  PSEUDO_MAP_INDEX,
  PSEUDO_MAP_INDEX_VALUE,
  PSEUDO_MAP_VALUE,
  PSEUDO_NONE,
  PSEUDO_VARIABLE,
  SIZE_DW,
  SRC_K,
  SRC_X,
} from "./opcodes.ts";
import { aluSymbols, atomicNames, atomicSymbols, jumpSymbols, sizeNames } from "./text-names.ts";

export type ParsedProgram =
  | { readonly kind: "parsed"; readonly insns: Insn[] }
  /** `line` counts from 1. */
  | { readonly kind: "bad"; readonly line: number; readonly message: string };

/** A line that is no instruction; caught in `parseProgram`. */
class Unreadable extends Error {}

interface JumpToLabel {
  readonly slot: number;
  readonly label: string;
  readonly line: number;
}

/** Reads a whole program. */
export function parseProgram(text: string): ParsedProgram {
  const insns: Insn[] = [];
  const labels = new Map<string, number>();
  const jumps: JumpToLabel[] = [];
  let line = 0;
  try {
    for (const raw of text.split("\n")) {
      line++;
      let rest = normalise(raw);
      for (
        let label = /^([A-Za-z_.$][\w.$]*):/.exec(rest);
        label;
        label = /^([A-Za-z_.$][\w.$]*):/.exec(rest)
      ) {
        if (labels.has(label[1]!)) throw new Unreadable(`label ${label[1]} is there already`);
        labels.set(label[1]!, insns.length);
        rest = rest.slice(label[0].length);
      }
      if (rest === "") continue;
      const parsed = parseLine(rest);
      if (parsed.label !== undefined) jumps.push({ slot: insns.length, label: parsed.label, line });
      insns.push(...parsed.slots);
    }
    for (const jump of jumps) {
      line = jump.line;
      const target = labels.get(jump.label);
      if (target === undefined) throw new Unreadable(`no label ${jump.label}`);
      const distance = target - jump.slot - 1;
      const insn = insns[jump.slot]!;
      const is32 = insn.opcode === OP_JA32 || (insn.opcode === OP_CALL && insn.src === CALL_LOCAL);
      insns[jump.slot] = is32 ? { ...insn, imm: fits32(distance) } : { ...insn, off: fits16(distance) };
    }
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    return { kind: "bad", line, message: `parse bpf text line ${line}: ${error.message}` };
  }
  return { kind: "parsed", insns };
}

interface ParsedLine {
  readonly slots: readonly Insn[];
  readonly label?: string;
}

/** Spaces only where two words meet; no index, opcode or comment. */
function normalise(raw: string): string {
  return raw
    .replace(/;.*|\/\/.*|\s#.*/, "")
    .replace(/<[\w.$+]+>\s*$/, "")
    .trim()
    .replace(/^\d+:\s*/, "")
    .replace(/^\([0-9a-f]{2}\)\s*/, "")
    .replace(/\s+/g, " ")
    .replace(/ ?([^\w.$ ]) ?/g, "$1");
}

const NUMBER = String.raw`[+-]?(?:0x[0-9a-fA-F]+|\d+)`;
const REG = String.raw`([rw])(\d+)`;
const PLACE = String.raw`\(([us])(8|16|32|64)\*\)\(r(\d+)(${NUMBER})?\)`;

/** Shapes of lines, tried in order: the text without spaces, and what it means. */
const shapes: readonly (readonly [RegExp, (m: RegExpExecArray) => ParsedLine])[] = [
  [/^exit$/, () => one(OP_EXIT, 0, 0, 0, 0)],
  [shape(`\\.8byte (${NUMBER})`), (m) => rawSlot(m[1]!)],
  [/^(gotol?) ?(?:pc)?([+-].+)$/, (m) => goto(m[1]!, number(m[2]!))],
  [/^(gotol?) ([A-Za-z_.$][\w.$]*)$/, (m) => ({ ...goto(m[1]!, 0), label: m[2]! })],
  [shape(`call kernel-function#(\\d+)`), (m) => one(OP_CALL, 0, CALL_PLATFORM, 0, imm32(m[1]!))],
  [/^callx ?r(\d+)$/, (m) => one(OP_CALLX, reg(m[1]!), 0, 0, 0)],
  [shape(`call pc([+-].+)`), (m) => one(OP_CALL, 0, CALL_LOCAL, 0, imm32(m[1]!))],
  [/^call(?: |-?\b)?(?:(\w+)#)?(-?\w+)$/, (m) => call(m[1], m[2]!)],
  [shape(`if ${REG} ?([=!<>&s]+)(?:${REG}|(${NUMBER})) goto ?(?:pc)?([+-]\\w+)`), (m) => branch(m, m[7]!)],
  [
    shape(`if ${REG} ?([=!<>&s]+)(?:${REG}|(${NUMBER})) goto ([A-Za-z_.$][\\w.$]*)`),
    (m) => ({ ...branch(m, "0"), label: m[7]! }),
  ],
  [shape(`lock\\*?${PLACE}([-+|&^])=${REG}`), lockedOp],
  [shape(`${REG}=atomic(?:64)?_fetch_(\\w+)\\(${PLACE},${REG}\\)`), fetchOp],
  [shape(`${REG}=atomic(?:64)?_xchg\\(${PLACE},${REG}\\)`), xchg],
  [shape(`[rw]0=atomic(?:64)?_cmpxchg\\(${PLACE},[rw]0,${REG}\\)`), cmpxchg],
  [shape(`${REG}=xchg(?:32_32|_64)\\(r(\\d+)(${NUMBER}),${REG}\\)`), llvmXchg],
  [shape(`[rw]0=cmpxchg(?:32_32|_64)\\(r(\\d+)(${NUMBER}),([rw])0,${REG}\\)`), llvmCmpxchg],
  [
    shape(`r0=\\*\\(u(8|16|32|64)\\*\\)skb\\[(${NUMBER})\\]`),
    (m) => one(CLASS_LD | MODE_ABS | size(m[1]!), 0, 0, 0, imm32(m[2]!)),
  ],
  [
    shape(`r0=\\*\\(u(8|16|32|64)\\*\\)skb\\[r(\\d+)(${NUMBER})?\\]`),
    (m) => one(CLASS_LD | MODE_IND | size(m[1]!), 0, reg(m[2]!), 0, imm32(m[3] ?? "0")),
  ],
  [shape(`${REG}=\\*${PLACE}`), load],
  [shape(`\\*${PLACE}=(?:${REG}|(${NUMBER}))`), store],
  [shape(`r(\\d+)=map\\[(\\d+)\\]`), (m) => wide(m[1]!, PSEUDO_MAP_FD, imm32(m[2]!), 0)],
  [
    shape(`r(\\d+)=map\\[(\\d+)\\]\\[0\\](${NUMBER})`),
    (m) => wide(m[1]!, PSEUDO_MAP_VALUE, imm32(m[2]!), imm32(m[3]!)),
  ],
  [shape(`r(\\d+)=map\\[idx:(\\d+)\\]`), (m) => wide(m[1]!, PSEUDO_MAP_INDEX, imm32(m[2]!), 0)],
  [
    shape(`r(\\d+)=map\\[idx:(\\d+)\\]\\[0\\](${NUMBER})`),
    (m) => wide(m[1]!, PSEUDO_MAP_INDEX_VALUE, imm32(m[2]!), imm32(m[3]!)),
  ],
  [shape(`r(\\d+)=subprog\\[(${NUMBER})\\]`), (m) => wide(m[1]!, PSEUDO_FUNCTION, imm32(m[2]!), 0)],
  [shape(`r(\\d+)=var\\[(\\d+)\\]`), (m) => wide(m[1]!, PSEUDO_VARIABLE, imm32(m[2]!), 0)],
  [shape(`r(\\d+)=(${NUMBER}) ?ll`), (m) => wideNumber(m[1]!, m[2]!)],
  [shape(`${REG}=(le|be|bswap)(16|32|64) ${REG}`), endian],
  [shape(`${REG}=-${REG}`), negate],
  [shape(`${REG}=\\(s(8|16|32)\\)${REG}`), extend],
  [shape(`${REG} ?(s(?=[/%>]))?([-+*/%|&^]|<<|>>|)=(?:${REG}|(${NUMBER}))`), arithmetic],
];

function shape(source: string): RegExp {
  return new RegExp(`^${source}$`);
}

function parseLine(text: string): ParsedLine {
  for (const [pattern, read] of shapes) {
    const match = pattern.exec(text);
    if (match) return read(match);
  }
  throw new Unreadable(`"${text}" is no instruction`);
}

function one(opcode: number, dst: number, src: number, off: number, imm: number): ParsedLine {
  return { slots: [{ opcode, dst, src, off, imm }] };
}

function rawSlot(text: string): ParsedLine {
  const value = BigInt(text);
  if (value < 0n || value >= 1n << 64n) throw new Unreadable(`${text} does not fit 64 bits`);
  const part = (from: number, bits: number) => Number(BigInt.asUintN(bits, value >> BigInt(from)));
  return one(part(0, 8), part(8, 4), part(12, 4), (part(16, 16) << 16) >> 16, part(32, 32) | 0);
}

function goto(word: string, distance: number): ParsedLine {
  return word === "gotol" ? one(OP_JA32, 0, 0, 0, fits32(distance)) : one(OP_JA, 0, 0, fits16(distance), 0);
}

function call(name: string | undefined, last: string): ParsedLine {
  if (/^-?(0x[0-9a-fA-F]+|\d+)$/.test(last)) return one(OP_CALL, 0, CALL_HELPER, 0, imm32(last));
  const byName = findHelperNumber(name ?? last);
  if (byName === undefined) throw new Unreadable(`no helper ${last}`);
  return one(OP_CALL, 0, CALL_HELPER, 0, byName);
}

function branch(m: RegExpExecArray, distance: string): ParsedLine {
  const [, letter, dst, symbol, srcLetter, src, imm] = m;
  const op = jumpSymbols.numberOf.get(symbol!);
  if (op === undefined) throw new Unreadable(`no condition ${symbol}`);
  const cls = letter === "w" ? CLASS_JMP32 : CLASS_JMP;
  sameWidth(letter, srcLetter);
  const off = fits16(number(distance));
  if (src !== undefined) return one(cls | op | SRC_X, reg(dst!), reg(src), off, 0);
  const opcode = cls | op | SRC_K;
  if (!isConditionalJump(opcode)) throw new Unreadable(`no condition ${symbol}`);
  return one(opcode, reg(dst!), 0, off, imm32(imm!));
}

function lockedOp(m: RegExpExecArray): ParsedLine {
  const [, , bits, base, off, symbol, , src] = m;
  const op = atomicSymbols.numberOf.get(symbol!);
  if (op === undefined) throw new Unreadable(`no atomic operation ${symbol}=`);
  return atomic(bits!, base!, off, src!, op);
}

function fetchOp(m: RegExpExecArray): ParsedLine {
  const [, , dst, name, , bits, base, off, , src] = m;
  const op = atomicNames.numberOf.get(name!);
  if (op === undefined) throw new Unreadable(`no atomic operation fetch_${name}`);
  return atomic(bits!, base!, off, same(dst!, src!), op | ATOMIC_FETCH);
}

function xchg(m: RegExpExecArray): ParsedLine {
  const [, , dst, , bits, base, off, , src] = m;
  return atomic(bits!, base!, off, same(dst!, src!), ATOMIC_XCHG);
}

function cmpxchg(m: RegExpExecArray): ParsedLine {
  const [, , bits, base, off, , src] = m;
  return atomic(bits!, base!, off, src!, ATOMIC_CMPXCHG);
}

function llvmXchg(m: RegExpExecArray): ParsedLine {
  const [, letter, dst, base, off, , src] = m;
  return atomic(letter === "w" ? "32" : "64", base!, off, same(dst!, src!), ATOMIC_XCHG);
}

function llvmCmpxchg(m: RegExpExecArray): ParsedLine {
  const [, base, off, letter, , src] = m;
  return atomic(letter === "w" ? "32" : "64", base!, off, src!, ATOMIC_CMPXCHG);
}

function atomic(bits: string, base: string, off: string | undefined, src: string, imm: number): ParsedLine {
  if (bits !== "32" && bits !== "64") throw new Unreadable(`no atomic access of ${bits} bits`);
  return one(CLASS_STX | MODE_ATOMIC | size(bits), reg(base), reg(src), offset(off), imm);
}

function load(m: RegExpExecArray): ParsedLine {
  const [, , dst, sign, bits, base, off] = m;
  if (sign === "s" && bits === "64") throw new Unreadable("no sign-extending load of 64 bits");
  const mode = sign === "s" ? MODE_MEMSX : MODE_MEM;
  return one(CLASS_LDX | mode | size(bits!), reg(dst!), reg(base!), offset(off), 0);
}

function store(m: RegExpExecArray): ParsedLine {
  const [, , bits, base, off, , src, imm] = m;
  if (src !== undefined) return one(CLASS_STX | MODE_MEM | size(bits!), reg(base!), reg(src), offset(off), 0);
  return one(CLASS_ST | MODE_MEM | size(bits!), reg(base!), 0, offset(off), imm32(imm!));
}

function wide(dst: string, src: number, low: number, high: number): ParsedLine {
  return {
    slots: [
      { opcode: OP_LDIMM64, dst: reg(dst), src, off: 0, imm: low },
      { opcode: 0, dst: 0, src: 0, off: 0, imm: high },
    ],
  };
}

function wideNumber(dst: string, text: string): ParsedLine {
  const value = text.startsWith("-") ? -BigInt(text.slice(1)) : BigInt(text.replace(/^\+/, ""));
  if (value >= 1n << 64n || value < -(1n << 63n)) throw new Unreadable(`${text} does not fit 64 bits`);
  const half = (from: bigint) => Number(BigInt.asIntN(32, value >> from));
  return wide(dst, PSEUDO_NONE, half(0n), half(32n));
}

function endian(m: RegExpExecArray): ParsedLine {
  const [, , dst, name, bits, , src] = m;
  const opcode = name === "bswap" ? CLASS_ALU64 : name === "be" ? CLASS_ALU | SRC_X : CLASS_ALU | SRC_K;
  return one(opcode | ALU_END, reg(same(dst!, src!)), 0, 0, Number(bits));
}

function negate(m: RegExpExecArray): ParsedLine {
  const [, letter, dst, srcLetter, src] = m;
  sameWidth(letter, srcLetter);
  return one(aluClass(letter) | ALU_NEG, reg(same(dst!, src!)), 0, 0, 0);
}

function extend(m: RegExpExecArray): ParsedLine {
  const [, letter, dst, bits, srcLetter, src] = m;
  sameWidth(letter, srcLetter);
  if (letter === "w" && bits === "32") throw new Unreadable("no sign extension from 32 to 32 bits");
  return one(aluClass(letter) | ALU_MOV | SRC_X, reg(dst!), reg(src!), Number(bits), 0);
}

function arithmetic(m: RegExpExecArray): ParsedLine {
  const [, letter, dst, s = "", symbol = "", srcLetter, src, imm] = m;
  sameWidth(letter, srcLetter);
  const isSigned = s !== "" && symbol !== ">>";
  const op = symbol === "" ? ALU_MOV : aluSymbols.numberOf.get(isSigned ? symbol : s + symbol);
  if (op === undefined || (isSigned && op !== ALU_DIV && op !== ALU_MOD)) {
    throw new Unreadable(`no operator ${s}${symbol}=`);
  }
  const off = isSigned ? 1 : 0;
  const cls = aluClass(letter);
  if (src !== undefined) return one(cls | op | SRC_X, reg(dst!), reg(src), off, 0);
  return one(cls | op | SRC_K, reg(dst!), 0, off, imm32(imm!));
}

function aluClass(letter: string | undefined): number {
  return letter === "w" ? CLASS_ALU : CLASS_ALU64;
}

function sameWidth(a: string | undefined, b: string | undefined): void {
  if (b !== undefined && a !== b) throw new Unreadable("mixes a whole register and the half of one");
}

function same(a: string, b: string): string {
  if (a !== b) throw new Unreadable(`both registers must be the same, not ${a} and ${b}`);
  return a;
}

function size(bits: string): number {
  const found = sizeNames.numberOf.get(bits);
  return found ?? SIZE_DW;
}

function reg(text: string): number {
  const value = Number(text);
  if (value > 10) throw new Unreadable(`no register r${text}`);
  return value;
}

function number(text: string): number {
  const body = text.replace(/^[+-]/, "");
  if (!/^(0x[0-9a-fA-F]+|\d+)$/.test(body)) throw new Unreadable(`${text} is no number`);
  return text.startsWith("-") ? -Number(body) : Number(body);
}

function offset(text: string | undefined): number {
  return text === undefined ? 0 : fits16(number(text));
}

function imm32(text: string): number {
  const value = number(text);
  if (value > 0x7fffffff && value <= 0xffffffff) return value | 0;
  return fits32(value);
}

function fits16(value: number): number {
  if (value < -0x8000 || value > 0x7fff) throw new Unreadable(`${value} does not fit 16 bits`);
  return value + 0;
}

function fits32(value: number): number {
  if (value < -0x80000000 || value > 0x7fffffff) throw new Unreadable(`${value} does not fit 32 bits`);
  return value + 0;
}

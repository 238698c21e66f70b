/**
 * bpf_snprintf for one format, which is known: a sequence of calls that put texts, numbers and strings behind each
 * other.
 *
 * While they print, rdi is where the next character goes and r8 the end of the memory, where the NUL must still fit: a
 * character at or beyond r8 is only counted, so that the result is the full length. Arguments are copied first, because
 * the memory that is printed into may hold them.
 */
import type { Assembler } from "../../../x86/assembler.ts";
import {
  R8,
  R10,
  R11,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  type Reg,
  RSI,
  RSP,
  regSet,
} from "../../../x86/registers.ts";
import { EINVAL } from "../../error-numbers.ts";
import {
  type Field,
  FORMAT_STRING_BYTES,
  type FormatPart,
  type FormatSpec,
  formatSpecs,
  MAX_FORMAT_ARGS,
  parseFormat,
} from "../../print-format.ts";
import type { LinkEnv } from "../link-env.ts";
import { emitFrame } from "../memory-moves.ts";
import type { Routine, RoutineSet } from "./routine.ts";
import { probeReadUser, probeReadUserStr, READ_CLOBBERS } from "./user-read-routines.ts";

/** Bits of r10 for `putNumber` and `putText`. */
const IS_HEX = 1;
const IS_UPPER = 2;
const IS_SIGNED = 4;
const PADS_ZERO = 8;
const IS_LEFT = 16;
const SHOWS_PLUS = 32;
const SHOWS_SPACE = 64;
const HAS_PREFIX = 128;

const PUT_CLOBBERS = regSet(RAX, RCX, RDX, RSI, RDI, R10, R11);

/** The routine's frame; the text of one string or address is last. */
const local = { start: 0, size: 8, cursor: 16, end: 24, args: 32, text: 32 + 8 * MAX_FORMAT_ARGS };

/** rdi = memory or 0, rsi = its size, rcx = arguments, r8 = bytes of them; rax = length with the NUL, or -EINVAL. */
export function snprintf(routines: RoutineSet, env: LinkEnv, format: Uint8Array): Routine {
  const name = [...format].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return routines.get(`snprintf ${name}`, () => {
    const parts = parseFormat(format);
    const specs = parts === undefined ? [] : formatSpecs(parts);
    if (parts === undefined || specs.length > MAX_FORMAT_ARGS) return invalidFormat;
    const put = {
      number: specs.some(({ kind }) => kind === "number" || kind === "ip") ? putNumber(routines) : undefined,
      text: parts.some(({ kind }) => kind !== "number") ? putText(routines) : undefined,
      string: specs.some(({ kind }) => kind === "string") ? probeReadUserStr(routines, env) : undefined,
      bytes: specs.some(({ kind }) => kind === "ip") ? probeReadUser(routines, env) : undefined,
    };
    const textBytes = put.string === undefined ? 16 : FORMAT_STRING_BYTES;
    const frameBytes = local.text + textBytes;
    return {
      args: [1, 2, 4, 5],
      clobbers: READ_CLOBBERS,
      stackBytes: frameBytes,
      calls: Object.values(put).filter((routine) => routine !== undefined),
      emit: (a) => {
        const literals: { readonly label: ReturnType<Assembler["label"]>; readonly bytes: Uint8Array }[] = [];
        emitFrame(a, frameBytes, (leave) => {
          const invalid = a.label("invalid");
          a.testImm(R8, 7, 8);
          a.jcc("ne", invalid);
          a.cmpImm(R8, 8 * MAX_FORMAT_ARGS);
          a.jcc("a", invalid);
          a.cmpImm(R8, 8 * specs.length);
          a.jcc("b", invalid);
          a.mov({ base: RSP, disp: local.start }, RDI);
          a.mov({ base: RSP, disp: local.size }, RSI);
          for (const i of specs.keys()) {
            a.mov(RAX, { base: RCX, disp: 8 * i });
            a.mov({ base: RSP, disp: local.args + 8 * i }, RAX);
          }
          const hasEnd = a.label("end");
          a.lea(R8, { base: RDI, index: RSI });
          a.test(RSI, RSI);
          a.jcc("e", hasEnd);
          a.dec(R8);
          a.bind(hasEnd);
          let index = 0;
          for (const part of parts) {
            if (part.kind === "text") {
              const label = a.label("literal");
              literals.push({ label, bytes: part.bytes });
              a.lea(RSI, { ripTo: label });
              a.movImm(RCX, part.bytes.length);
              emitPutBytes(a);
            } else emitSpec(a, put, part, index++);
          }
          // The NUL, where it fits or in place of the last character.
          const terminated = a.label("terminated");
          a.mov(RAX, RDI);
          a.sub(RAX, { base: RSP, disp: local.start });
          a.inc(RAX);
          a.cmpImm({ base: RSP, disp: local.size }, 0);
          a.jcc("e", terminated);
          a.cmp(RDI, R8);
          a.cmov("a", RDI, R8);
          a.movImm({ base: RDI }, 0, 8);
          a.bind(terminated);
          leave();
          a.bind(invalid);
          a.movImm(RAX, EINVAL);
          leave();
        });
        for (const { label, bytes } of literals) {
          a.bind(label);
          a.bytes(bytes);
        }
      },
    };
  });
}

/** For a format that the verifier refuses. */
const invalidFormat = {
  args: [],
  clobbers: regSet(RAX),
  stackBytes: 0,
  emit: (a: Assembler) => {
    a.movImm(RAX, EINVAL);
    a.ret();
  },
};

interface PutRoutines {
  readonly number: Routine | undefined;
  readonly text: Routine | undefined;
  readonly string: Routine | undefined;
  readonly bytes: Routine | undefined;
}

function emitSpec(a: Assembler, put: PutRoutines, spec: FormatSpec, index: number): void {
  const arg = { base: RSP, disp: local.args + 8 * index };
  const text = { base: RSP, disp: local.text };
  switch (spec.kind) {
    case "number":
      if (spec.bits === 64) a.mov(RAX, arg);
      else if (spec.isSigned) a.movsx(RAX, arg, 32);
      else a.mov(RAX, arg, 32);
      emitPutNumber(a, put, numberFlags(spec), spec.field.width);
      return;
    case "char":
      a.lea(RSI, arg);
      a.movImm(RCX, 1);
      emitPutText(a, put, spec.field);
      return;
    case "string": {
      const found = a.label("string");
      emitRead(a, put.string!, arg, FORMAT_STRING_BYTES);
      // rax = length with the NUL; nothing is printed of what cannot be read
      a.lea(RCX, { base: RAX, disp: -1 });
      a.test(RAX, RAX);
      a.jcc("g", found);
      a.zero(RCX);
      a.bind(found);
      a.lea(RSI, text);
      emitPutText(a, put, spec.field);
      return;
    }
    case "ip":
      emitRead(a, put.bytes!, arg, spec.lenBytes);
      emitAddress(a, put, spec);
      return;
    default:
      spec satisfies never;
  }
}

/** Copies what an argument points to into the text of the frame. */
function emitRead(a: Assembler, read: Routine, arg: { base: Reg; disp: number }, lenBytes: number): void {
  a.mov({ base: RSP, disp: local.cursor }, RDI);
  a.mov({ base: RSP, disp: local.end }, R8);
  a.lea(RDI, { base: RSP, disp: local.text });
  a.movImm(RSI, lenBytes);
  a.mov(RDX, arg);
  a.call(read.label);
  a.mov(RDI, { base: RSP, disp: local.cursor });
  a.mov(R8, { base: RSP, disp: local.end });
}

function emitAddress(a: Assembler, put: PutRoutines, spec: Extract<FormatSpec, { kind: "ip" }>): void {
  const isV4 = spec.lenBytes === 4;
  for (let i = 0; i < spec.lenBytes; i++) {
    const separates = i > 0 && (isV4 || (spec.isSeparated && i % 2 === 0));
    if (separates) emitPutChar(a, isV4 ? 0x2e : 0x3a);
    a.movzx(RAX, { base: RSP, disp: local.text + i }, 8);
    if (isV4) emitPutNumber(a, put, PADS_ZERO, spec.isSeparated ? 0 : 3);
    else emitPutNumber(a, put, PADS_ZERO | IS_HEX, 2);
  }
}

function numberFlags(spec: Extract<FormatPart, { kind: "number" }>): number {
  const { field } = spec;
  return (
    (spec.base === 16 ? IS_HEX : 0) |
    (spec.isUpper ? IS_UPPER : 0) |
    (spec.isSigned ? IS_SIGNED : 0) |
    (spec.hasPrefix ? HAS_PREFIX : 0) |
    (field.padsZero ? PADS_ZERO : 0) |
    (field.isLeft ? IS_LEFT : 0) |
    (field.sign === "+" ? SHOWS_PLUS : 0) |
    (field.sign === " " ? SHOWS_SPACE : 0)
  );
}

function emitPutNumber(a: Assembler, put: PutRoutines, flags: number, width: number): void {
  a.movImm(R10, flags);
  a.movImm(R11, width);
  a.call(put.number!.label);
}

function emitPutText(a: Assembler, put: PutRoutines, field: Field): void {
  a.movImm(R10, field.isLeft ? IS_LEFT : 0);
  a.movImm(R11, field.width);
  a.call(put.text!.label);
}

/** rsi = characters, rcx = how many, r10 = flags, r11 = width. */
function putText(routines: RoutineSet): Routine {
  return routines.get("put text", () => ({
    args: [],
    clobbers: PUT_CLOBBERS,
    stackBytes: 0,
    emit: (a) => {
      const [before, isLeft] = [a.label("pad"), a.label("left")];
      a.sub(R11, RCX);
      a.jcc("ae", before);
      a.zero(R11);
      a.bind(before);
      a.testImm(R10, IS_LEFT, 32);
      a.jcc("ne", isLeft);
      emitFill(a, 0x20);
      a.bind(isLeft);
      emitPutBytes(a);
      emitFill(a, 0x20);
      a.ret();
    },
  }));
}

/** rax = number, r10 = flags, r11 = width. */
function putNumber(routines: RoutineSet): Routine {
  const DIGITS_BYTES = 24;
  return routines.get("put number", () => ({
    args: [],
    clobbers: PUT_CLOBBERS,
    stackBytes: 16 + DIGITS_BYTES,
    emit: (a) => {
      const [sign, letters] = [RBP, RBX];
      a.push(RBX);
      a.push(RBP);
      a.subImm(RSP, DIGITS_BYTES);
      emitSign(a, sign);
      a.lea(RSI, { base: RSP, disp: DIGITS_BYTES });
      emitDigits(a, letters);
      const length = letters;
      a.lea(length, { base: RSP, disp: DIGITS_BYTES });
      a.sub(length, RSI);
      // r11 = what is left of the width
      const [padded, noSign, noSignShown, noZeros, isRight] = [
        a.label("pad"),
        a.label("no sign"),
        a.label("no sign shown"),
        a.label("no zeros"),
        a.label("right"),
      ];
      a.sub(R11, length);
      a.test(sign, sign, 32);
      a.jcc("e", noSign);
      a.dec(R11);
      a.bind(noSign);
      a.test(R11, R11);
      a.jcc("ns", padded);
      a.zero(R11);
      a.bind(padded);
      a.testImm(R10, PADS_ZERO | IS_LEFT, 32);
      a.jcc("ne", isRight);
      emitFill(a, 0x20);
      a.bind(isRight);
      a.test(sign, sign, 32);
      a.jcc("e", noSignShown);
      a.mov(RCX, sign, 32);
      emitPutChar(a);
      a.bind(noSignShown);
      a.testImm(R10, IS_LEFT, 32);
      a.jcc("ne", noZeros);
      emitFill(a, 0x30);
      a.bind(noZeros);
      a.mov(RCX, length);
      emitPutBytes(a);
      emitFill(a, 0x20);
      a.addImm(RSP, DIGITS_BYTES);
      a.pop(RBP);
      a.pop(RBX);
      a.ret();
    },
  }));
}

/** The character before the number or 0; rax becomes its absolute value. */
function emitSign(a: Assembler, sign: Reg): void {
  const [positive, known] = [a.label("positive"), a.label("sign")];
  a.zero(sign);
  a.testImm(R10, IS_SIGNED, 32);
  a.jcc("e", known);
  a.test(RAX, RAX);
  a.jcc("ns", positive);
  a.neg(RAX);
  a.movImm(sign, 0x2d);
  a.jmp(known);
  a.bind(positive);
  for (const [flag, char] of [
    [SHOWS_PLUS, 0x2b],
    [SHOWS_SPACE, 0x20],
  ] as const) {
    const isNot = a.label("no such flag");
    a.testImm(R10, flag, 32);
    a.jcc("e", isNot);
    a.movImm(sign, char);
    a.jmp(known);
    a.bind(isNot);
  }
  a.bind(known);
}

/** The digits of rax before rsi, which then is where they begin. `temp`, rax, rcx, rdx change. */
function emitDigits(a: Assembler, temp: Reg): void {
  const [decimal, done] = [a.label("decimal"), a.label("digits")];
  a.testImm(R10, IS_HEX, 32);
  a.jcc("e", decimal);
  // What a digit above 9 gets more to be a letter.
  const lower = a.label("lower case");
  a.movImm(temp, 0x61 - 0x3a);
  a.testImm(R10, IS_UPPER, 32);
  a.jcc("e", lower);
  a.movImm(temp, 0x41 - 0x3a);
  a.bind(lower);
  const nextHex = a.here("hex digit");
  const isDigit = a.label("0 to 9");
  a.mov(RCX, RAX, 32);
  a.andImm(RCX, 15, 32);
  a.cmpImm(RCX, 9, 32);
  a.jcc("be", isDigit);
  a.add(RCX, temp, 32);
  a.bind(isDigit);
  a.addImm(RCX, 0x30, 32);
  a.dec(RSI);
  a.mov({ base: RSI }, RCX, 8);
  a.shr(RAX, 4);
  a.jcc("ne", nextHex);
  a.testImm(R10, HAS_PREFIX, 32);
  a.jcc("e", done);
  a.subImm(RSI, 2);
  a.movImm({ base: RSI }, 0x7830, 16);
  a.jmp(done);
  a.bind(decimal);
  a.movImm(RCX, 10);
  const nextDecimal = a.here("digit");
  a.zero(RDX);
  a.div(RCX);
  a.addImm(RDX, 0x30, 32);
  a.dec(RSI);
  a.mov({ base: RSI }, RDX, 8);
  a.test(RAX, RAX);
  a.jcc("ne", nextDecimal);
  a.bind(done);
}

/** One character: a known one, or the one in cl. */
function emitPutChar(a: Assembler, char?: number): void {
  const full = a.label("full");
  a.cmp(RDI, R8);
  a.jcc("ae", full);
  if (char === undefined) a.mov({ base: RDI }, RCX, 8);
  else a.movImm({ base: RDI }, char, 8);
  a.bind(full);
  a.inc(RDI);
}

/** rcx characters from rsi; al changes too, and rcx and rsi. */
function emitPutBytes(a: Assembler): void {
  const [next, full, done] = [a.here("put"), a.label("full"), a.label("done")];
  a.test(RCX, RCX);
  a.jcc("e", done);
  a.cmp(RDI, R8);
  a.jcc("ae", full);
  a.movzx(RAX, { base: RSI }, 8);
  a.mov({ base: RDI }, RAX, 8);
  a.inc(RSI);
  a.inc(RDI);
  a.dec(RCX);
  a.jmp(next);
  a.bind(full);
  a.add(RDI, RCX);
  a.bind(done);
}

/** r11 times a character; r11 becomes 0. */
function emitFill(a: Assembler, char: number): void {
  const [next, full, done] = [a.here("fill"), a.label("full"), a.label("done")];
  a.test(R11, R11);
  a.jcc("e", done);
  a.cmp(RDI, R8);
  a.jcc("ae", full);
  a.movImm({ base: RDI }, char, 8);
  a.inc(RDI);
  a.dec(R11);
  a.jmp(next);
  a.bind(full);
  a.add(RDI, R11);
  a.zero(R11);
  a.bind(done);
}

/** Texts that programs compare and read numbers from, with the results of the kernel's helpers. */
import type { Assembler } from "../../../x86/assembler.ts";
import { R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import { EINVAL, ERANGE } from "../../error-numbers.ts";
import { MAX_NUMBER_CHARS, NUMBER_BASE_MASK } from "../../text-number.ts";
import { emitFrame } from "../memory-moves.ts";
import type { Routine, RoutineSet } from "./routine.ts";

/**
 * rdi = text, rsi = its size; rax = -1, 0 or 1 beside the known text. That lies behind the code: memory that the
 * process can write may have lost its NUL.
 */
export function strncmp(routines: RoutineSet, text: Uint8Array): Routine {
  const name = [...text].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return routines.get(`strncmp ${name}`, () => ({
    args: [1, 2],
    clobbers: regSet(RAX, RCX, RDX, RDI, RSI),
    stackBytes: 0,
    emit: (a) => {
      const [next, differ, same, known] = [
        a.label("next"),
        a.label("differ"),
        a.label("same"),
        a.label("known text"),
      ];
      a.lea(RCX, { ripTo: known });
      a.bind(next);
      a.test(RSI, RSI);
      a.jcc("e", same);
      a.movzx(RAX, { base: RDI }, 8);
      a.movzx(RDX, { base: RCX }, 8);
      a.sub(RAX, RDX, 32);
      a.jcc("ne", differ);
      a.inc(RDI);
      a.inc(RCX);
      a.dec(RSI);
      a.test(RDX, RDX, 32);
      a.jcc("ne", next);
      a.bind(same);
      a.zero(RAX);
      a.ret();
      a.bind(differ);
      // -1 or 1 from the sign of the difference.
      a.sar(RAX, 31, 32);
      a.orImm(RAX, 1, 32);
      a.movsx(RAX, RAX, 32);
      a.ret();
      a.bind(known);
      a.bytes([...text, 0]);
    },
  }));
}

/**
 * rdi = text, rsi = its size, rdx = base or 0, rcx = where the number goes; rax = characters read, or -EINVAL or -ERANGE
 * and the number is 0. `readNumber` in text-number.ts has the rules.
 */
export function stringToNumber(routines: RoutineSet, isSigned: boolean): Routine {
  const [out, digits, frameBytes] = [0, 8, 16];
  /** In r10. */
  const [negative, tooLarge] = [1, 2];
  return routines.get(isSigned ? "strtol" : "strtoul", () => ({
    args: [1, 2, 3, 4],
    clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11),
    stackBytes: frameBytes,
    emit: (a) =>
      emitFrame(a, frameBytes, (leave) => {
        const [invalid, range, parsed, store] = [
          a.label("invalid"),
          a.label("range"),
          a.label("parsed"),
          a.label("store"),
        ];
        a.mov({ base: RSP, disp: out }, RCX);
        a.movImm({ base: RCX }, 0);
        emitBase(a, invalid);
        // rsi = the beginning, rdi = the next character, r8 = the end
        a.lea(R8, { base: RDI, index: RSI });
        a.mov(RSI, RDI);
        emitSpaces(a);
        a.zero(R10);
        a.cmp(RDI, R8);
        a.jcc("ae", invalid);
        const unsigned = a.label("no sign");
        a.cmpImm({ base: RDI }, 0x2d, 8);
        a.jcc("ne", unsigned);
        a.movImm(R10, negative);
        a.inc(RDI);
        a.cmp(RDI, R8);
        a.jcc("ae", invalid);
        a.bind(unsigned);
        a.lea(RAX, { base: RDI, disp: MAX_NUMBER_CHARS });
        a.cmp(R8, RAX);
        a.cmov("a", R8, RAX);
        emitRadix(a);

        a.mov({ base: RSP, disp: digits }, RDI);
        a.zero(R9);
        const nextDigit = a.here("digit");
        const [isDigit, noCarry, noSumCarry] = [a.label("0 to 9"), a.label("fits"), a.label("sum fits")];
        a.cmp(RDI, R8);
        a.jcc("ae", parsed);
        a.movzx(RAX, { base: RDI }, 8);
        a.lea(RCX, { base: RAX, disp: -0x30 }, 32);
        a.cmpImm(RCX, 9, 32);
        a.jcc("be", isDigit);
        a.orImm(RAX, 0x20, 32);
        a.lea(RCX, { base: RAX, disp: -0x61 }, 32);
        a.cmpImm(RCX, 5, 32);
        a.jcc("a", parsed);
        a.addImm(RCX, 10, 32);
        a.bind(isDigit);
        a.cmp(RCX, R11);
        a.jcc("ae", parsed);
        a.mov(RAX, R9);
        a.mul(R11);
        a.jcc("ae", noCarry);
        a.orImm(R10, tooLarge, 32);
        a.bind(noCarry);
        a.add(RAX, RCX);
        a.jcc("ae", noSumCarry);
        a.orImm(R10, tooLarge, 32);
        a.bind(noSumCarry);
        a.mov(R9, RAX);
        a.inc(RDI);
        a.jmp(nextDigit);

        a.bind(parsed);
        a.testImm(R10, tooLarge, 32);
        a.jcc("ne", range);
        a.cmp(RDI, { base: RSP, disp: digits });
        a.jcc("e", invalid);
        a.testImm(R10, negative, 32);
        if (isSigned) {
          const positive = a.label("positive");
          a.jcc("e", positive);
          a.neg(R9);
          a.test(R9, R9);
          a.jcc("le", store);
          a.jmp(range);
          a.bind(positive);
          a.test(R9, R9);
          a.jcc("s", range);
        } else a.jcc("ne", invalid);
        a.bind(store);
        a.mov(RCX, { base: RSP, disp: out });
        a.mov({ base: RCX }, R9);
        a.mov(RAX, RDI);
        a.sub(RAX, RSI);
        leave();
        a.bind(range);
        a.movImm(RAX, ERANGE);
        leave();
        a.bind(invalid);
        a.movImm(RAX, EINVAL);
        leave();
      }),
  }));
}

/** r11 = the base in rdx: 0, 8, 10 or 16. */
function emitBase(a: Assembler, invalid: ReturnType<Assembler["label"]>): void {
  const isBase = a.label("base");
  a.mov(R11, RDX);
  a.cmpImm(R11, NUMBER_BASE_MASK);
  a.jcc("a", invalid);
  for (const base of [0, 8, 10, 16]) {
    a.cmpImm(R11, base, 32);
    if (base === 16) a.jcc("ne", invalid);
    else a.jcc("e", isBase);
  }
  a.bind(isBase);
}

/** Lets rdi step over white space, up to r8. */
function emitSpaces(a: Assembler): void {
  const [next, space, done] = [a.here("space"), a.label("is space"), a.label("no space")];
  a.cmp(RDI, R8);
  a.jcc("ae", done);
  a.movzx(RAX, { base: RDI }, 8);
  // Tab to carriage return, the space, and the one of Latin-1 that does not break.
  a.lea(RCX, { base: RAX, disp: -9 }, 32);
  a.cmpImm(RCX, 4, 32);
  a.jcc("be", space);
  a.andImm(RAX, 0x7f, 32);
  a.cmpImm(RAX, 0x20, 32);
  a.jcc("ne", done);
  a.bind(space);
  a.inc(RDI);
  a.jmp(next);
  a.bind(done);
}

/** The base in r11 where it is 0, by the prefix; steps over `0x`. */
function emitRadix(a: Assembler): void {
  const [done, octal, decimal, hex, skip, withoutX] = [
    a.label("radix"),
    a.label("octal"),
    a.label("decimal"),
    a.label("hex"),
    a.label("skip 0x"),
    a.label("without x"),
  ];
  a.cmpImm({ base: RDI }, 0x30, 8);
  a.jcc("ne", decimal);
  a.lea(RAX, { base: RDI, disp: 1 });
  a.cmp(RAX, R8);
  a.jcc("ae", withoutX);
  a.movzx(RAX, { base: RDI, disp: 1 }, 8);
  a.orImm(RAX, 0x20, 32);
  a.cmpImm(RAX, 0x78, 32);
  a.jcc("ne", withoutX);
  a.cmpImm(R11, 16, 32);
  a.jcc("e", skip);
  a.test(R11, R11);
  a.jcc("ne", done);
  // Without a base a digit has to follow the x.
  a.lea(RAX, { base: RDI, disp: 2 });
  a.cmp(RAX, R8);
  a.jcc("ae", octal);
  a.movzx(RAX, { base: RDI, disp: 2 }, 8);
  a.lea(RCX, { base: RAX, disp: -0x30 }, 32);
  a.cmpImm(RCX, 9, 32);
  a.jcc("be", hex);
  a.orImm(RAX, 0x20, 32);
  a.lea(RCX, { base: RAX, disp: -0x61 }, 32);
  a.cmpImm(RCX, 5, 32);
  a.jcc("a", octal);
  a.bind(hex);
  a.movImm(R11, 16);
  a.bind(skip);
  a.addImm(RDI, 2);
  a.jmp(done);
  a.bind(withoutX);
  a.test(R11, R11);
  a.jcc("ne", done);
  a.bind(octal);
  a.movImm(R11, 8);
  a.jmp(done);
  a.bind(decimal);
  a.test(R11, R11);
  a.jcc("ne", done);
  a.movImm(R11, 10);
  a.bind(done);
}

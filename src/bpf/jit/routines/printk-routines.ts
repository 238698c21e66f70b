/**
 * bpf_trace_printk and bpf_trace_vprintk: a record of what is to be printed (printk.ts has its layout) in the ring
 * buffer of the bundle.
 *
 * The format is only known at the hit, and is not judged then: it is copied, and looked through for arguments whose
 * memory has to be read now. Both the format and the record may be written by the process at the same time; every
 * loop is bounded by a number in a register or in the own stack.
 */
import type { Assembler, Label } from "../../../x86/assembler.ts";
import {
  R8,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  type Reg,
  type RegSet,
  RSI,
  RSP,
  regSet,
} from "../../../x86/registers.ts";
import { EBUSY, EINVAL } from "../../error-numbers.ts";
import { HELPER_RINGBUF_RESERVE, MAX_CPU } from "../../helpers.ts";
import { CELL_DISCARDED, CELL_FLAGS, CELL_LENGTH, CELL_RECORD, CELL_STATE } from "../../maps/ring-layout.ts";
import { FORMAT_STRING_BYTES, MAX_FORMAT_ARGS } from "../../print-format.ts";
import {
  PRINTK_ARG_COUNT,
  PRINTK_ARGS,
  PRINTK_BODY,
  PRINTK_CPU,
  PRINTK_FORMAT_BYTES,
  PRINTK_LENGTH_BYTES,
  PRINTK_PID,
  PRINTK_TID,
  PRINTK_TIME,
} from "../../printk.ts";
import { emitCpuWord } from "../cpu-number.ts";
import { emitAddress, emitFrame } from "../memory-moves.ts";
import { clockNs } from "./clock-routines.ts";
import type { RoutineContext } from "./helper-call.ts";
import { mapRoutineFor } from "./map-routines.ts";
import type { Routine } from "./routine.ts";
import { fillPidCache, pidTgid } from "./task-routines.ts";
import { probeReadUser, probeReadUserStr, READ_CLOBBERS } from "./user-read-routines.ts";

/** A cell's header lies right before its record. */
const STATE = CELL_STATE - CELL_RECORD;
const LENGTH = CELL_LENGTH - CELL_RECORD;
const FLAGS = CELL_FLAGS - CELL_RECORD;
/** The least that a record needs: a ring of smaller ones takes nothing. */
const LEAST_RECORD_BYTES = PRINTK_BODY + 8 * MAX_FORMAT_ARGS;

/** rdi = format, rsi = its size with the NUL, rdx, rcx, r8 = arguments; rax as `printk`. */
export function tracePrintk(context: RoutineContext): Routine {
  return context.routines.get("trace printk", () => {
    const print = printk(context);
    const frameBytes = 8 * PRINTK_ARGS;
    return {
      args: [1, 2, 3, 4, 5],
      clobbers: regSet(RAX, RCX, RDX),
      stackBytes: frameBytes,
      calls: [print],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          for (const [i, reg] of [RDX, RCX, R8].entries()) a.mov({ base: RSP, disp: 8 * i }, reg);
          a.mov(RDX, RSP);
          a.movImm(RCX, PRINTK_ARGS);
          a.call(print.label);
          leave();
        }),
    };
  });
}

/** rdi = format, rsi = its size with the NUL, rdx = arguments, rcx = bytes of them; rax as `printk`. */
export function traceVprintk(context: RoutineContext): Routine {
  return context.routines.get("trace vprintk", () => {
    const print = printk(context);
    return {
      args: [1, 2, 3, 4],
      clobbers: regSet(RAX, RCX),
      stackBytes: 0,
      calls: [print],
      emit: (a) => {
        const invalid = a.label("invalid");
        a.testImm(RCX, 7, 8);
        a.jcc("ne", invalid);
        a.cmpImm(RCX, 8 * MAX_FORMAT_ARGS);
        a.jcc("a", invalid);
        a.shr(RCX, 3);
        a.jmp(print.label);
        a.bind(invalid);
        a.movImm(RAX, EINVAL);
        a.ret();
      },
    };
  });
}

const [RECORD, CURSOR, END, ARGS, SCAN, SCAN_END] = [RBX, RBP, R12, R13, R14, R15];
const saved = [RECORD, CURSOR, END, ARGS, SCAN, SCAN_END];
const local = { format: 0, size: 8, count: 16, length: 24 };
const FRAME_BYTES = 32;

/**
 * rdi = format, rsi = its size with the NUL, rdx = arguments, rcx = how many; rax = length of the format; -EINVAL if it
 * has no NUL, -EBUSY if the ring is full.
 */
function printk(context: RoutineContext): Routine {
  const { routines, env, bundle } = context;
  const spec = bundle.printk === undefined ? undefined : bundle.maps[bundle.printk];
  const reserve =
    spec === undefined || spec.valueBytes < LEAST_RECORD_BYTES
      ? undefined
      : mapRoutineFor(context, {
          helper: HELPER_RINGBUF_RESERVE,
          mapIndex: bundle.printk,
          outerMapIndex: undefined,
          text: undefined,
        });
  return routines.get("printk", () => {
    if (spec === undefined || reserve === undefined) return silent;
    const clock = clockNs(routines, env, "monotonic");
    const ids = env.tidOffset === undefined ? pidTgid(routines, env) : fillPidCache(routines, env);
    const readString = probeReadUserStr(routines, env);
    const readBytes = probeReadUser(routines, env);
    return {
      args: [1, 2, 3, 4],
      clobbers: READ_CLOBBERS,
      stackBytes: 8 * saved.length + FRAME_BYTES,
      calls: [reserve, clock, ids, readString, readBytes],
      emit: (a) => {
        const [full, noEnd, leave] = [a.label("full"), a.label("no end"), a.label("leave")];
        for (const reg of saved) a.push(reg);
        a.subImm(RSP, FRAME_BYTES);
        a.mov(at("format"), RDI);
        a.mov(at("size"), RSI);
        a.mov(at("count"), RCX);
        a.mov(ARGS, RDX);
        a.movImm(RSI, spec.valueBytes);
        a.zero(RDX);
        a.call(reserve.label);
        a.test(RAX, RAX);
        a.jcc("e", full);
        a.mov(RECORD, RAX);
        a.lea(END, { base: RECORD, disp: spec.valueBytes });
        emitIds(a, context, ids);
        emitCpu(a, env.cpu);
        a.call(clock.label);
        a.mov(field(PRINTK_TIME), RAX);
        emitArguments(a);
        emitFormat(a, noEnd);
        emitPointedTo(a, readString, readBytes);
        emitCommit(a);
        a.mov(RAX, at("length"));
        a.bind(leave);
        a.addImm(RSP, FRAME_BYTES);
        for (const reg of saved.toReversed()) a.pop(reg);
        a.ret();
        a.bind(noEnd);
        a.movImm({ base: RECORD, disp: FLAGS }, CELL_DISCARDED, 32);
        a.inc({ base: RECORD, disp: STATE });
        a.movImm(RAX, EINVAL);
        a.jmp(leave);
        a.bind(full);
        a.movImm(RAX, EBUSY);
        a.jmp(leave);
      },
    };
  });
}

/** Where nobody reads: the length of the format, or -EINVAL. */
const silent: { args: number[]; clobbers: RegSet; stackBytes: number; emit(a: Assembler): void } = {
  args: [1, 2],
  clobbers: regSet(RAX),
  stackBytes: 0,
  emit: (a) => {
    const [found, noEnd] = [a.label("end"), a.label("no end")];
    a.zero(RAX);
    const next = a.here("next");
    a.cmp(RAX, RSI);
    a.jcc("ae", noEnd);
    a.cmpImm({ base: RDI, index: RAX }, 0, 8);
    a.jcc("e", found);
    a.inc(RAX);
    a.jmp(next);
    a.bind(noEnd);
    a.movImm(RAX, EINVAL);
    a.bind(found);
    a.ret();
  },
};

const at = (name: keyof typeof local) => ({ base: RSP, disp: local[name] });
const field = (disp: number) => ({ base: RECORD, disp });

function emitIds(a: Assembler, { env }: RoutineContext, routine: Routine): void {
  if (env.tidOffset === undefined) {
    a.call(routine.label);
    a.mov(field(PRINTK_TID), RAX, 32);
    a.shr(RAX, 32);
    a.mov(field(PRINTK_PID), RAX, 32);
    return;
  }
  const [retry, known] = [a.here("pid"), a.label("pid known")];
  emitAddress(a, RAX, env.pidCache);
  a.mov(RAX, { base: RAX }, 32);
  a.test(RAX, RAX, 32);
  a.jcc("ne", known);
  a.call(routine.label);
  a.jmp(retry);
  a.bind(known);
  a.mov(field(PRINTK_PID), RAX, 32);
  a.mov(RAX, { fs: env.tidOffset }, 32);
  a.mov(field(PRINTK_TID), RAX, 32);
}

function emitCpu(a: Assembler, source: "rdpid" | "lsl"): void {
  emitCpuWord(a, RAX, source);
  a.andImm(RAX, MAX_CPU, 32);
  a.mov(field(PRINTK_CPU), RAX, 32);
}

/** Copies the arguments; CURSOR goes behind them. */
function emitArguments(a: Assembler): void {
  const [next, done] = [a.label("argument"), a.label("arguments")];
  a.mov(RCX, at("count"));
  a.mov(field(PRINTK_ARG_COUNT), RCX, 16);
  a.lea(CURSOR, { base: RECORD, index: RCX, scale: 8, disp: PRINTK_BODY });
  a.bind(next);
  a.subImm(RCX, 1);
  a.jcc("b", done);
  a.mov(RAX, { base: ARGS, index: RCX, scale: 8 });
  a.mov({ base: RECORD, index: RCX, scale: 8, disp: PRINTK_BODY }, RAX);
  a.jmp(next);
  a.bind(done);
}

/** Copies the format up to its NUL or the end of the record; SCAN to SCAN_END and up to CURSOR is the copy then. */
function emitFormat(a: Assembler, noEnd: Label): void {
  const [next, ended] = [a.label("next"), a.label("ended")];
  a.mov(SCAN, CURSOR);
  a.mov(RSI, at("format"));
  a.mov(RCX, at("size"));
  a.zero(RDX);
  a.bind(next);
  a.cmp(RDX, RCX);
  a.jcc("ae", noEnd);
  a.movzx(RAX, { base: RSI, index: RDX }, 8);
  a.test(RAX, RAX, 32);
  a.jcc("e", ended);
  a.inc(RDX);
  a.cmp(CURSOR, END);
  a.jcc("ae", next);
  a.mov({ base: CURSOR }, RAX, 8);
  a.inc(CURSOR);
  a.jmp(next);
  a.bind(ended);
  a.mov(at("length"), RDX);
  a.mov(SCAN_END, CURSOR);
  a.mov(RAX, CURSOR);
  a.sub(RAX, SCAN);
  a.mov(field(PRINTK_FORMAT_BYTES), RAX, 16);
}

/** Looks through the format for strings and IP addresses, and appends what is at their addresses. */
function emitPointedTo(a: Assembler, readString: Routine, readBytes: Routine): void {
  const [next, done, spec, plain, pointer, isString, isAddress] = [
    a.here("character"),
    a.label("looked through"),
    a.label("conversion"),
    a.label("no pointer"),
    a.label("pointer"),
    a.label("string"),
    a.label("address"),
  ];
  // The next character is in eax.
  const take = (atEnd: Label) => {
    a.cmp(SCAN, SCAN_END);
    a.jcc("ae", atEnd);
    a.movzx(RAX, { base: SCAN }, 8);
  };
  const is = (char: string, then: Label) => {
    a.cmpImm(RAX, char.charCodeAt(0), 32);
    a.jcc("e", then);
  };
  take(done);
  a.inc(SCAN);
  a.cmpImm(RAX, 0x25, 32);
  a.jcc("ne", next);
  take(done);
  const notPercent = a.label("not percent");
  a.cmpImm(RAX, 0x25, 32);
  a.jcc("ne", notPercent);
  a.inc(SCAN);
  a.jmp(next);
  a.bind(notPercent);
  a.subImm(at("count"), 1);
  a.jcc("b", done);
  a.addImm(ARGS, 8);

  // Flags and width.
  a.bind(spec);
  const step = a.label("step");
  take(done);
  for (const flag of " +-") is(flag, step);
  a.lea(RCX, { base: RAX, disp: -0x30 }, 32);
  a.cmpImm(RCX, 9, 32);
  a.jcc("a", plain);
  a.bind(step);
  a.inc(SCAN);
  a.jmp(spec);

  a.bind(plain);
  is("s", isString);
  is("p", pointer);
  a.jmp(next);

  a.bind(pointer);
  a.lea(RCX, { base: SCAN, disp: 2 });
  a.cmp(RCX, SCAN_END);
  a.jcc("ae", next);
  a.movzx(RCX, { base: SCAN, disp: 2 }, 8);
  a.movzx(RAX, { base: SCAN, disp: 1 }, 8);
  const [maybeString, maybeAddress] = [a.label("ks"), a.label("i4")];
  is("k", maybeString);
  is("u", maybeString);
  a.orImm(RAX, 0x20, 32);
  is("i", maybeAddress);
  a.jmp(next);
  a.bind(maybeString);
  a.cmpImm(RCX, 0x73, 32);
  a.jcc("e", isString);
  a.jmp(next);
  a.bind(maybeAddress);
  a.movImm(RSI, 4);
  a.cmpImm(RCX, 0x34, 32);
  a.jcc("e", isAddress);
  a.cmpImm(RCX, 0x36, 32);
  a.jcc("ne", next);
  a.movImm(RSI, 16);
  a.bind(isAddress);
  emitAppendBytes(a, readBytes, next, done);
  a.bind(isString);
  emitAppendString(a, readString, next, done);
  a.bind(done);
}

/** rcx = room behind a length, or this goes to `full`. */
function emitRoom(a: Assembler, full: Label): void {
  a.mov(RCX, END);
  a.sub(RCX, CURSOR);
  a.subImm(RCX, PRINTK_LENGTH_BYTES);
  a.jcc("be", full);
}

/** The argument before ARGS is an address: rsi bytes from there. */
function emitAppendBytes(a: Assembler, read: Routine, next: Label, full: Label): void {
  const unreadable = a.label("unreadable");
  emitRoom(a, full);
  a.cmp(RCX, RSI);
  a.jcc("b", full);
  a.lea(RDI, { base: CURSOR, disp: PRINTK_LENGTH_BYTES });
  a.mov(RDX, { base: ARGS, disp: -8 });
  a.mov(at("size"), RSI);
  a.call(read.label);
  a.zero(RCX);
  a.test(RAX, RAX);
  a.jcc("ne", unreadable);
  a.mov(RCX, at("size"));
  a.bind(unreadable);
  emitLength(a, RCX);
  a.jmp(next);
}

/** The argument before ARGS is the address of a string. */
function emitAppendString(a: Assembler, read: Routine, next: Label, full: Label): void {
  const unreadable = a.label("unreadable");
  emitRoom(a, full);
  a.movImm(RSI, FORMAT_STRING_BYTES);
  a.cmp(RCX, RSI);
  a.cmov("b", RSI, RCX);
  a.lea(RDI, { base: CURSOR, disp: PRINTK_LENGTH_BYTES });
  a.mov(RDX, { base: ARGS, disp: -8 });
  a.call(read.label);
  // Length with the NUL, or an error.
  a.zero(RCX);
  a.test(RAX, RAX);
  a.jcc("le", unreadable);
  a.lea(RCX, { base: RAX, disp: -1 });
  a.bind(unreadable);
  emitLength(a, RCX);
  a.jmp(next);
}

function emitLength(a: Assembler, length: Reg): void {
  a.mov({ base: CURSOR }, length, 16);
  a.lea(CURSOR, { base: CURSOR, index: length, disp: PRINTK_LENGTH_BYTES });
}

function emitCommit(a: Assembler): void {
  a.mov(RAX, CURSOR);
  a.sub(RAX, RECORD);
  a.mov({ base: RECORD, disp: LENGTH }, RAX, 32);
  a.inc({ base: RECORD, disp: STATE });
}

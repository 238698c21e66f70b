/**
 * What a hit costs on this machine, measured before anything is armed: code like that of a hit runs in the tracer itself, on
 * memory of its own.
 *
 * A trap is an `int3` with a handler that does nothing: the exception, the delivery of the signal and the return from it are
 * what an `int3` costs more than a jump. A program is run with an empty context and empty maps, so it may take a shorter way
 * than in the target; nothing that programs may do acts on the process that they run in.
 */
import type { Bundle, Proof } from "../../bpf/index.ts";
import { JitUnit, type LinkEnv } from "../../bpf/jit/index.ts";
import { encodeSignalAction, SA_RESTORER, SA_SIGINFO } from "../../patch/signal-action.ts";
import { callNativeCode, NativeMemory } from "../../target/process/native-code.ts";
import { Assembler } from "../../x86/assembler.ts";
import { R10, R12, R13, R14, R15, RAX, RBP, RBX, RDI, RDX, RSI, RSP } from "../../x86/registers.ts";
import { processorSource } from "../attach/processor.ts";
import { layoutSharedMaps } from "../attach/shared-maps.ts";

const calleeSaved = [RBX, RBP, R12, R13, R14, R15];
const CODE_BYTES = 1 << 20;
/** Room for a whole context, all zero. */
const CONTEXT_BYTES = 256;
const PROGRAM_RUNS = 2000;
const TRAP_RUNS = 500;
const REPETITIONS = 5;
const PID_CACHE_BYTES = 4096;
const ACTION_BYTES = 32;
const SIGTRAP = 5;
const SIGSET_BYTES = 8;
const SYS_RT_SIGACTION = 13;
const SYS_RT_SIGRETURN = 15;

export interface HitCosts {
  /** Nanoseconds that an `int3` costs more than a jump. */
  readonly trapNs: number;
  /** Nanoseconds of each program with its call, by its index. */
  readonly programNs: readonly number[];
}

export function measureHitCosts(bundle: Bundle, proofs: readonly Proof[]): HitCosts {
  const programNs = bundle.programs.map((_, index) => measureProgram(bundle, proofs, index));
  return { trapNs: measureTrap(), programNs };
}

function measureProgram(bundle: Bundle, proofs: readonly Proof[], index: number): number {
  const layout = layoutSharedMaps(bundle.maps, 0, 0);
  using data = new NativeMemory(PID_CACHE_BYTES + layout.totalBytes);
  using code = new NativeMemory(CODE_BYTES);
  const env: LinkEnv = {
    mapAddr: (map) => data.at + BigInt(PID_CACHE_BYTES + layout.offsets[map]!),
    cpu: processorSource(),
    clockGettime: undefined,
    tidOffset: undefined,
    pidCache: data.at,
  };
  const a = new Assembler(code.at);
  const unit = new JitUnit(a, bundle, env, proofs);
  const { entry } = unit.emit(bundle.programs[index]!, proofs[index]!);
  unit.finish();
  const start = a.here("measure");
  for (const reg of calleeSaved) a.push(reg);
  const counter = { base: RSP, disp: CONTEXT_BYTES };
  a.subImm(RSP, CONTEXT_BYTES + 8);
  for (let at = 0; at < CONTEXT_BYTES; at += 8) a.movImm({ base: RSP, disp: at }, 0);
  a.mov(counter, RDI);
  const again = a.here("again");
  a.call(entry);
  a.dec(counter);
  a.jcc("ne", again);
  a.addImm(RSP, CONTEXT_BYTES + 8);
  for (const reg of calleeSaved.toReversed()) a.pop(reg);
  a.ret();
  code.bytes.set(a.finish());
  code.makeExecutable();
  return fastest(a.addressOf(start), PROGRAM_RUNS);
}

function measureTrap(): number {
  using data = new NativeMemory(2 * ACTION_BYTES);
  using code = new NativeMemory(PID_CACHE_BYTES);
  const a = new Assembler(code.at);
  const handler = a.here("handler");
  a.ret();
  const restorer = a.here("restorer");
  a.movImm(RAX, SYS_RT_SIGRETURN);
  a.syscall();
  const start = a.here("measure");
  a.push(RBX);
  a.mov(RBX, RDI);
  emitAction(a, data.at, data.at + BigInt(ACTION_BYTES));
  const again = a.here("again");
  a.int3();
  a.dec(RBX);
  a.jcc("ne", again);
  emitAction(a, data.at + BigInt(ACTION_BYTES), 0n);
  a.pop(RBX);
  a.ret();
  code.bytes.set(a.finish());
  code.makeExecutable();
  const action = encodeSignalAction({
    handler: a.addressOf(handler),
    flags: SA_RESTORER | SA_SIGINFO,
    restorer: a.addressOf(restorer),
    mask: 0n,
  });
  data.bytes.set(action);
  return fastest(a.addressOf(start), TRAP_RUNS);
}

/** rt_sigaction(SIGTRAP, set, old). */
function emitAction(a: Assembler, set: bigint, old: bigint): void {
  a.movImm(RAX, SYS_RT_SIGACTION);
  a.movImm(RDI, SIGTRAP);
  a.movImm(RSI, set);
  a.movImm(RDX, old);
  a.movImm(R10, SIGSET_BYTES);
  a.syscall();
}

/** Nanoseconds of one run: of several measurements the one that was disturbed least. */
function fastest(at: bigint, runs: number): number {
  let best = Number.POSITIVE_INFINITY;
  for (let repetition = 0; repetition < REPETITIONS; repetition++) {
    const began = process.hrtime.bigint();
    callNativeCode(at, BigInt(runs), 0n);
    best = Math.min(best, Number(process.hrtime.bigint() - began) / runs);
  }
  return best;
}

/** Compiles one proved program and runs it in the tracer itself, on memory of its own. */
import type { Bundle, Insn, MapSpec, Proof } from "../../bpf/index.ts";
import { JitUnit, type LinkEnv } from "../../bpf/jit/index.ts";
import { callNativeCode, NativeMemory } from "../../target/process/native-code.ts";
import { Assembler } from "../../x86/assembler.ts";
import { R12, R13, R14, R15, RBP, RBX, RDI, RSI, RSP } from "../../x86/registers.ts";
import { processorSource } from "../attach/processor.ts";

/** Reserved, not used: pages that no code is written to cost nothing. */
const CODE_BYTES = 1 << 16;
const CODE_BYTES_PER_INSN = 128;
/** Two process ids and an offset, zeroed: programs ask the kernel. */
const PID_CACHE_BYTES = 64;
const calleeSaved = [RBX, RBP, R12, R13, R14, R15];

export interface NativeInput {
  readonly insns: readonly Insn[];
  readonly proof: Proof;
  readonly memory: Uint8Array;
  /** The ring that takes what the program prints, and where its storage lies; needed if it prints. */
  readonly printk?: { readonly spec: MapSpec; readonly at: bigint } | undefined;
}

/**
 * Runs the program with r1 = the address of a copy of `memory` and r2 = its length; returns r0, unsigned, and copies
 * back what the program wrote. Throws SystemError where code cannot be executed.
 */
export function runNatively({ insns, proof, memory, printk }: NativeInput): bigint {
  using data = new NativeMemory(PID_CACHE_BYTES + memory.length);
  using code = new NativeMemory(CODE_BYTES + insns.length * CODE_BYTES_PER_INSN);
  const copy = data.bytes.subarray(PID_CACHE_BYTES);
  copy.set(memory);
  const env: LinkEnv = {
    mapAddr: (index) => {
      if (printk !== undefined && index === 0) return printk.at;
      throw new Error(`a program without maps names map ${index}`);
    },
    cpu: processorSource(),
    clockGettime: undefined,
    tidOffset: undefined,
    pidCache: data.at,
  };

  const bundle: Bundle =
    printk === undefined ? { maps: [], programs: [] } : { maps: [printk.spec], programs: [], printk: 0 };
  const asm = new Assembler(code.at);
  const unit = new JitUnit(asm, bundle, env);
  const { entry } = unit.emit({ name: "program", insns }, proof, { keepsResult: true, entry: "memory" });
  unit.finish();
  const call = asm.here("call program");
  for (const reg of calleeSaved) asm.push(reg);
  asm.push(RSI);
  asm.push(RDI);
  asm.call(entry);
  asm.addImm(RSP, 16);
  for (const reg of calleeSaved.toReversed()) asm.pop(reg);
  asm.ret();
  code.bytes.set(asm.finish());
  code.makeExecutable();

  const result = callNativeCode(
    asm.addressOf(call),
    data.at + BigInt(PID_CACHE_BYTES),
    BigInt(memory.length),
  );
  memory.set(copy);
  return BigInt.asUintN(64, result);
}

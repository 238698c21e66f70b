/** Programs that the benchmark compiles with the product's own JIT and runs in this process. */
import { join } from "node:path";
import { repository } from "./fixture.ts";

export interface Insn {
  readonly opcode: number;
  readonly dst: number;
  readonly src: number;
  readonly off: number;
  readonly imm: number;
}

/** What is used of the built modules; the benchmark is compiled apart from them. */
export interface Modules {
  readonly bpf: {
    parseProgram(
      text: string,
    ):
      | { readonly kind: "parsed"; readonly insns: Insn[] }
      | { readonly kind: "bad"; readonly line: number; readonly message: string };
    encodeInsns(insns: readonly Insn[]): Uint8Array;
    verifyProgram(
      program: { readonly insns: readonly Insn[] },
      maps: readonly unknown[],
    ):
      | { readonly kind: "accepted"; readonly proof: unknown }
      | { readonly kind: "rejected"; readonly log: string };
  };
  readonly jit: {
    readonly JitUnit: new (
      asm: Asm,
      bundle: { readonly maps: readonly unknown[]; readonly programs: readonly unknown[] },
      env: unknown,
    ) => {
      emit(
        program: { readonly name: string; readonly insns: readonly Insn[] },
        proof: unknown,
      ): { readonly start: unknown; readonly entry: unknown; readonly end: unknown };
      finish(): void;
    };
  };
  readonly maps: { layoutMap(spec: unknown): { readonly totalBytes: number } };
  readonly assembler: { readonly Assembler: new (base: bigint) => Asm };
  readonly native: {
    readonly NativeMemory: new (
      lenBytes: number,
    ) => {
      readonly at: bigint;
      readonly bytes: Uint8Array;
      makeExecutable(): void;
    };
    callNativeCode(at: bigint, first: bigint, second: bigint): bigint;
  };
}

interface Asm {
  here(): unknown;
  push(reg: number): void;
  pop(reg: number): void;
  mov(dst: number, src: number): void;
  subImm(dst: number, value: number): void;
  addImm(dst: number, value: number): void;
  inc(dst: { readonly base: number }): void;
  dec(dst: { readonly base: number; readonly disp?: number }): void;
  jcc(condition: "ne", target: unknown): void;
  call(target: unknown): void;
  ret(): void;
  align(to: number, fill: "int3"): void;
  finish(): Uint8Array;
  offsetOf(label: unknown): number;
  addressOf(label: unknown): bigint;
}

const RSP = 4;
const RDI = 7;
/** rbx, rbp, r12 to r15: whoever calls C functions keeps these. */
const calleeSaved = [3, 5, 12, 13, 14, 15];
const CODE_BYTES = 1 << 16;
/** A context's worth of memory lies above the return address. */
const CONTEXT_BYTES = 168;

/** The product as modules: what is bundled of them has no doors inside. */
export const loadBuilt = (path: string) => import(join(repository, ".build", path));

export async function loadModules(): Promise<Modules> {
  const [bpf, jit, mapModule, assembler, native] = await Promise.all(
    [
      "bpf/index.js",
      "bpf/jit/index.js",
      "bpf/maps/index.js",
      "x86/assembler.js",
      "target/process/native-code.js",
    ].map(loadBuilt),
  );
  return { bpf, jit, maps: mapModule, assembler, native } as Modules;
}

/** Compiled code, to be run in this process. */
export interface NativeProgram {
  readonly codeBytes: number;
  /** Runs it so many times, and returns the nanoseconds of one. */
  run(times: number): number;
}

export function parseInsns(modules: Modules, text: string): readonly Insn[] {
  const parsed = modules.bpf.parseProgram(text);
  if (parsed.kind === "bad") throw new Error(`line ${parsed.line}: ${parsed.message}`);
  return parsed.insns;
}

/** Where maps lie in one piece of memory, behind the page of the process's ids. */
export function layoutMaps(modules: Modules, maps: readonly unknown[]) {
  const offsets: number[] = [];
  let lenBytes = 64;
  for (const spec of maps) {
    offsets.push(lenBytes);
    lenBytes += modules.maps.layoutMap(spec).totalBytes;
  }
  return { offsets, lenBytes };
}

/** The compiled program, with a function that calls it as often as its first argument says. The maps lie in zeroed memory at `at`. */
export function compileNative(
  modules: Modules,
  maps: readonly unknown[],
  insns: readonly Insn[],
  at: bigint,
): NativeProgram {
  const verdict = modules.bpf.verifyProgram({ insns }, maps);
  if (verdict.kind === "rejected") throw new Error(`our verifier: ${verdict.log}`);
  const { offsets } = layoutMaps(modules, maps);
  const code = new modules.native.NativeMemory(CODE_BYTES);
  const asm = new modules.assembler.Assembler(code.at);
  const unit = new modules.jit.JitUnit(
    asm,
    { maps, programs: [] },
    {
      mapAddr: (index: number) => at + BigInt(offsets[index]!),
      cpu: "lsl",
      clockGettime: undefined,
      tidOffset: undefined,
      pidCache: at,
    },
  );
  const program = unit.emit({ name: "program", insns }, verdict.proof);
  unit.finish();
  asm.align(64, "int3");
  const run = asm.here();
  for (const reg of calleeSaved) asm.push(reg);
  asm.push(RDI);
  asm.subImm(RSP, CONTEXT_BYTES);
  const next = asm.here();
  asm.call(program.entry);
  asm.dec({ base: RSP, disp: CONTEXT_BYTES });
  asm.jcc("ne", next);
  asm.addImm(RSP, CONTEXT_BYTES + 8);
  for (const reg of calleeSaved.toReversed()) asm.pop(reg);
  asm.ret();
  code.bytes.set(asm.finish());
  code.makeExecutable();
  const codeBytes = asm.offsetOf(program.end) - asm.offsetOf(program.start);
  return {
    codeBytes,
    run: (times: number) => {
      const started = process.hrtime.bigint();
      modules.native.callNativeCode(asm.addressOf(run), BigInt(times), 0n);
      return Number(process.hrtime.bigint() - started) / times;
    },
  };
}

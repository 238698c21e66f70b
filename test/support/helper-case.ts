/**
 * One call of a helper, as compiled code and in the interpreter, on the same memory: both must return the same and
 * leave the same behind. The proof is made up here, so that what the verifier refuses can be tried as well.
 */
import { expect } from "vitest";
import {
  type BpfReg,
  type HelperHost,
  InsnBuilder,
  type MapSpec,
  type Proof,
  r1,
  r2,
  r3,
  r4,
  r5,
  r6,
} from "../../src/bpf/index.ts";
import type { LinkEnv } from "../../src/bpf/jit/index.ts";
import { contextOf, NativeBpf } from "./native-bpf.ts";

/** Size of the memory that arguments may point into. */
export const CASE_BYTES = 4096;

export type HelperArgument =
  /** An offset into the case's memory. */
  { readonly memory: number } | { readonly map: number } | "ctx" | bigint | number;

export interface HelperCaseInput {
  readonly helper: number;
  readonly args: readonly HelperArgument[];
  /** What the memory holds before the call, from offset 0. */
  readonly before?: Uint8Array;
  /** The constant string among the arguments, without its NUL. */
  readonly text?: Uint8Array;
  readonly ctx?: Uint8Array;
  readonly host?: Partial<HelperHost>;
}

export interface HelperOutcome {
  /** Signed. */
  readonly result: bigint;
  readonly memory: Uint8Array;
}

const argumentRegs: readonly BpfReg[] = [r1, r2, r3, r4, r5];
const memoryMap: MapSpec = {
  name: "memory",
  kind: "array",
  keyBytes: 4,
  valueBytes: CASE_BYTES,
  maxEntries: 1,
};

/** Map 0 is the memory of the cases; others follow. */
export class HelperCases implements Disposable {
  readonly native: NativeBpf;

  constructor(
    maps: readonly MapSpec[] = [],
    env: Partial<LinkEnv> = {},
    options: { readonly printk?: number } = {},
  ) {
    this.native = new NativeBpf({ maps: [memoryMap, ...maps], env, ...options });
  }

  /** Address of the memory of the cases as compiled code sees it. */
  get memoryAt(): bigint {
    return this.native.env.mapAddr(0);
  }

  compile(input: HelperCaseInput) {
    const b = new InsnBuilder().mov64(r6, r1);
    input.args.forEach((arg, i) => {
      const reg = argumentRegs[i]!;
      if (arg === "ctx") b.mov64(reg, r6);
      else if (typeof arg !== "object") b.ldImm64(reg, BigInt.asUintN(64, BigInt(arg)));
      else if ("memory" in arg) b.ldMapValue(reg, 0, arg.memory);
      else b.ldMapFd(reg, arg.map);
    });
    const { insns } = b.call(input.helper).exit().build();
    const proof = proofOf(insns.length, input);
    const { asm, written: program } = this.native.place((_, unit) =>
      unit.emit({ name: "helper", insns }, proof, { keepsResult: true }),
    );
    return { insns, program, entry: asm.addressOf(program.entry) };
  }

  /** Compiled code alone. */
  runNative(input: HelperCaseInput): HelperOutcome {
    const memory = this.#memory;
    memory.fill(0xee);
    memory.set(input.before ?? []);
    this.native.reset();
    const result = this.native.run(this.compile(input), input.ctx ?? contextOf(() => 0n));
    return { result: BigInt.asIntN(64, result), memory: memory.slice() };
  }

  /** Both; expects that they agree. */
  run(input: HelperCaseInput): HelperOutcome {
    const compiled = this.runNative(input);
    const memory = this.#memory;
    memory.fill(0xee);
    memory.set(input.before ?? []);
    const { insns } = this.compile(input);
    const result = this.native.interpret(insns, input.ctx ?? contextOf(() => 0n), input.host);
    expect(BigInt.asIntN(64, result), "interpreter = compiled").toBe(compiled.result);
    if (Buffer.compare(memory, compiled.memory) !== 0)
      expect(memory.slice(), "interpreter = compiled").toEqual(compiled.memory);
    return compiled;
  }

  get #memory(): Uint8Array {
    return this.native.memory.bytes.subarray(0, CASE_BYTES);
  }

  [Symbol.dispose](): void {
    this.native[Symbol.dispose]();
  }
}

function proofOf(slots: number, { args, helper, text }: HelperCaseInput): Proof {
  const callSlot = slots - 2;
  const map = args.find((arg) => typeof arg === "object" && "map" in arg);
  return {
    stackBytes: 0,
    subprograms: [{ start: 0, end: slots, stackBytes: 0, isCallback: false }],
    ctxReads: new Set(),
    helpers: new Set([helper]),
    mapAtCall: new Map(typeof map === "object" && "map" in map ? [[callSlot, map.map]] : []),
    outerMapAtCall: new Map(),
    stringAtCall: new Map(text === undefined ? [] : [[callSlot, text]]),
    callbackAtCall: new Map(),
    recordBytes: new Map(),
    deadInsns: new Set(),
    visited: slots,
  };
}

/** ASCII text with a NUL at offset `at` of otherwise empty memory. */
export function memoryWith(parts: readonly (readonly [at: number, text: string | Uint8Array])[]): Uint8Array {
  const bytes = new Uint8Array(CASE_BYTES);
  for (const [at, text] of parts)
    bytes.set(typeof text === "string" ? [...Buffer.from(text, "latin1"), 0] : text, at);
  return bytes;
}

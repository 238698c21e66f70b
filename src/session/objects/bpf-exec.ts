/**
 * `trapline bpf exec`: one program, given as bytes, on a piece of memory. It is proved, compiled and run in the tracer
 * itself; or interpreted, where that is asked for, where nothing can be executed, or where there is no proof.
 */
import { decodeInsns, type Insn, interpret, type VerifyOptions, verifyProgram } from "../../bpf/index.ts";
import { layoutMap, openMap, RingConsumer, sharedMemoryOf } from "../../bpf/maps/index.ts";
import { MAX_FRAMES, STACK_BYTES } from "../../bpf/verifier/index.ts";
import { SystemError } from "../../target/process/libc.ts";
import { NativeMemory } from "../../target/process/native-code.ts";
import type { BpfExecOptions, SessionIo } from "../options.ts";
import { tracerHost } from "../program-host.ts";
import { SessionError } from "../session-error.ts";
import { runNatively } from "./native-run.ts";
import { formatPrintkLine, PrintkReader } from "./printk-lines.ts";
import { printkRing, printsSomething } from "./printk-ring.ts";

/**
 * What is legal by RFC 9669 is run, also where the kernel is stricter: stack accesses that are not aligned, a whole
 * frame for each function, code that nothing leads to. A stack byte that was never written may not be read: the result
 * would be chance.
 */
const limits: NonNullable<VerifyOptions["limits"]> = {
  uninitStack: "refuse",
  stackBytes: MAX_FRAMES * STACK_BYTES,
  unreachable: "allow",
  unalignedStack: true,
};

/** Prints r0 in hex. Returns 1 if the program is rejected or faults; `io.err` then says where and why. */
export async function executeBpf(options: BpfExecOptions, io: SessionIo): Promise<number> {
  const memory = parseHex(options.memory, "memory");
  const decoded = decodeInsns(parseHex(options.bytecode, "bytecode"));
  if (decoded.kind === "bad")
    throw new SessionError("bad-bytecode", {
      operation: "bpf exec",
      object: "bytecode",
      reason: decoded.message,
    });
  const { insns } = decoded;
  const entry = { kind: "memory", lenBytes: memory.length } as const;
  const verdict = verifyProgram({ insns }, [], { entry, limits });
  if (verdict.kind === "rejected" && !options.unverified) {
    io.err.write(verdict.log);
    io.err.write(`trapline: bpf exec: the verifier rejects instruction ${verdict.at}: ${verdict.message}\n`);
    return 1;
  }
  using printed = printsSomething(insns) ? new PrintedLines() : undefined;
  const compiled =
    verdict.kind === "accepted" && !options.interpret
      ? tryNatively(() => runNatively({ insns, proof: verdict.proof, memory, printk: printed }), io)
      : undefined;
  const result = compiled ?? interpretOn(insns, memory, printed, io);
  printed?.write(io);
  if (result === undefined) return 1;
  io.out.write(`0x${result.toString(16)}\n`);
  return 0;
}

/** What the program prints, which goes where messages go: standard output has the result alone. */
class PrintedLines implements Disposable {
  readonly spec = printkRing;
  readonly #memory = new NativeMemory(layoutMap(printkRing).totalBytes);
  readonly map;

  constructor() {
    const { bytes } = this.#memory;
    const map = openMap(this.spec, sharedMemoryOf(bytes.buffer, bytes.byteOffset, bytes.length), 0);
    if (map.kind !== "ringbuf") throw new Error("the ring of printk is no ring buffer");
    this.map = map;
  }

  get at(): bigint {
    return this.#memory.at;
  }

  write(io: SessionIo): void {
    const reader = new PrintkReader();
    const { layout, memory, byteOffset } = this.map;
    const consumer = new RingConsumer(layout, memory, byteOffset, { nowMs: () => performance.now() });
    consumer.drain((record) => io.err.write(`${formatPrintkLine(reader.read(record))}\n`));
  }

  [Symbol.dispose](): void {
    this.#memory[Symbol.dispose]();
  }
}

/** Undefined where the machine does not let us execute what we write. */
function tryNatively(run: () => bigint, io: SessionIo): bigint | undefined {
  try {
    return run();
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    io.err.write(`trapline: bpf exec: interpreted, because code cannot be mapped: ${error.message}\n`);
    return undefined;
  }
}

/** Undefined: it faulted, which has been said. */
function interpretOn(
  insns: readonly Insn[],
  memory: Uint8Array,
  printed: PrintedLines | undefined,
  io: SessionIo,
): bigint | undefined {
  const result = interpret({
    insns,
    maps: printed === undefined ? [] : [printed.map],
    printk: printed === undefined ? undefined : 0,
    host: tracerHost,
    entry: { kind: "memory", bytes: memory },
  });
  if (result.kind === "returned") return result.value;
  io.err.write(`trapline: bpf exec: fault at instruction ${result.at}: ${result.message}\n`);
  return undefined;
}

/** Pairs of hex digits; white space may stand between them. */
function parseHex(text: string, what: string): Uint8Array {
  const digits = text.replace(/\s+/g, "").replace(/^0x/i, "");
  const wrong = /[^0-9a-f]/i.exec(digits)?.[0];
  const reason =
    wrong !== undefined
      ? `${JSON.stringify(wrong)} is no hex digit`
      : digits.length % 2 !== 0
        ? `${digits.length} hex digits are no whole number of bytes`
        : undefined;
  if (reason !== undefined)
    throw new SessionError(
      "bad-hex",
      { operation: "bpf exec", object: what, reason },
      "an instruction is 16 hex digits, low byte first: b7 00 00 00 2a 00 00 00 is r0 = 42",
    );
  return Uint8Array.from(Buffer.from(digits, "hex"));
}

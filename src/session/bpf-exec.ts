/**
 * `trapline bpf exec`: one program, given as bytes, on a piece of memory. It is proved, compiled and run in the tracer
 * itself; or interpreted, where that is asked for, where nothing can be executed, or where there is no proof.
 */
import { decodeInsns, type Insn, interpret, verifyProgram } from "../bpf/index.ts";
import { SystemError } from "../target/process/libc.ts";
import { runNatively } from "./native-run.ts";
import type { BpfExecOptions, SessionIo } from "./options.ts";
import { tracerHost } from "./program-host.ts";
import { SessionError } from "./session-error.ts";

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
  const verdict = verifyProgram({ insns }, [], { entry: { kind: "memory", lenBytes: memory.length } });
  if (verdict.kind === "rejected" && !options.unverified) {
    io.err.write(verdict.log);
    io.err.write(`trapline: bpf exec: the verifier rejects instruction ${verdict.at}: ${verdict.message}\n`);
    return 1;
  }
  const compiled =
    verdict.kind === "accepted" && !options.interpret
      ? tryNatively(() => runNatively(insns, verdict.proof, memory), io)
      : undefined;
  const result = compiled ?? interpretOn(insns, memory, io);
  if (result === undefined) return 1;
  io.out.write(`0x${result.toString(16)}\n`);
  return 0;
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
function interpretOn(insns: readonly Insn[], memory: Uint8Array, io: SessionIo): bigint | undefined {
  const result = interpret({ insns, maps: [], host: tracerHost, entry: { kind: "memory", bytes: memory } });
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

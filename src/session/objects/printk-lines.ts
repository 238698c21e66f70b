/** Lines that programs print with bpf_printk, as the kernel's trace_pipe shows them. */
import { readFileSync } from "node:fs";
import { decodePrintk } from "../../bpf/printk.ts";

/** One line, with who printed it. */
export interface PrintkLine {
  readonly comm: string;
  readonly pid: number;
  readonly tid: number;
  readonly cpu: number;
  /** CLOCK_MONOTONIC. */
  readonly ns: bigint;
  /** Without the newline at its end. */
  readonly text: string;
}

/**
 *     node-4242    [001] ..... 12345.678901: bpf_trace_printk: text
 *
 * The dots are what the kernel knows of the processor's state at that moment (interrupts, preemption), and we do not.
 */
export function formatPrintkLine({ comm, tid, cpu, ns, text }: PrintkLine): string {
  const task = `${comm.padStart(16)}-${String(tid).padEnd(7)}`;
  const micros = ns / 1000n;
  const time = `${String(micros / 1_000_000n).padStart(5)}.${String(micros % 1_000_000n).padStart(6, "0")}`;
  return `${task} [${String(cpu).padStart(3, "0")}] ..... ${time}: bpf_trace_printk: ${text}`;
}

/** Most threads whose names are kept. */
const MAX_NAMES = 4096;

/** Makes lines of records. The name of a thread is what it was when its first line was read. */
export class PrintkReader {
  readonly #names = new Map<number, string>();

  read(record: Uint8Array): PrintkLine {
    const { pid, tid, cpu, timeNs, text } = decodePrintk(record);
    return { comm: this.#nameOf(pid, tid), pid, tid, cpu, ns: timeNs, text: text.replace(/\n$/, "") };
  }

  #nameOf(pid: number, tid: number): string {
    let name = this.#names.get(tid);
    if (name === undefined) {
      name = readName(pid, tid);
      if (this.#names.size >= MAX_NAMES) this.#names.clear();
      this.#names.set(tid, name);
    }
    return name;
  }
}

function readName(pid: number, tid: number): string {
  for (const path of [`/proc/${pid}/task/${tid}/comm`, `/proc/${pid}/comm`])
    try {
      return readFileSync(path, "utf8").trimEnd();
    } catch {
      // The thread, or the process, has ended.
    }
  return "<...>";
}

/**
 * The bytes of a function in a live process, from its entry past its return. They tell when a tracer of whatever kind has armed its probe, and when the
 * code is as before, without asking the tracer.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { Child } from "./child.ts";

const LENGTH_BYTES = 32;
const TIMEOUT_MS = 20_000;

export class CodeBytes implements Disposable {
  readonly #file: number;
  readonly #address: number;
  readonly #original: Buffer;

  constructor(pid: number, address: bigint) {
    this.#file = openSync(`/proc/${pid}/mem`, "r");
    // User space ends below 2^47: no precision is lost.
    this.#address = Number(address);
    this.#original = this.#read();
  }

  get isOriginal(): boolean {
    return this.#read().equals(this.#original);
  }

  /**
   * Waits until the code is changed, or as before. Returns `performance.now()` then, exact to about a millisecond.
   * Fails when the tracer, if one is given, ends before.
   */
  async until(state: "changed" | "original", tracer?: Child): Promise<number> {
    const deadline = performance.now() + TIMEOUT_MS;
    while (this.isOriginal !== (state === "original")) {
      if (tracer?.endedMs !== undefined)
        throw new Error(`${tracer.name} ended (${tracer.exit}): ${tracer.lastWords}`);
      if (performance.now() > deadline)
        throw new Error(`the code at 0x${this.#address.toString(16)} is not ${state} after ${TIMEOUT_MS} ms`);
      await delay(1);
    }
    return performance.now();
  }

  [Symbol.dispose](): void {
    closeSync(this.#file);
  }

  #read(): Buffer {
    const bytes = Buffer.alloc(LENGTH_BYTES);
    readSync(this.#file, bytes, 0, LENGTH_BYTES, this.#address);
    return bytes;
  }
}

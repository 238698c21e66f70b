/**
 * Ctrl-C and its kin end a session cleanly: the first one asks it to stop, which prints what there is and takes the
 * probes out. Until that is done nothing may kill the tracer halfway, so later ones only say that it is being done.
 */
import type { SessionIo } from "./options.ts";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** From construction to disposal signals do not end this process; `stop` tells when the session should end. */
export class Interrupts implements Disposable {
  readonly #io: SessionIo;
  readonly #stop = new AbortController();
  readonly #onSignal = () => this.#interrupt();
  readonly #onClosed = () => this.#stop.abort();

  constructor(io: SessionIo) {
    this.#io = io;
    for (const name of SIGNALS) process.on(name, this.#onSignal);
    if (io.outClosed.aborted) this.#stop.abort();
    else io.outClosed.addEventListener("abort", this.#onClosed);
  }

  /** Aborted once the session should end. */
  get stop(): AbortSignal {
    return this.#stop.signal;
  }

  #interrupt(): void {
    if (this.#stop.signal.aborted)
      this.#io.err.write("detaching is in progress: the probes are being taken out of the code\n");
    else this.#stop.abort();
  }

  [Symbol.dispose](): void {
    for (const name of SIGNALS) process.off(name, this.#onSignal);
    this.#io.outClosed.removeEventListener("abort", this.#onClosed);
  }
}

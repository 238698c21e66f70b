/**
 * The sinks of a session on this process's standard streams, or on a file. Results are written by plain synchronous
 * calls: what has been written is out when the process exits, and a failure is known at once.
 *
 * A sink that cannot be written any more (`| head`, a full disk, a terminal that was closed) must end the run
 * cleanly, and never kill the tracer with probes in place: it aborts `outClosed`, and takes no more text.
 */
import { closeSync, openSync, writeSync } from "node:fs";
import type { SessionIo } from "../session/index.ts";
import { UsageError } from "./usage-error.ts";

const STANDARD_OUTPUT = 1;

/** Results could not be written. A reader that has enough (`EPIPE`) is no failure. */
export class OutputError extends Error {
  readonly code: string;
  constructor(where: string, cause: NodeJS.ErrnoException) {
    super(`write to ${where}: ${cause.code ?? cause.message}`, { cause });
    this.name = "OutputError";
    this.code = cause.code ?? "EIO";
  }
}

export class TerminalIo implements SessionIo, Disposable {
  readonly out: SessionIo["out"];
  readonly err: SessionIo["err"];
  readonly #outClosed = new AbortController();
  readonly #fd: number;
  readonly #where: string;
  #failure: OutputError | undefined;

  /** Opens the output file, if there is one. Throws `UsageError` when that cannot be done. */
  constructor(outputFile: string | undefined) {
    this.#where = outputFile ?? "standard output";
    this.#fd = outputFile === undefined ? STANDARD_OUTPUT : openOutputFile(outputFile);
    // Nobody is left to be told.
    process.stderr.on("error", () => this.#outClosed.abort());
    this.out = { write: (text) => this.#write(text) };
    this.err = { write: (text) => void process.stderr.write(text) };
  }

  get terminalColumns(): number | undefined {
    return process.stderr.isTTY ? process.stderr.columns : undefined;
  }

  get outClosed(): AbortSignal {
    return this.#outClosed.signal;
  }

  /** Why results were lost; undefined when none were. */
  get failure(): OutputError | undefined {
    return this.#failure;
  }

  #write(text: string): void {
    if (this.#outClosed.signal.aborted) return;
    try {
      writeAll(this.#fd, Buffer.from(text));
    } catch (cause) {
      const error = cause as NodeJS.ErrnoException;
      if (error.code !== "EPIPE") this.#failure ??= new OutputError(this.#where, error);
      this.#outClosed.abort();
    }
  }

  [Symbol.dispose](): void {
    if (this.#fd !== STANDARD_OUTPUT) closeSync(this.#fd);
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(fd, bytes, done);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      // A pipe that somebody has made non-blocking, and that is full.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

function openOutputFile(path: string): number {
  try {
    return openSync(path, "w");
  } catch (error) {
    throw new UsageError(
      `write to ${path}: ${(error as NodeJS.ErrnoException).code ?? String(error)}`,
      "-o takes the path of a file that can be created or overwritten",
    );
  }
}

/**
 * The sinks of a session on this process's standard streams, or on a file. Writes to files, terminals and pipes are
 * synchronous on Linux (Node, process I/O), so what has been written is out when the process exits.
 */
import { closeSync, openSync, writeSync } from "node:fs";
import type { SessionIo } from "../session/index.ts";
import { UsageError } from "./usage-error.ts";

/** Opens the output file, if there is one, before anything else is done. */
export function openIo(outputFile: string | undefined): SessionIo & Disposable {
  const outClosed = new AbortController();
  // A reader that goes away (`| head`) must end the run cleanly and not kill the tracer with an unhandled error.
  const onError = (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    outClosed.abort();
  };
  process.stdout.on("error", onError);
  process.stderr.on("error", onError);
  const fd = outputFile === undefined ? undefined : openOutputFile(outputFile);
  return {
    out: {
      write(text) {
        if (fd !== undefined) writeAll(fd, text);
        else if (!outClosed.signal.aborted) process.stdout.write(text);
      },
    },
    err: { write: (text) => void process.stderr.write(text) },
    terminalColumns: process.stderr.isTTY ? process.stderr.columns : undefined,
    outClosed: outClosed.signal,
    [Symbol.dispose]() {
      if (fd !== undefined) closeSync(fd);
    },
  };
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

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done);
}

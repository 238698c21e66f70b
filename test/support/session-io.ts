/** Sinks that keep what a session writes. */
import type { SessionIo } from "../../src/session/options.ts";

export interface RecordedIo extends SessionIo {
  readonly outText: () => string;
  readonly errText: () => string;
  /** The reader of `out` goes away. */
  readonly closeOut: () => void;
}

export function recordIo(terminalColumns?: number): RecordedIo {
  const out: string[] = [];
  const err: string[] = [];
  const closed = new AbortController();
  return {
    out: { write: (text) => void out.push(text) },
    err: { write: (text) => void err.push(text) },
    terminalColumns,
    outClosed: closed.signal,
    outText: () => out.join(""),
    errText: () => err.join(""),
    closeOut: () => closed.abort(),
  };
}

/**
 * A log of everything that is written to program text, one JSON object a line:
 *
 *     {"ns":"123456789","pid":4242,"transaction":1,"why":"arm","at":"0x7f…","symbol":"malloc (libc.so.6)","old":"f30f1efa41","new":"e9…"}
 *
 * `ns` is CLOCK_MONOTONIC when the bytes had been written; writes with one number of a transaction were made in one stop.
 * `why` is arm, optimize (an `int3` becomes a jump), disarm, restore, or side: text beside a punned site, written or put back
 * for its sake. Code memory of ours is not text of the program and not in the log.
 */
import { closeSync, openSync, writeSync } from "node:fs";
import type { CommitReport, Transaction } from "../../target/target.ts";

export class PokeLog implements Disposable {
  readonly #fd: number;
  #transactions = 0;

  /** Begins the file anew. */
  constructor(path: string) {
    this.#fd = openSync(path, "w");
  }

  record(
    pid: number,
    transaction: Transaction,
    report: CommitReport,
    describe: (at: bigint) => string,
  ): void {
    if (report.kind === "refused") return;
    const lines = printPokes({ pid, number: this.#transactions + 1, transaction, report, describe });
    if (lines.length === 0) return;
    this.#transactions++;
    writeSync(this.#fd, lines.join(""));
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

/** The lines of one transaction, in the order of the writes. */
export function printPokes(input: {
  readonly pid: number;
  readonly number: number;
  readonly transaction: Transaction;
  readonly report: Extract<CommitReport, { kind: "committed" }>;
  readonly describe: (at: bigint) => string;
}): string[] {
  const { pid, number, transaction, report, describe } = input;
  return transaction.sites.flatMap((site, index) => {
    const outcome = report.outcomes[index];
    const written = outcome === "written" ? site.write : outcome === "fallback" ? site.fallback : undefined;
    if (written === undefined || site.isData === true) return [];
    const line = {
      ns: `${report.writtenNs[index]}`,
      pid,
      transaction: number,
      why: site.isSide === true ? "side" : (transaction.why ?? "arm"),
      at: `0x${site.at.toString(16)}`,
      symbol: describe(site.at),
      old: hex(site.expect.subarray(0, written.length)),
      new: hex(written),
    };
    return [`${JSON.stringify(line)}\n`];
  });
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

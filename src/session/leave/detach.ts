/** `trapline detach`: puts back what tracers that have died left in a process. */

import { isUnwritten, type JournalContents, parseJournal } from "../../probe/journal.ts";
import { ProcessImages } from "../../target/process/images.ts";
import { readMaps } from "../../target/process/proc-fs.ts";
import { type ProcessTarget, Tracer } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import type { DetachOptions, OutputFormat, SessionIo } from "../options.ts";
import { SessionError } from "../session-error.ts";
import { type OtherSession, readOtherSessions, takeOutDead } from "./other-sessions.ts";
import { Witness } from "./proof.ts";
import { reportProof } from "./proof-report.ts";
import { findJournalMappings, type RestoreReport, readJournalBytes } from "./restore-process.ts";
import { soundJournal } from "./sound-journal.ts";

/** Restores each process. Returns 1 if one could not be restored completely. */
export async function detach(options: DetachOptions, io: SessionIo): Promise<number> {
  const tracer = new Tracer();
  let code = 0;
  try {
    for (const pid of options.pids) {
      const target = await tracer.open(pid);
      try {
        await target.lock();
        const journals = findJournalMappings(pid);
        const sessions = await readOtherSessions(target);
        const living = sessions.filter(({ isAlive }) => isAlive);
        if (living.length > 0 && living.length === sessions.length) throw aliveError(pid, living[0]!);
        using proving = options.verify === true ? await DeadTracerProof.begin(target, journals) : undefined;
        let sites = 0;
        const { taken, freed } = await takeOutDead(target, undefined, options.verify);
        for (const { session, report } of taken) {
          proving?.reports.push(report);
          sites += report.sites;
          if (report.husks.length > 0 && living.length > 0)
            io.err.write(describeHusk(pid, session.journal.header.tracerPid, living[0]!));
          for (const each of report.damage) io.err.write(`trapline: detach: process ${pid}: ${each}\n`);
          if (report.damage.length > 0) code = 1;
          if (report.occupants.length > 0 || report.foreign.length > 0) {
            code = 1;
            io.err.write(describeRest(pid, report.occupants.length, report.foreign));
          }
        }
        if (!options.quiet)
          io.out.write(
            options.format === "json"
              ? `${JSON.stringify({ type: "detached", data: { pid, sites, journals: journals.length, freed } })}\n`
              : journals.length + freed === 0
                ? `process ${pid} carries no probes\n`
                : `process ${pid}: ${sites} sites restored, our memory freed\n`,
          );
        for (const { journal } of options.quiet ? [] : living)
          io.err.write(
            `process ${pid} still carries the probes of process ${journal.header.tracerPid}, which is alive\n`,
          );
        if (proving !== undefined && !(await proving.report(options.format, io))) code = 1;
      } finally {
        await target.close();
      }
    }
  } finally {
    await tracer.close();
  }
  return code;
}

/** The proof that a process is as it was before tracers that have died changed it. */
class DeadTracerProof implements Disposable {
  readonly reports: RestoreReport[] = [];
  readonly #target: ProcessTarget;
  readonly #witness: Witness;
  readonly #images: ProcessImages;

  private constructor(target: ProcessTarget, witness: Witness) {
    this.#target = target;
    this.#witness = witness;
    this.#images = ProcessImages.open(target.pid);
  }

  static async begin(target: ProcessTarget, journals: readonly AddrRange[]): Promise<DeadTracerProof> {
    const contents: JournalContents[] = [];
    for (const memory of journals) {
      const bytes = await readJournalBytes(target, memory);
      if (!isUnwritten(bytes)) contents.push(soundJournal(parseJournal(bytes), readMaps(target.pid)).journal);
    }
    return new DeadTracerProof(target, await Witness.fromJournals(target, contents));
  }

  /** Returns whether it holds. */
  async report(format: OutputFormat, io: SessionIo): Promise<boolean> {
    const describe = (at: bigint) => this.#images.symbolize(at).text;
    const proof = await this.#witness.prove(this.#target, this.reports, describe);
    return reportProof(proof, format, describe, io);
  }

  [Symbol.dispose](): void {
    this.#witness[Symbol.dispose]();
    this.#images[Symbol.dispose]();
  }
}

function aliveError(pid: number, { journal }: OtherSession): SessionError {
  const { tracerPid } = journal.header;
  return new SessionError(
    "tracer-alive",
    { operation: "detach", object: `process ${pid}`, reason: `its tracer, process ${tracerPid}, is alive` },
    `end it with: kill -INT ${tracerPid}`,
  );
}

function describeHusk(pid: number, tracer: number, living: OtherSession): string {
  const other = living.journal.header.tracerPid;
  return (
    `trapline: detach: process ${pid}: process ${other} probes the same places as process ${tracer} did; ` +
    "what that needs is freed when it ends\n"
  );
}

function describeRest(pid: number, occupants: number, foreign: readonly bigint[]): string {
  const lines = foreign.map(
    (at) =>
      `trapline: detach: process ${pid}: 0x${at.toString(16)}: another tool has patched it; left alone\n`,
  );
  if (occupants > 0)
    lines.push(
      `trapline: detach: process ${pid}: the text is restored, but ${occupants} threads are still in our code; ` +
        "detach again later to free it\n",
    );
  return lines.join("");
}

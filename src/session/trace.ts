/**
 * One tracing run, from the script to the exit code. This is the order in which things happen:
 *
 *     compile, prove            nothing is touched before every program has its proof
 *     attach, plan              the target gets memory, its code is as before
 *     BEGIN, arm                one transaction for each target
 *     run                       records are read, intervals run, what is loaded is armed, traps become jumps
 *     restore                   the reverse transaction
 *     END, print                with everything that was still in the ring buffer
 */
import type { AttachPoint, Script, UserAttachPoint } from "../lang/index.ts";
import type { ProcessTarget } from "../target/process/tracer.ts";
import { Tracer } from "../target/process/tracer.ts";
import { Actions } from "./actions.ts";
import { endCommand } from "./command-end.ts";
import { compileProgram } from "./compile.ts";
import { printPlan } from "./dry-run.ts";
import { Interrupts } from "./interrupts.ts";
import { reportLeft, reportMissedReturns } from "./left-report.ts";
import { LocalPrograms } from "./local-programs.ts";
import type { SessionIo, TraceOptions } from "./options.ts";
import { pause } from "./pause.ts";
import type { AttachRequest } from "./probe-resolution.ts";
import { Progress } from "./progress.ts";
import { SessionError } from "./session-error.ts";
import { DEFAULT_MAX_ACTIVE, type LeftTarget, Targets } from "./targets.ts";
import { VerboseReport } from "./verbose-report.ts";

/** How often records are read while there are any, and how seldom when there are none. */
const POLL_MS = 5;
const IDLE_POLL_MS = 25;
const OPTIMIZE_EVERY_MS = 100;
const RECORDS_AT_ONCE = 10_000;

/** Traces until the script, the targets or the user end it. Returns the exit code. */
export async function trace(options: TraceOptions, io: SessionIo): Promise<number> {
  // Its thread comes up while the script is compiled.
  const tracer = new Tracer();
  try {
    return await traceWith(tracer, options, io);
  } finally {
    await tracer.close();
  }
}

async function traceWith(tracer: Tracer, options: TraceOptions, io: SessionIo): Promise<number> {
  const compiled = compileProgram(options, io);
  if (compiled === undefined) return 1;
  const { script, proofs } = compiled;
  const requests = userRequests(script);
  checkTargets(options, requests);
  if (options.dryRun) return printPlan(options, io, { script, proofs, requests });

  const targets = new Targets(
    {
      bundle: script.bundle,
      proofs,
      requests,
      mechanism: options.mechanism,
      maxActive: options.maxActive ?? DEFAULT_MAX_ACTIVE,
    },
    tracer,
  );
  using interrupts = new Interrupts(io);
  try {
    const run = new TraceRun({ options, io, script, targets, interrupts });
    return await run.perform();
  } finally {
    await targets.close();
  }
}

/** Uprobes and uretprobes of the script with their programs. */
export function userRequests(script: Script): AttachRequest[] {
  return script.probes.flatMap((probe) =>
    probe.attachPoints
      .filter(isUserPoint)
      .map((attachPoint) => ({ attachPoint, programIndex: probe.programIndex })),
  );
}

function isUserPoint(point: AttachPoint): point is UserAttachPoint {
  return point.kind === "uprobe" || point.kind === "uretprobe";
}

function checkTargets(options: TraceOptions, requests: readonly AttachRequest[]): void {
  if (requests.length === 0 || options.pids.length > 0 || options.command !== undefined) return;
  throw new SessionError(
    "no-target",
    { operation: "trace", object: requests[0]!.attachPoint.name, reason: "no process is given" },
    "name one with -p PID, or start a command with -c CMD",
  );
}

interface RunInput {
  readonly options: TraceOptions;
  readonly io: SessionIo;
  readonly script: Script;
  readonly targets: Targets;
  readonly interrupts: Interrupts;
}

class TraceRun {
  readonly #input: RunInput;
  readonly #report: VerboseReport;
  #command: ProcessTarget | undefined;

  constructor(input: RunInput) {
    this.#input = input;
    this.#report = new VerboseReport(input.options, input.io);
  }

  async perform(): Promise<number> {
    const { targets } = this.#input;
    try {
      await this.#attach();
    } catch (error) {
      // What was attached to before the one that failed is left as it was.
      await targets.leave();
      throw error;
    }
    return await this.#performAttached();
  }

  async #performAttached(): Promise<number> {
    const { options, io, script, targets } = this.#input;
    const maps = targets.maps;
    const local = new LocalPrograms(script, maps, targets.names);
    const actions = new Actions({
      options,
      io,
      script,
      maps,
      names: targets.names,
      findSymbol: (at) => targets.findSymbol(at),
    });
    let left: LeftTarget[] = [];
    try {
      if (!options.quiet) actions.output.attachedProbes(this.#probeCount());
      local.run("begin");
      actions.drain();
      if (!actions.wantsExit) {
        const armed = await targets.arm();
        this.#report.armed(armed, targets);
        await this.#command?.release();
        await this.#loop(actions, local);
      }
    } finally {
      left = await targets.leave();
    }
    this.#report.left(left);
    actions.drain();
    actions.endOfRun();
    local.run("end");
    actions.drain();
    actions.printMaps();
    reportMissedReturns(maps.missedReturns, io);
    await endCommand(this.#command);
    return reportLeft(left, io);
  }

  async #attach(): Promise<void> {
    const { options, io, targets } = this.#input;
    using progress = new Progress(io);
    for (const pid of options.pids) {
      progress.show(`attach to process ${pid}`);
      await targets.attach(pid);
    }
    if (options.command === undefined) return;
    progress.show(`start ${options.command[0]}`);
    this.#command = await targets.start(options.command);
  }

  /** As bpftrace counts them: every attach point of every address, and those that run in the tracer. */
  #probeCount(): number {
    const { script, targets } = this.#input;
    const local = script.probes.flatMap((probe) => probe.attachPoints.filter((point) => !isUserPoint(point)));
    return local.length + targets.plannedProbes + targets.unresolved.length;
  }

  async #loop(actions: Actions, local: LocalPrograms): Promise<void> {
    const { interrupts, targets, options } = this.#input;
    local.startIntervals();
    const hasTargets = options.pids.length > 0 || options.command !== undefined;
    let nextOptimizeMs = performance.now() + OPTIMIZE_EVERY_MS;
    let waitMs = POLL_MS;
    while (!interrupts.stop.aborted) {
      await pause(waitMs, interrupts.stop);
      local.runDueIntervals();
      await targets.followLoads();
      const records = actions.poll(RECORDS_AT_ONCE);
      if (actions.wantsExit) break;
      waitMs =
        records > 0 || targets.awaitsLoads
          ? POLL_MS
          : Math.min(waitMs + 1, IDLE_POLL_MS, local.untilNextMs());
      if (hasTargets && targets.allEnded) break;
      if (performance.now() >= nextOptimizeMs) {
        await targets.optimize();
        nextOptimizeMs = performance.now() + OPTIMIZE_EVERY_MS;
      }
    }
    local.stopIntervals();
  }
}

/**
 * One run over programs that are proved, whoever wrote them. This is the order in which things happen:
 *
 *     attach, plan              the target gets memory, its code is as before
 *     begin, arm                one transaction for each target
 *     run                       records are read, what is loaded is armed, traps become jumps
 *     restore                   the reverse transaction
 *     finish                    with everything that was still in the ring buffers
 *
 * A front says what is done with what programs send and have collected.
 */
import type { Bundle, Proof } from "../bpf/index.ts";
import type { ProcessTarget, Tracer } from "../target/process/tracer.ts";
import { reportAccounting } from "./accounts/accounting-report.ts";
import { Budget } from "./accounts/budget.ts";
import { measureHitCosts } from "./accounts/hit-cost.ts";
import type { AttachRequest } from "./attach/probe-resolution.ts";
import { endCommand } from "./command-end.ts";
import { Interrupts } from "./interrupts.ts";
import { reportLeft, reportMissedReturns } from "./leave/left-report.ts";
import { reportProofs } from "./leave/proof-report.ts";
import type { RunOptions, SessionIo } from "./options.ts";
import { pause } from "./pause.ts";
import { Progress } from "./progress.ts";
import { PokeLog } from "./reports/poke-log.ts";
import { VerboseReport } from "./reports/verbose-report.ts";
import { reportTotals, reportViolation } from "./reports/violation-report.ts";
import { DEFAULT_MAX_ACTIVE, type LeftTarget, Targets } from "./targets.ts";

/** How often records are read while there are any, and how seldom when there are none. */
const POLL_MS = 5;
const IDLE_POLL_MS = 25;
const OPTIMIZE_EVERY_MS = 100;
const RECORDS_AT_ONCE = 10_000;

/** What is to be run where. */
export interface RunPrograms {
  readonly bundle: Bundle;
  /** By program index. */
  readonly proofs: readonly Proof[];
  readonly requests: readonly AttachRequest[];
  /** As in `TargetsInput`. */
  readonly followsLoads?: boolean;
  /** As in `TargetsInput`. */
  readonly accountMap?: number | undefined;
}

export interface RunFront {
  /** The targets have their memory, and nothing runs yet. Returns whether anything is to be armed. */
  begin(): boolean;
  /** All probes are armed. */
  armed?(): void;
  /** The loop begins. */
  start?(): void;
  /** Does what is due by the clock; to be asked before each `poll`. */
  tick?(): void;
  /** Milliseconds until `tick` has something to do. */
  untilNextMs?(): number;
  /** Does up to `max` things that programs have sent, and returns how many there were. */
  poll(max: number): number;
  /** Whether a program wants the run to end. */
  readonly wantsExit: boolean;
  /** No program runs in a target any more. */
  finish(): void;
}

/** Runs until the front, the targets or the user end it. Returns the exit code. */
export async function runPrograms(
  tracer: Tracer,
  programs: RunPrograms,
  options: RunOptions,
  io: SessionIo,
  createFront: (targets: Targets) => RunFront,
): Promise<number> {
  const {
    mechanism,
    returns,
    verify,
    perfMap,
    gate,
    arena,
    onViolation,
    maxActive = DEFAULT_MAX_ACTIVE,
  } = options;
  using pokeLog = options.pokeLog === undefined ? undefined : new PokeLog(options.pokeLog);
  const notify = (text: string) => {
    if (!options.quiet) io.err.write(`note: ${text}\n`);
  };
  const targets = new Targets(
    {
      ...programs,
      mechanism,
      returns,
      verify,
      perfMap,
      gate,
      onViolation,
      arena,
      pokeLog,
      symbols: options.symbols,
      maxActive,
      notify,
      countsSites: options.budget !== undefined,
    },
    tracer,
  );
  using interrupts = new Interrupts(io);
  tracer.lockWait = { stop: interrupts.stop, say: (line) => io.err.write(`trapline: ${line}\n`) };
  try {
    return await new Run({ options, io, targets, interrupts, programs }).perform(createFront);
  } finally {
    await targets.close();
  }
}

interface RunInput {
  readonly programs: RunPrograms;
  readonly options: RunOptions;
  readonly io: SessionIo;
  readonly targets: Targets;
  readonly interrupts: Interrupts;
}

class Run {
  readonly #input: RunInput;
  readonly #report: VerboseReport;
  #command: ProcessTarget | undefined;

  constructor(input: RunInput) {
    this.#input = input;
    this.#report = new VerboseReport(input.options, input.io);
  }

  async perform(createFront: (targets: Targets) => RunFront): Promise<number> {
    const { io, options, targets } = this.#input;
    let front: RunFront | undefined;
    let left: LeftTarget[] = [];
    try {
      await this.#attach();
      front = createFront(targets);
      if (front.begin()) {
        this.#report.armed(await targets.arm(), targets);
        front.armed?.();
        await this.#command?.release();
        await this.#loop(front);
      }
    } finally {
      // Also what was attached to before an attempt that failed is left as it was.
      left = await targets.leave();
    }
    this.#reportViolations();
    reportTotals(targets.violationTotals, targets, options, io);
    this.#report.left(left);
    for (const { name, image } of targets.unresolved)
      io.err.write(`note: ${name}: no image ${image} was loaded\n`);
    for (const damage of targets.maps.findDamage())
      io.err.write(`trapline: ${damage}; what is shown of it may be wrong\n`);
    front.finish();
    reportAccounting(targets.counts, this.#input.options, io);
    reportMissedReturns(targets.accounts.missedReturns(targets.maps), io);
    await endCommand(this.#command);
    const code = reportLeft(left, io);
    const isProved = options.verify !== true || reportProofs(left, targets, options.format, io);
    return isProved ? code : 1;
  }

  #reportViolations(): void {
    const { targets, options, io } = this.#input;
    for (const violation of targets.takeViolations()) reportViolation(violation, targets, options, io);
  }

  async #attach(): Promise<void> {
    const { options, io, targets } = this.#input;
    using progress = new Progress(io);
    // In the same order by all tracers, since each process stays locked until its probes are armed.
    for (const pid of [...options.pids].sort((a, b) => a - b)) {
      progress.show(`attach to process ${pid}`);
      await targets.attach(pid);
    }
    if (options.command === undefined) return;
    progress.show(`start ${options.command[0]}`);
    this.#command = await targets.start(options.command);
  }

  async #loop(front: RunFront): Promise<void> {
    const { interrupts, targets, options } = this.#input;
    front.start?.();
    const { bundle, proofs } = this.#input.programs;
    const budget =
      options.budget === undefined
        ? undefined
        : new Budget(options.budget, measureHitCosts(bundle, proofs), targets, options, this.#input.io);
    const hasTargets = options.pids.length > 0 || options.command !== undefined;
    let nextOptimizeMs = performance.now() + OPTIMIZE_EVERY_MS;
    let waitMs = POLL_MS;
    while (!interrupts.stop.aborted) {
      await pause(waitMs, interrupts.stop);
      front.tick?.();
      await targets.followExecs();
      await targets.followLoads();
      await targets.followViolations();
      this.#reportViolations();
      await budget?.check();
      const records = front.poll(RECORDS_AT_ONCE);
      if (front.wantsExit) break;
      waitMs =
        records > 0 || targets.awaitsLoads
          ? POLL_MS
          : Math.min(waitMs + 1, IDLE_POLL_MS, front.untilNextMs?.() ?? IDLE_POLL_MS);
      if (hasTargets && targets.allEnded) break;
      if (performance.now() >= nextOptimizeMs) {
        await targets.optimize();
        nextOptimizeMs = performance.now() + OPTIMIZE_EVERY_MS;
      }
    }
  }
}

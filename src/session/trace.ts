/**
 * Tracing by a script: it is compiled and proved before anything is touched, and then run. BEGIN comes before probes are
 * armed, intervals while they are, END and the maps when they are out again.
 */
import type { AttachPoint, Script, UserAttachPoint } from "../lang/index.ts";
import { createJsonOutput, createTextOutput } from "../output/index.ts";
import { Tracer } from "../target/process/tracer.ts";
import { Actions } from "./actions.ts";
import type { AttachRequest } from "./attach/probe-resolution.ts";
import { compileProgram } from "./compile.ts";
import { LocalPrograms } from "./local-programs.ts";
import type { SessionIo, TraceOptions } from "./options.ts";
import { withGates } from "./probe-gates.ts";
import { printPlan } from "./reports/dry-run.ts";
import { type RunFront, runPrograms } from "./run.ts";
import { SessionError } from "./session-error.ts";
import type { Targets } from "./targets.ts";

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
  const programs = {
    bundle: script.bundle,
    proofs,
    requests: withGates(userRequests(script), options.probeGates),
    accountMap: script.accountMap,
  };
  checkTargets(options, programs.requests);
  if (options.dryRun) return printPlan(options, io, programs);
  return await runPrograms(
    tracer,
    programs,
    options,
    io,
    (targets) => new ScriptFront({ options, io, script, targets }),
  );
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

interface FrontInput {
  readonly options: TraceOptions;
  readonly io: SessionIo;
  readonly script: Script;
  readonly targets: Targets;
}

class ScriptFront implements RunFront {
  readonly #input: FrontInput;
  readonly #local: LocalPrograms;
  readonly #actions: Actions;

  constructor(input: FrontInput) {
    this.#input = input;
    const { targets, options, io, script } = input;
    const sink = (text: string) => io.out.write(text);
    const output = options.format === "json" ? createJsonOutput(sink) : createTextOutput(sink);
    const { maps, names } = targets;
    this.#local = new LocalPrograms(input.script, maps, names);
    const countsOf = (programs: readonly number[]) => targets.accounts.bytesOf(programs, maps);
    this.#actions = new Actions({
      script,
      output,
      maps,
      names,
      countsOf,
      findSymbol: (at) => targets.findSymbol(at),
    });
  }

  begin(): boolean {
    const actions = this.#actions;
    if (!this.#input.options.quiet) actions.output.attachedProbes(this.#probeCount());
    this.#local.run("begin");
    actions.drain();
    return !actions.wantsExit;
  }

  start(): void {
    this.#local.startIntervals();
  }

  tick(): void {
    this.#local.runDueIntervals();
  }

  untilNextMs(): number {
    return this.#local.untilNextMs();
  }

  poll(max: number): number {
    return this.#actions.poll(max);
  }

  get wantsExit(): boolean {
    return this.#actions.wantsExit;
  }

  finish(): void {
    const actions = this.#actions;
    this.#local.stopIntervals();
    actions.drain();
    actions.endOfRun();
    this.#local.run("end");
    actions.drain();
    actions.printMaps();
  }

  /** As bpftrace counts them: every attach point of every address, and those that run in the tracer. */
  #probeCount(): number {
    const { script, targets } = this.#input;
    const local = script.probes.flatMap((probe) => probe.attachPoints.filter((point) => !isUserPoint(point)));
    return local.length + targets.plannedProbes + targets.unresolved.length;
  }
}

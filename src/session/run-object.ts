/**
 * `trapline run`: the programs of an object file in running processes, in the same order as a script's:
 *
 *     load, prove               nothing is touched before every program has its proof and its place
 *     attach, plan              the target gets memory, its code is as before; globals get their first values
 *     arm                       one transaction for each target
 *     run                       records are printed as they come
 *     restore, print            what was still in the ring buffers, then maps and globals
 */
import { basename } from "node:path";
import { type Proof, verifyProgram } from "../bpf/index.ts";
import {
  type BpfObject,
  type ObjectProgram,
  parseUserPlace,
  printUserPlace,
  type UserPlace,
} from "../bpf/object/index.ts";
import type { ProcessTarget } from "../target/process/tracer.ts";
import { Tracer } from "../target/process/tracer.ts";
import { endCommand } from "./command-end.ts";
import { Interrupts } from "./interrupts.ts";
import { reportLeft, reportMissedReturns } from "./left-report.ts";
import { annotateLog, lineAt, loadObject, refusalOf } from "./object-file.ts";
import { printMaps, printRecord } from "./object-report.ts";
import type { RunObjectOptions, SessionIo } from "./options.ts";
import { pause } from "./pause.ts";
import type { AttachRequest } from "./probe-resolution.ts";
import { SessionError } from "./session-error.ts";
import { DEFAULT_MAX_ACTIVE, type LeftTarget, Targets } from "./targets.ts";
import { VerboseReport } from "./verbose-report.ts";

const OPERATION = "run";
const POLL_MS = 5;
const IDLE_POLL_MS = 25;
const OPTIMIZE_EVERY_MS = 100;
const RECORDS_AT_ONCE = 10_000;

/** Runs until the targets or the user end it. Returns the exit code. */
export async function runObject(options: RunObjectOptions, io: SessionIo): Promise<number> {
  const object = loadObject(options.path, OPERATION);
  const requests = attachRequests(object, options);
  const proofs = proveAll(object, io);
  if (proofs === undefined) return 1;
  if (!options.quiet) for (const note of object.notes) io.err.write(`note: ${note}\n`);
  const tracer = new Tracer();
  try {
    const programs = object.programs.map(({ name, code }) => ({
      name,
      insns: code.kind === "linked" ? code.insns : [],
    }));
    const targets = new Targets(
      {
        bundle: { maps: object.maps.map(({ spec }) => spec), programs },
        proofs,
        requests,
        mechanism: options.mechanism,
        maxActive: options.maxActive ?? DEFAULT_MAX_ACTIVE,
      },
      tracer,
    );
    using interrupts = new Interrupts(io);
    try {
      return await new ObjectRun({ options, io, object, targets, interrupts }).perform();
    } finally {
      await targets.close();
    }
  } finally {
    await tracer.close();
  }
}

/** Where each program goes: as the command line says, else as its section does. Throws SessionError. */
export function attachRequests(
  object: BpfObject,
  { path, attach }: Pick<RunObjectOptions, "path" | "attach">,
): AttachRequest[] {
  if (object.programs.length === 0) refuse(path, "it has no programs");
  const wanted = attach.map((text) => parseAttach(text, object));
  return object.programs.flatMap((program, programIndex) => {
    const what = `program ${program.name} (${program.section})`;
    const refusal = refusalOf(program);
    if (refusal !== undefined) refuse(what, refusal);
    const { attach: target } = program;
    if (target.kind === "usdt") refuse(what, "usdt programs are not supported");
    if (target.kind !== "uprobe" && target.kind !== "uretprobe")
      refuse(what, 'its section is none of those that a process has: SEC("uprobe"), SEC("uretprobe")');
    const given = wanted.filter(({ name }) => name === program.name).map(({ place }) => place);
    const places = given.length > 0 ? given : [target.place].filter((place) => place !== undefined);
    if (places.length === 0)
      refuse(
        what,
        "its section does not say where it belongs",
        `say it: --attach ${program.name}=IMAGE:SYMBOL`,
      );
    return places.map((place) => ({ attachPoint: attachPointOf(target.kind, place), programIndex }));
  });
}

function attachPointOf(kind: "uprobe" | "uretprobe", place: UserPlace): AttachRequest["attachPoint"] {
  const { image, location } = place;
  return { kind, name: `${kind}:${printUserPlace(place)}`, image, location, span: { start: 0, end: 0 } };
}

function parseAttach(text: string, object: BpfObject): { readonly name: string; readonly place: UserPlace } {
  const equals = text.indexOf("=");
  const name = text.slice(0, Math.max(0, equals));
  const place = parseUserPlace(text.slice(equals + 1));
  if (equals < 0 || name === "" || place === undefined)
    refuse(
      `--attach ${text}`,
      "it is not PROGRAM=IMAGE:SYMBOL",
      "for example: --attach on_malloc=libc:malloc",
    );
  if (!object.programs.some((program) => program.name === name))
    refuse(
      `--attach ${text}`,
      `there is no program ${name}`,
      `the programs are: ${object.programs.map((program) => program.name).join(", ")}`,
    );
  return { name, place };
}

function refuse(object: string, reason: string, hint?: string): never {
  throw new SessionError("cannot-run", { operation: OPERATION, object, reason }, hint);
}

/** Undefined: one is rejected, which has been explained. */
function proveAll(object: BpfObject, io: SessionIo): Proof[] | undefined {
  const maps = object.maps.map(({ spec }) => spec);
  const proofs = object.programs.map((program) => prove(program, maps, io));
  return proofs.every((proof) => proof !== undefined) ? proofs : undefined;
}

function prove(
  { name, section, code }: ObjectProgram,
  maps: Parameters<typeof verifyProgram>[1],
  io: SessionIo,
): Proof | undefined {
  if (code.kind === "refused") return undefined;
  const verdict = verifyProgram(code, maps);
  if (verdict.kind === "accepted") return verdict.proof;
  const line = lineAt(code, verdict.at);
  const place = line === undefined ? "" : `${basename(line.file)}:${line.line}:${line.column}: `;
  io.err.write(annotateLog(verdict.log, code));
  io.err.write(
    `trapline: ${OPERATION}: program ${name} (${section}): ${place}` +
      `the verifier rejects instruction ${verdict.at}: ${verdict.message}\n`,
  );
  return undefined;
}

interface RunInput {
  readonly options: RunObjectOptions;
  readonly io: SessionIo;
  readonly object: BpfObject;
  readonly targets: Targets;
  readonly interrupts: Interrupts;
}

class ObjectRun {
  readonly #input: RunInput;
  readonly #report: VerboseReport;
  #command: ProcessTarget | undefined;

  constructor(input: RunInput) {
    this.#input = input;
    this.#report = new VerboseReport(input.options, input.io);
  }

  async perform(): Promise<number> {
    const { options, io, object, targets } = this.#input;
    let left: LeftTarget[] = [];
    try {
      for (const pid of options.pids) await targets.attach(pid);
      if (options.command !== undefined) this.#command = await targets.start(options.command);
      this.#fillGlobals();
      this.#report.armed(await targets.arm(), targets);
      if (!options.quiet)
        io.err.write(
          `attached ${targets.plannedProbes + targets.unresolved.length} probes; Ctrl-C takes them out and shows the maps\n`,
        );
      await this.#command?.release();
      await this.#loop();
    } finally {
      left = await targets.leave();
    }
    this.#report.left(left);
    this.#readRings(true);
    io.out.write(printMaps(object, targets.maps));
    this.#reportLost();
    reportMissedReturns(targets.maps.missedReturns, io);
    await endCommand(this.#command);
    return reportLeft(left, io);
  }

  /** Globals begin with what the object says; nothing runs yet. */
  #fillGlobals(): void {
    const { object, targets } = this.#input;
    const first = new Uint8Array(4);
    for (const [index, { initial }] of object.maps.entries()) {
      const opened = targets.maps.maps[index];
      if (initial !== undefined && opened?.kind === "array") opened.update(first, initial, 0n);
    }
  }

  async #loop(): Promise<void> {
    const { interrupts, targets } = this.#input;
    let nextOptimizeMs = performance.now() + OPTIMIZE_EVERY_MS;
    let waitMs = POLL_MS;
    while (!interrupts.stop.aborted) {
      await pause(waitMs, interrupts.stop);
      await targets.followLoads();
      const records = this.#readRings(false);
      waitMs = records > 0 || targets.awaitsLoads ? POLL_MS : Math.min(waitMs + 1, IDLE_POLL_MS);
      if (targets.allEnded) break;
      if (performance.now() >= nextOptimizeMs) {
        await targets.optimize();
        nextOptimizeMs = performance.now() + OPTIMIZE_EVERY_MS;
      }
    }
  }

  /** Prints what programs have sent; returns how many records there were. */
  #readRings(isFinal: boolean): number {
    const { io, object, targets } = this.#input;
    let records = 0;
    for (const [index, ring] of targets.maps.rings) {
      const { name } = object.maps[index]!.spec;
      const print = (record: Uint8Array) => io.out.write(printRecord(name, record));
      records += isFinal ? ring.drain(print) : ring.poll(RECORDS_AT_ONCE, print);
    }
    return records;
  }

  #reportLost(): void {
    const { io, object, targets } = this.#input;
    for (const [index, { dropped }] of targets.maps.rings)
      if (dropped > 0n)
        io.err.write(`lost ${dropped} records: ring buffer ${object.maps[index]!.spec.name} was full\n`);
  }
}

/**
 * A session that a program of the user's holds: probes are added to a running process one by one, each with its own action,
 * and taken away again; what they collect can be read at any time.
 *
 * Every probe brings its own maps, in memory of its own. Changes are made one after the other, each in one transaction.
 */

import {
  addHitCounts,
  type HitCounts,
  type Insn,
  type MapSpec,
  type Proof,
  verifyProgram,
} from "../bpf/index.ts";
import type { OpenedMap } from "../bpf/maps/index.ts";
import { compileScript, printDiagnostics, type Script } from "../lang/index.ts";
import type { MapEntry, MapValue, MapView, OutputValue } from "../output/index.ts";
import { Tracer } from "../target/process/tracer.ts";
import { Actions } from "./actions.ts";
import type { Attachment } from "./attach/attachment.ts";
import { gateOfProbe } from "./attach/gate-level.ts";
import type { AttachedProbe, PlannedPoint } from "./attach/point-builder.ts";
import { type AttachRequest, CodeCache, findOverriders, resolveProbes } from "./attach/probe-resolution.ts";
import { findReturnObstacle } from "./attach/return-ways.ts";
import { checkGateLevels } from "./attach/seccomp.ts";
import type { SharedMaps } from "./attach/shared-maps.ts";
import { EventQueue, type SessionEvent } from "./event-queue.ts";
import { readHeldPlaces } from "./leave/other-sessions.ts";
import type { GateChoice, GateLevel, MechanismChoice, ReturnChoice, ViolationChoice } from "./options.ts";
import { totalsTexts, violationText } from "./reports/violation-report.ts";
import { SessionError } from "./session-error.ts";
import { DEFAULT_MAX_ACTIVE, Targets } from "./targets.ts";

export interface AttachOptions {
  /** How sites may be changed; `auto`, the best that is safe at each, unless told. */
  readonly mechanism?: MechanismChoice;
  /** Where returns are probed; `auto` unless told. */
  readonly returns?: ReturnChoice;
  /** Calls of one function whose returns may be awaited at the same time. */
  readonly maxActive?: number;
  /** What programs run behind; `auto` unless told. */
  readonly gate?: GateChoice;
  /** What becomes of an access of the process to memory under our key; `kill` unless told. */
  readonly onViolation?: ViolationChoice;
}

export interface ProbeOptions {
  /**
   * What its program runs behind, if not what the session has. Private stacks (`stack`, `strict`) are there in a session that
   * has them itself. `strict` brings no protection key with it, and in a session with `strict` there is nothing else.
   */
  readonly gate?: GateLevel;
}

/** A program of one's own, as instructions of eBPF; it is verified like every other. */
export interface RawProgram {
  readonly insns: readonly Insn[];
  /** Named by their index in the instructions. */
  readonly maps?: readonly MapSpec[];
}

/** A single value that a map holds, or a part of a key. Symbols, probes and times are text. */
export type Value = bigint | string | Uint8Array | readonly Value[];

/** What an aggregation has come to. `counts` are those of the histogram's buckets. */
export type Aggregated =
  | { readonly kind: "avg" | "stats"; readonly count: bigint; readonly total: bigint }
  | { readonly kind: "hist"; readonly counts: readonly bigint[] }
  | {
      readonly kind: "lhist";
      readonly min: bigint;
      readonly max: bigint;
      readonly step: bigint;
      readonly counts: readonly bigint[];
    };

/** An element of a map with keys. */
export interface Element {
  readonly key: readonly Value[];
  readonly value: Value | Aggregated;
}

const POLL_MS = 10;
const OPTIMIZE_EVERY_MS = 100;
const RECORDS_AT_ONCE = 10_000;

/** A probe of a session. It counts from the moment in which `Session.probe` returns. */
export interface Probe {
  /** The attach point as it was written. */
  readonly name: string;
  /** What has become of its hits so far. */
  readonly counts: HitCounts;
  /** How its places are armed, each once. */
  readonly mechanisms: readonly string[];
  /** What a map holds now: a value, undefined if there is none yet, or the elements of a map with keys. */
  map(name: string): Value | Aggregated | undefined | readonly Element[];
  /** The map of a raw program, to be read and written. */
  rawMap(name: string): OpenedMap;
  /** Its places run without it until `enable`; nothing is planned again for that. */
  disable(): Promise<void>;
  enable(): Promise<void>;
  /** Takes it out for good. Its maps and counts stay readable. */
  remove(): Promise<void>;
}

/** A process with probes in it. `close` puts the process back. */
export interface Session extends AsyncDisposable {
  readonly pid: number;
  /** All probes that were ever added. */
  readonly probes: readonly Probe[];
  /**
   * Adds a probe at every place that an attach point selects: `uprobe:libc:malloc`, `uretprobe:./program:f*`. The program is
   * an action of a script (`{ @ = count(); }`), perhaps with a predicate, or raw instructions. Rejects with a SessionError
   * when something is wrong with it; nothing has changed then.
   */
  probe(attachPoint: string, program: string | RawProgram, options?: ProbeOptions): Promise<Probe>;
  /** What actions print from now on, until the session is closed. */
  events(): AsyncIterableIterator<SessionEvent>;
  /** Takes all probes out and gives all memory back. */
  close(): Promise<void>;
}

/** Attaches to a running process. Rejects with an error that has a literal `code` when that is not possible. */
export async function attach(pid: number, options: AttachOptions = {}): Promise<Session> {
  const tracer = new Tracer();
  const targets = new Targets(
    {
      bundle: { maps: [], programs: [] },
      proofs: [],
      requests: [],
      mechanism: options.mechanism ?? "auto",
      maxActive: options.maxActive ?? DEFAULT_MAX_ACTIVE,
      returns: options.returns,
      gate: options.gate,
      onViolation: options.onViolation,
    },
    tracer,
  );
  try {
    await targets.attach(pid);
  } catch (error) {
    await targets.close();
    await tracer.close();
    throw error;
  }
  return new LiveSession({ pid, tracer, targets, options });
}

interface SessionParts {
  readonly pid: number;
  readonly tracer: Tracer;
  readonly targets: Targets;
  readonly options: AttachOptions;
}

interface Compiled {
  readonly script: Script;
  readonly bundle: Script["bundle"];
  readonly proofs: readonly Proof[];
  readonly accountMap: number | undefined;
}

class LiveSession implements Session {
  readonly pid: number;
  readonly probes: LiveProbe[] = [];
  readonly #parts: SessionParts;
  readonly #attachment: Attachment;
  readonly #codes = new CodeCache();
  readonly #queues = new Set<EventQueue>();
  readonly #timers: readonly NodeJS.Timeout[];
  #closed: Promise<void> | undefined;

  constructor(parts: SessionParts) {
    this.#parts = parts;
    this.pid = parts.pid;
    this.#attachment = parts.targets.attachments[0]!;
    const { livePoints } = this.#attachment;
    const optimize = async () => {
      if (!this.#attachment.target.hasEnded)
        await livePoints.exclusively(async () => {
          await this.#attachment.optimize();
        });
    };
    this.#timers = [
      setInterval(() => this.#poll(), POLL_MS),
      setInterval(() => void optimize().catch(() => {}), OPTIMIZE_EVERY_MS),
    ];
    for (const timer of this.#timers) timer.unref();
  }

  async probe(
    attachPoint: string,
    program: string | RawProgram,
    { gate }: ProbeOptions = {},
  ): Promise<Probe> {
    if (this.#closed !== undefined) throw refusal(attachPoint, "the session is closed");
    const compiled = compile(attachPoint, program);
    const { targets, options } = this.#parts;
    const { accounts, names } = targets;
    const attachment = this.#attachment;
    const { pid } = this;
    this.#checkGate(attachPoint, gate, compiled.proofs);
    const { number, maps } = await attachment.addBundle(
      compiled.bundle,
      compiled.proofs,
      compiled.accountMap,
    );
    attachment.images.refresh();
    const requests: AttachRequest[] = compiled.script.probes[0]!.attachPoints.map((point) => {
      if (point.kind !== "uprobe" && point.kind !== "uretprobe")
        throw refusal(attachPoint, "only uprobe and uretprobe are in a process");
      return accounts.open({ attachPoint: point, programIndex: 0, bundle: number, gate });
    });
    // No other tracer may plant anything between the plan and the change.
    const points = await attachment.target.locked(async () => {
      const resolved = resolveProbes(attachment.images, requests, {
        mechanism: options.mechanism ?? "auto",
        names,
        codes: this.#codes,
        armed: attachment.probes.points.map(({ at }) => at),
        others: await readHeldPlaces(attachment.target, attachment.journalMemory),
        returns: options.returns,
        returnObstacle: findReturnObstacle(pid),
        overriders: findOverriders(compiled.proofs),
      });
      const [problem] = resolved.problems;
      if (problem !== undefined) throw refusal(problem.probe, problem.reason, problem.hint);
      if (resolved.points.length === 0) throw refusal(attachPoint, "no place that it selects can be probed");
      await attachment.livePoints.add(resolved.points);
      return resolved.points;
    });
    const send = (event: SessionEvent) => {
      for (const queue of this.#queues) queue.push(event);
    };
    const probe = new LiveProbe({
      name: attachPoint,
      targets,
      attachment,
      compiled,
      maps,
      requests,
      points,
      send,
    });
    this.probes.push(probe);
    return probe;
  }

  /** The memory of the gate was made when the process was attached to. */
  #checkGate(attachPoint: string, asked: GateLevel | undefined, proofs: readonly Proof[]): void {
    const { gates, hasStacks, images } = this.#attachment;
    const { level, reason } = gateOfProbe(gates.process, asked, { proofs, index: 0 });
    if (gates.process.level === "strict" && level !== "strict")
      throw refusal(attachPoint, 'in a session with gate: "strict" all probes are strict');
    if (level !== "none" && !hasStacks)
      throw refusal(
        attachPoint,
        `the session was attached without private stacks, and ${reason}`,
        'attach with { gate: "stack" }; probes that need none may have { gate: "none" }',
      );
    checkGateLevels(images, [level]);
  }

  events(): AsyncIterableIterator<SessionEvent> {
    const queue = new EventQueue(() => this.#queues.delete(queue));
    if (this.#closed === undefined) this.#queues.add(queue);
    else queue.end();
    return queue;
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #poll(): void {
    void this.#followViolations();
    for (const probe of this.probes) probe.poll(RECORDS_AT_ONCE);
  }

  async #followViolations(): Promise<void> {
    const { targets } = this.#parts;
    try {
      await targets.followViolations();
    } catch {
      // The process is ending; whoever uses it next says so.
    }
    for (const violation of targets.takeViolations()) {
      const account = violation.kind === "fault" ? violation.account : undefined;
      const probe = (account === undefined ? undefined : targets.accounts.nameOf(account)) ?? "";
      const text = violationText(violation, targets);
      for (const queue of this.#queues) queue.push({ kind: "violation", probe, text });
    }
  }

  async #close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    const { targets, tracer } = this.#parts;
    let failure: string | undefined;
    try {
      // Changes that are on their way come first.
      await this.#attachment.livePoints.exclusively(async () => {
        const left = await targets.leave();
        failure = left.find((each) => each.failure !== undefined)?.failure;
      });
      for (const probe of this.probes) probe.finish();
      for (const text of totalsTexts(targets.violationTotals, targets))
        for (const queue of this.#queues) queue.push({ kind: "violation", probe: "", text });
    } finally {
      for (const queue of this.#queues) queue.end();
      this.#codes.release();
      await targets.close();
      await tracer.close();
    }
    if (failure !== undefined) throw refusal(`process ${this.pid}`, failure);
  }
}

interface ProbeParts {
  readonly name: string;
  readonly targets: Targets;
  readonly attachment: Attachment;
  readonly compiled: Compiled;
  readonly maps: SharedMaps;
  readonly requests: readonly AttachRequest[];
  readonly points: readonly PlannedPoint[];
  readonly send: (event: SessionEvent) => void;
}

class LiveProbe implements Probe {
  readonly name: string;
  readonly #parts: ProbeParts;
  readonly #attached: ReadonlySet<AttachedProbe>;
  readonly #actions: Actions;
  /** What the maps held when their memory went. */
  #last: { readonly counts: HitCounts; readonly views: ReadonlyMap<string, MapView> } | undefined;
  #isRemoved = false;

  constructor(parts: ProbeParts) {
    this.name = parts.name;
    this.#parts = parts;
    this.#attached = new Set(parts.points.flatMap(({ probes }) => probes));
    const { targets, maps, send, name } = parts;
    const { script } = parts.compiled;
    const bundle = parts.requests[0]!.bundle;
    this.#actions = new Actions({
      script,
      maps,
      names: targets.names,
      countsOf: (programs) => targets.accounts.bytesOf(programs, targets.maps, bundle),
      findSymbol: (at) => targets.findSymbol(at),
      output: EventQueue.outputOf(name, send),
    });
  }

  get counts(): HitCounts {
    if (this.#last !== undefined) return this.#last.counts;
    const { requests, targets } = this.#parts;
    const all = requests.map(({ account }) => targets.accounts.countsOf(account!, targets.maps));
    return all.reduce(addHitCounts);
  }

  get mechanisms(): readonly string[] {
    const { points, attachment } = this.#parts;
    return [...new Set(points.map(({ plan }) => attachment.mechanismAt(plan.at)))];
  }

  map(name: string): Value | Aggregated | undefined | readonly Element[] {
    const map = this.#parts.compiled.script.maps.find((each) => each.name === name);
    if (map === undefined) throw refusal(this.name, `its program has no map ${name}`);
    const view = this.#last?.views.get(name) ?? this.#actions.view(map);
    if (view.kind === "scalar") return view.value === undefined ? undefined : plainValue(view.value);
    return view.entries.map(elementOf);
  }

  rawMap(name: string): OpenedMap {
    const { compiled, maps } = this.#parts;
    const opened = maps.maps[compiled.bundle.maps.findIndex((spec) => spec.name === name)];
    if (opened === undefined) throw refusal(this.name, `its program has no map ${name}`);
    if (this.#last !== undefined) throw refusal(this.name, "the session is closed, and its memory is gone");
    return opened;
  }

  async disable(): Promise<void> {
    await this.#parts.attachment.livePoints.disable(this.#attached);
  }

  async enable(): Promise<void> {
    if (this.#isRemoved) throw refusal(this.name, "it has been removed");
    await this.#parts.attachment.livePoints.enable(this.#attached);
  }

  async remove(): Promise<void> {
    this.#isRemoved = true;
    await this.#parts.attachment.livePoints.remove(this.#attached);
  }

  poll(max: number): void {
    this.#actions.poll(max);
  }

  /** Keeps what can be read, before the memory goes. */
  finish(): void {
    this.#actions.drain();
    const { maps } = this.#parts.compiled.script;
    const views = new Map(maps.map((map) => [map.name, this.#actions.view(map)]));
    this.#last = { counts: this.counts, views };
  }
}

function compile(attachPoint: string, program: string | RawProgram): Compiled {
  // A raw program stands in for an action that does nothing.
  const action = typeof program === "string" ? program : "{ }";
  const result = compileScript(`${attachPoint} ${action}`, {
    fileName: "probe",
    startNs: process.hrtime.bigint(),
    accounts: typeof program === "string",
  });
  if (result.kind === "errors") throw refusal(attachPoint, printDiagnostics(result.diagnostics).trimEnd());
  const { script } = result;
  if (script.probes.length !== 1) throw refusal(attachPoint, "it is more than one probe");
  const bundle =
    typeof program === "string"
      ? script.bundle
      : { maps: program.maps ?? [], programs: [{ name: attachPoint, insns: program.insns }] };
  const proofs = bundle.programs.map((each) => {
    const verdict = verifyProgram(each, bundle.maps);
    if (verdict.kind === "accepted") return verdict.proof;
    throw refusal(attachPoint, `the verifier rejects instruction ${verdict.at}: ${verdict.message}`);
  });
  return { script, bundle, proofs, accountMap: script.accountMap };
}

function refusal(object: string, reason: string, hint?: string): SessionError {
  return new SessionError("cannot-probe", { operation: "probe", object, reason }, hint);
}

function elementOf({ keys, value }: MapEntry): Element {
  return { key: keys.map(plain), value: plainValue(value) };
}

function plainValue(value: MapValue): Value | Aggregated {
  return value.kind === "plain" ? plain(value.value) : value;
}

function plain(value: OutputValue): Value {
  switch (value.kind) {
    case "integer":
      return value.value;
    case "bytes":
      return value.bytes;
    case "tuple":
      return value.elements.map(plain);
    case "string":
    case "symbol":
    case "probe":
    case "timestamp":
      return decodeText(value.text);
    default:
      return value satisfies never;
  }
}

/** A byte string as the text that it is in UTF-8. */
export function decodeText(text: string): string {
  return Buffer.from(text, "latin1").toString("utf8");
}

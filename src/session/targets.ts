/**
 * All targets of one session: attaching to them, arming in them what the script asks for, following what they load, and
 * leaving them.
 */
import type { Bundle, Proof } from "../bpf/index.ts";
import { isGlob } from "../elf/index.ts";
import type { UserAttachPoint } from "../lang/index.ts";
import { type OtherTracers, refusalText } from "../patch/index.ts";
import { ArmError } from "../probe/probe-set.ts";
import { isEnding } from "../target/process/address-space.ts";
import { ElfCache } from "../target/process/elf-cache.ts";
import type { HugePages } from "../target/process/huge-memory.ts";
import { ProcessImages } from "../target/process/images.ts";
import { describeKeyRefusal, type KeyRefusal } from "../target/process/protection-keys.ts";
import type { ProcessTarget, Tracer } from "../target/process/tracer.ts";
import { ProbeAccounts, type ProbeCounts } from "./accounts/probe-accounts.ts";
import { Attachment } from "./attach/attachment.ts";
import type { Gates } from "./attach/gate-level.ts";
import { loadGatePoint } from "./attach/load-gate-point.ts";
import { checkTraps, gatesIn, problemError } from "./attach/obstacles.ts";
import { type Arrival, findUnloadable, sortProblems } from "./attach/pending-images.ts";
import {
  type AttachedProbe,
  journalRecords,
  type PlannedPoint,
  type RefusedPoint,
} from "./attach/point-builder.ts";
import {
  type AttachRequest,
  CodeCache,
  findOverriders,
  isWildcard,
  ProbeNames,
  type ProbeProblem,
  type ResolvedProbes,
  type ResolveOptions,
  resolveProbes,
} from "./attach/probe-resolution.ts";
import { findReturnObstacle } from "./attach/return-ways.ts";
import { checkSeccomp } from "./attach/seccomp.ts";
import { changeSemaphores } from "./attach/semaphores.ts";
import type { SharedMaps } from "./attach/shared-maps.ts";
import { unwindPoints } from "./attach/unwind-points.ts";
import type { Violation, ViolationTotals } from "./attach/violations.ts";
import { type LeftTarget, leaveHeirs } from "./leave/heirs.ts";
import { describeTakenOut, readHeldPlaces, takeOutDead } from "./leave/other-sessions.ts";
import { type ProveTarget, Witness } from "./leave/proof.ts";
import { findJournalMappings, type RestoreReport } from "./leave/restore-process.ts";
import { MapsMemory } from "./maps-memory.ts";
import {
  countMechanisms,
  endedMeanwhile,
  type Member,
  orEnded,
  programOf,
  raise,
  unlessGone,
  unlock,
} from "./member.ts";
import type { ArenaChoice, GateChoice, MechanismChoice, ReturnChoice, ViolationChoice } from "./options.ts";
import type { PokeLog } from "./reports/poke-log.ts";
import { SessionError } from "./session-error.ts";

export type { LeftTarget };

export interface TargetsInput {
  readonly bundle: Bundle;
  readonly proofs: readonly Proof[];
  readonly requests: readonly AttachRequest[];
  /** Index of the map that stands for the account of a probe (`Script.accountMap`); objects have none. */
  readonly accountMap?: number | undefined;
  readonly mechanism: MechanismChoice;
  readonly maxActive: number;
  readonly returns?: ReturnChoice | undefined;
  /** Whether to prove at the end that the targets are as before. */
  readonly verify?: boolean | undefined;
  /** Whether perf is to know the names of our code; it is, unless told. */
  readonly perfMap?: boolean | undefined;
  /** Learns of everything that is written to program text. */
  readonly pokeLog?: PokeLog | undefined;
  /** A file for symbols of our code: of the target whose code came last. */
  readonly symbols?: string | undefined;
  readonly gate?: GateChoice | undefined;
  readonly onViolation?: ViolationChoice | undefined;
  /** In which pages the maps are to lie; `auto` unless told. */
  readonly arena?: ArenaChoice | undefined;
  /** Whether the hits of each place are to be known (`siteHits`). */
  readonly countsSites?: boolean | undefined;
  /** Whether addresses of images that a command loads later are to be known, though nothing is probed there. */
  readonly followsLoads?: boolean;
  /** Takes lines that the user is to see. */
  readonly notify?: (text: string) => void;
}

/** What arming did in one target, for verbose output. */
export interface ArmedTarget {
  readonly pid: number;
  readonly points: number;
  readonly threads: number;
  readonly stoppedNs: bigint;
  readonly skipped: readonly ProbeProblem[];
  readonly gates: Gates;
}

/** Calls of one function whose returns may be awaited at the same time, where nobody says how many. */
export const DEFAULT_MAX_ACTIVE = 4096;

/** Room in the journal for points of images that are loaded later; memory that is not used is never touched. */
const LATER_POINTS = 1 << 16;

/** How often a target is looked at that cannot say when it has loaded something. */
const LOOK_EVERY_MS = 100;

/** A target that executes more programs than this before one of them can be attached to is let go. */
const MOST_EXECS = 20;

/** Most places whose hits are counted one by one. */
const MOST_COUNTED_SITES = 1 << 16;

/** A place whose own hits are counted. */
export interface CountedSite {
  readonly attachment: Attachment;
  readonly point: PlannedPoint;
  readonly account: number;
}

export class Targets {
  readonly names = new ProbeNames();
  readonly accounts: ProbeAccounts;
  readonly #input: TargetsInput;
  readonly #tracer: Tracer;
  readonly #elfCache = new ElfCache();
  readonly #codes = new CodeCache();
  readonly #overriders: ReadonlySet<number>;
  readonly #members: Member[] = [];
  /** What targets were before they became other programs: children of then still carry its probes. */
  readonly #replaced: Pick<Member, "target" | "attachment" | "raised">[] = [];
  /** Processes that have become programs that cannot be attached to. */
  readonly #strangers: ProcessTarget[] = [];
  readonly #sites: CountedSite[] = [];
  #hasSaidNoKeys = false;
  readonly #maps: MapsMemory;

  constructor(input: TargetsInput, tracer: Tracer) {
    const accounts = new ProbeAccounts(input.accountMap);
    this.accounts = accounts;
    this.#input = { ...input, requests: input.requests.map((request) => accounts.open(request)) };
    this.#maps = new MapsMemory({
      specs: input.bundle.maps,
      accounts: input.requests.length,
      laterAccounts: input.countsSites === true ? MOST_COUNTED_SITES : undefined,
      arena: input.arena ?? "auto",
    });
    this.#tracer = tracer;
    this.#overriders = findOverriders(input.proofs);
    const { pokeLog } = input;
    if (pokeLog !== undefined)
      tracer.onCommit = (pid, transaction, report) =>
        pokeLog.record(pid, transaction, report, (at) => this.describe(at));
  }

  /** The maps of the session: in memory that all targets share; without a target, the tracer's own. */
  get maps(): SharedMaps {
    return this.#maps.maps;
  }

  /** What became of the hits of each probe. Mechanisms are known once the targets are left. */
  get counts(): ProbeCounts[] {
    return this.accounts.counts(this.maps);
  }

  /** The kind of huge pages that the maps lie in; undefined: none. */
  get hugeMaps(): HugePages | undefined {
    return this.#maps.hugePages;
  }

  get attachments(): readonly Attachment[] {
    return this.#members.map((member) => member.attachment);
  }

  /** Probes of all places that were planned: several at one place count as several. */
  get plannedProbes(): number {
    return this.#members.reduce((sum, { resolved }) => sum + resolved.probes, 0);
  }

  /** Whether a target may stop at its loader at any moment. */
  get awaitsLoads(): boolean {
    return this.#members.some(({ followsLoads }) => followsLoads);
  }

  /** The function at an address, in the first target that knows one. */
  findSymbol(at: bigint): string | undefined {
    for (const { images, naming } of this.attachments) {
      const symbol = images.symbolize(at).symbol ?? naming.names.find(at);
      if (symbol !== undefined) return symbol;
    }
    return undefined;
  }

  /** `symbol+0x10 (libc.so.6)` in the first target that knows the address; what no target knows is the bare address. */
  describe(at: bigint): string {
    for (const { images, naming } of this.attachments) {
      const { image, symbol, text } = images.symbolize(at);
      if (image !== undefined || symbol !== undefined) return text;
      const ours = naming.names.find(at);
      if (ours !== undefined) return ours;
    }
    return `0x${at.toString(16)}`;
  }

  /** Looks once more at what live targets have loaded. */
  refreshImages(): void {
    for (const { target, attachment } of this.#members)
      try {
        if (!target.hasEnded) attachment.images.refresh();
      } catch {
        // It has ended meanwhile.
      }
  }

  /** Attaches to a running process. Nothing of its code is changed yet. */
  async attach(pid: number): Promise<void> {
    this.#maps.provideHuge();
    const target = await this.#tracer.open(pid);
    try {
      // Until its probes are armed, so that nobody else plants any meanwhile.
      await target.lock(0);
      await this.#clean(target);
      await this.#join(target, "running");
    } catch (error) {
      const hasEnded = isEnding(pid);
      await target.close();
      throw hasEnded ? endedMeanwhile("attach", pid) : error;
    }
  }

  /** Takes out what tracers that have died have planted in a process. */
  async #clean(target: ProcessTarget): Promise<void> {
    if (findJournalMappings(target.pid).length === 0) return;
    for (const taken of (await takeOutDead(target)).taken) {
      const line = describeTakenOut(target.pid, taken);
      if (line !== undefined) this.#tracer.lockWait?.say(line);
    }
  }

  /** Starts a command; it stands before its first instruction until `release`. */
  async start(argv: readonly string[]): Promise<ProcessTarget> {
    this.#maps.provideHuge();
    const target = await this.#tracer.start(argv);
    try {
      await target.lock();
      await this.#join(target, "starting");
    } catch (error) {
      // It has not run a single instruction.
      process.kill(target.pid, "SIGKILL");
      await target.close();
      throw error;
    }
    return target;
  }

  async #join(target: ProcessTarget, arrival: Arrival): Promise<void> {
    const { pid } = target;
    checkSeccomp(pid, this.#input);
    const witness = this.#input.verify === true ? await Witness.of(target) : undefined;
    const images = ProcessImages.open(pid, { cache: this.#elfCache });
    const resolved = this.#resolve(images, arrival, await readHeldPlaces(target));
    const attachment = await Attachment.create({
      target,
      images,
      bundle: this.#input.bundle,
      proofs: this.#input.proofs,
      mapsLayout: this.#maps.layout,
      accounts: this.accounts,
      sharedMapsFd: this.#maps.fd,
      mapsPageBytes: this.#maps.pageBytes,
      capacity: journalRecords(resolved.resolved.points) + LATER_POINTS,
      maxActive: this.#input.maxActive,
      perfMap: this.#input.perfMap !== false,
      symbols: this.#input.symbols,
      onViolation: this.#input.onViolation,
      gates: gatesIn(images, this.#input),
    });
    if (attachment.keyRefusal !== undefined) this.#sayWithoutKey(pid, attachment.keyRefusal);
    if (attachment.ownMaps !== undefined) this.#maps.take(attachment.ownMaps);
    const { requests, followsLoads: followsAll } = this.#input;
    const unloadable = findUnloadable(images);
    const followsLoads =
      resolved.pending.length > 0 ||
      requests.some(({ attachPoint }) => isGlob(attachPoint.image)) ||
      resolved.resolved.points.some(({ plan }) => unloadable.has(images.findImageAt(plan.at)!)) ||
      (arrival !== "running" && followsAll === true);
    this.#members.push({
      target,
      attachment,
      ...resolved,
      met: new Set(),
      followsLoads,
      nextLookMs: undefined,
      raised: new Set(),
      isLocked: true,
      witness,
    });
  }

  /** What the machine lacks is said once, what a process lacks for each. */
  #sayWithoutKey(pid: number, refusal: KeyRefusal): void {
    const isOfMachine = refusal.kind === "no-hardware" || refusal.kind === "not-switched-on";
    if (isOfMachine && this.#hasSaidNoKeys) return;
    this.#hasSaidNoKeys ||= isOfMachine;
    const who = isOfMachine ? "" : `process ${pid}: `;
    this.#input.notify?.(
      `${who}memory of probes is not guarded by a protection key: ${describeKeyRefusal(refusal)}`,
    );
  }

  /** Finds all places of the script in a process; throws when one that must be there is not. */
  #resolve(
    images: ProcessImages,
    arrival: Arrival,
    others: OtherTracers,
  ): { resolved: ResolvedProbes; pending: readonly AttachRequest[] } {
    const { pid } = images;
    const { requests } = this.#input;
    const resolved = resolveProbes(images, requests, this.#resolveOptions(pid, [], others));
    const { fatal, pending, notices } = sortProblems(
      images,
      this.#elfCache,
      requests,
      resolved.problems,
      arrival,
    );
    if (fatal.length > 0) throw problemError(fatal);
    for (const notice of notices) this.#input.notify?.(`process ${pid}: ${notice}`);
    checkTraps(pid, resolved.points);
    return { resolved, pending };
  }

  #resolveOptions(pid: number, armed: readonly bigint[], others: OtherTracers): ResolveOptions {
    return {
      mechanism: this.#input.mechanism,
      names: this.names,
      codes: this.#codes,
      armed,
      others,
      returns: this.#input.returns,
      returnObstacle: findReturnObstacle(pid),
      overriders: this.#overriders,
    };
  }

  /** Every place gets a count of its own hits, if they are to be known. */
  #countSites(attachment: Attachment, points: readonly PlannedPoint[]): readonly PlannedPoint[] {
    if (this.#input.countsSites !== true) return points;
    return points.map((point) => {
      if (!point.probes.some(({ run }) => run.kind === "program") || this.#sites.length >= MOST_COUNTED_SITES)
        return point;
      const account = this.accounts.openSite();
      this.#sites.push({ attachment, point, account });
      const count: AttachedProbe = { run: { kind: "site-count", account }, when: "entry", cookie: 0n };
      return { ...point, probes: [count, ...point.probes] };
    });
  }

  /** Places whose hits are counted, and how many there were. */
  get siteHits(): readonly (CountedSite & { readonly hits: bigint })[] {
    const current = new Set(this.attachments);
    return this.#sites
      .filter(({ attachment }) => current.has(attachment))
      .map((site) => ({ ...site, hits: this.maps.account(site.account).hits }));
  }

  /** Arms everything that was planned, one transaction for each target. */
  async arm(): Promise<ArmedTarget[]> {
    const armed: ArmedTarget[] = [];
    for (const member of this.#members)
      armed.push(await orEnded("arm probes", member.target.pid, () => this.#armMember(member)));
    this.#codes.release();
    return armed;
  }

  async #armMember(member: Member): Promise<ArmedTarget> {
    const { target, attachment, resolved, followsLoads } = member;
    const points = [...resolved.points];
    const others = await readHeldPlaces(target, attachment.journalMemory);
    const gate = followsLoads ? loadGatePoint(attachment, this.#codes, others) : undefined;
    if (gate !== undefined) points.push(gate);
    else if (followsLoads) member.nextLookMs = performance.now() + LOOK_EVERY_MS;
    points.push(...unwindPoints(attachment, this.#codes, points, attachment.images.list, others));
    const counted = this.#countSites(attachment, points);
    const { refused, report } = await attachment.arm(counted);
    const first = refused.find(({ planned }) => planned.isOptional !== true);
    if (first !== undefined)
      throw new SessionError("cannot-probe", {
        operation: "probe",
        object: attachment.images.symbolize(first.planned.plan.at).text,
        reason: refusalText(first.refusal, (at) => attachment.images.symbolize(at).text),
      });
    await raise(member, resolved.semaphores);
    await unlock(member);
    return {
      pid: target.pid,
      points: resolved.points.length,
      threads: report.threads,
      stoppedNs: report.stoppedNs,
      skipped: [...resolved.skipped, ...refused.map((each) => skippedPoint(attachment, each))],
      gates: attachment.gates,
    };
  }

  /** Attaches again to targets that have become other programs, with the same maps. */
  async followExecs(): Promise<void> {
    const replaced = this.#members.filter(
      ({ target, attachment }) => !target.hasEnded && attachment.isReplaced(),
    );
    for (const member of replaced) await this.#replace(member);
  }

  async #replace(member: Member): Promise<void> {
    const { target, attachment, raised, witness } = member;
    const { pid } = target;
    this.#notePlaces(attachment);
    attachment.withdrawNames();
    this.#members.splice(this.#members.indexOf(member), 1);
    this.#replaced.push({ target, attachment, raised });
    witness?.[Symbol.dispose]();
    for (let tries = 0; tries < MOST_EXECS; tries++) {
      const program = programOf(pid);
      this.#input.notify?.(`process ${pid} has executed ${program}; attaching to it again`);
      try {
        await target.reopen();
        await target.lock();
        await this.#join(target, "replaced");
        await this.#armMember(this.#members.at(-1)!);
        this.#codes.release();
        return;
      } catch (error) {
        if (isEnding(pid)) return;
        const last = this.#members.at(-1);
        const hasJoined = last?.target === target;
        // Some programs do nothing but execute another one.
        if (hasJoined && last.attachment.isReplaced()) {
          this.#replaced.push(last);
          this.#members.pop();
          continue;
        }
        if (programOf(pid) !== program) continue;
        if (!hasJoined) this.#strangers.push(target);
        const reason = error instanceof Error ? error.message : String(error);
        this.#input.notify?.(`process ${pid} is not traced any more: ${reason}`);
        return;
      }
    }
  }

  /** Arms what targets have loaded since, and lets the threads go that wait at the loader for it. */
  async followLoads(): Promise<void> {
    for (const member of this.#members) {
      const { attachment } = member;
      const isAnnounced = attachment.pollLoadGate();
      const isDue = member.nextLookMs !== undefined && performance.now() >= member.nextLookMs;
      if (isDue) member.nextLookMs = performance.now() + LOOK_EVERY_MS;
      if (!isAnnounced && !isDue) continue;
      const announced = attachment.announcedLoads;
      try {
        await unlessGone(member, async () => {
          await attachment.findTidLate();
          await member.target.locked(() => this.#armLoaded(member));
        });
      } finally {
        attachment.acknowledgeLoads(announced);
      }
    }
  }

  async #armLoaded(member: Member): Promise<void> {
    const { attachment } = member;
    const { removed, fresh } = await attachment.followImages();
    for (const at of member.raised)
      if (removed.some(({ start, end }) => at >= start && at < end)) member.raised.delete(at);
    for (const image of removed) this.#codes.forget(image);
    if (fresh.length === 0) return;
    const { images, probes } = attachment;
    const only = new Set(fresh);
    const requests = this.#input.requests.filter(({ attachPoint }) =>
      images.find(attachPoint.image).some((image) => only.has(image)),
    );
    for (const request of requests) member.met.add(request);
    const { pid } = member.target;
    const armed = probes.points.map((point) => point.at);
    const others = await readHeldPlaces(attachment.target, attachment.journalMemory);
    const found = resolveProbes(images, requests, { ...this.#resolveOptions(pid, armed, others), only });
    const notify = (text: string) => this.#input.notify?.(`process ${pid}: ${text}`);
    for (const { probe, reason, isMissingImage } of found.problems)
      if (!isMissingImage) notify(`${probe}: ${reason}`);
    try {
      const hooks = unwindPoints(attachment, this.#codes, found.points, fresh, others);
      await this.#armLate(member, { ...found, points: [...found.points, ...hooks] }, notify);
    } catch (error) {
      // The process goes on as it is: what it has loaded meanwhile is no reason to end a session.
      if (!(error instanceof ArmError) || error.refusal.kind === "target-gone") throw error;
      notify(error.message);
    }
    this.#codes.release();
  }

  async #armLate(
    member: Member,
    { points, semaphores }: ResolvedProbes,
    notify: (text: string) => void,
  ): Promise<void> {
    const { attachment } = member;
    if (points.length > 0 && !attachment.hasRoomFor(points)) {
      notify(`no room is left in the journal for ${points.length} more sites`);
      return;
    }
    if (points.length > 0) {
      const { refused } = await attachment.arm(this.#countSites(attachment, points));
      for (const each of refused) {
        const { probe, reason } = skippedPoint(attachment, each);
        notify(`${probe}: ${reason}`);
      }
    }
    await raise(member, semaphores);
  }

  /** Deals with faults of programs: their probes are disarmed, and their hits counted. */
  async followViolations(): Promise<void> {
    for (const member of this.#members)
      if (member.attachment.violations.isPending)
        await unlessGone(member, () => member.attachment.violations.look(!member.target.hasEnded));
    this.#countLost();
  }

  /** What was noticed since this was last asked. */
  takeViolations(): readonly Violation[] {
    return [...this.#members, ...this.#replaced].flatMap(({ attachment }) => [
      ...attachment.violations.takeFresh(),
    ]);
  }

  /** What there was in all, in each process where there was anything. */
  get violationTotals(): readonly ViolationTotals[] {
    return [...this.#members, ...this.#replaced]
      .map(({ attachment }) => attachment.violations.totals)
      .filter(({ accesses, unknown }) => accesses.length > 0 || unknown > 0);
  }

  #countLost(): void {
    for (const { attachment } of [...this.#members, ...this.#replaced])
      for (const { account, hits, isEarly } of attachment.violations.takeLost())
        this.maps.countFaulted(account, hits, isEarly);
  }

  /** One batch of the optimizer in every target. */
  async optimize(): Promise<void> {
    for (const member of this.#members) {
      const { target, attachment } = member;
      if (target.hasEnded) continue;
      await unlessGone(member, async () => {
        await attachment.findTidLate();
        await attachment.optimize();
      });
    }
  }

  /** Attach points that no image was found for. */
  get unresolved(): readonly UserAttachPoint[] {
    return this.#members.flatMap(({ pending, met }) =>
      pending
        .filter((request) => !met.has(request) && !isWildcard(request.attachPoint))
        .map(({ attachPoint }) => attachPoint),
    );
  }

  get allEnded(): boolean {
    return [...this.#members.map(({ target }) => target), ...this.#strangers].every(
      ({ hasEnded }) => hasEnded,
    );
  }

  /** Puts every target back. What cannot be done in one does not keep it from being done in the others. */
  async leave(): Promise<LeftTarget[]> {
    const left: LeftTarget[] = [];
    const failures: unknown[] = [];
    for (const member of this.#members.toReversed()) {
      const { target, attachment, raised, witness } = member;
      const mechanisms = countMechanisms(attachment);
      const prove: ProveTarget | undefined =
        witness && ((place, report) => witness.prove(place, [report], (at) => this.describe(at)));
      this.#notePlaces(attachment);
      let own: RestoreReport | undefined;
      try {
        const isGone = target.hasEnded || !attachment.isPresent;
        if (!isGone) await changeSemaphores(target, raised, -1);
        const report = isGone ? undefined : await attachment.restore(prove !== undefined);
        own = report;
        left.push({ pid: target.pid, report, mechanisms, proof: report && (await prove?.(target, report)) });
      } catch (error) {
        const isWorld = (error as { code?: unknown }).code !== undefined;
        if (attachment.isReplaced() || isEnding(target.pid))
          left.push({ pid: target.pid, report: undefined, mechanisms });
        else if (isWorld)
          left.push({ pid: target.pid, report: undefined, mechanisms, failure: (error as Error).message });
        else failures.push(error);
      }
      left.push(...(await leaveHeirs(this.#tracer, attachment, raised, prove)));
      await unlessGone(member, async () => {
        if (own !== undefined) attachment.markRemoved(own);
        await unlock(member);
      });
    }
    for (const { attachment, raised } of this.#replaced)
      left.push(...(await leaveHeirs(this.#tracer, attachment, raised, undefined)));
    // No program runs any more.
    for (const { attachment } of [...this.#members, ...this.#replaced])
      await attachment.violations.look(false);
    this.#countLost();
    if (failures.length > 0) throw failures[0];
    return left;
  }

  #notePlaces(attachment: Attachment): void {
    const now = new Map(attachment.probes.points.map(({ at, mechanism }) => [at, mechanism]));
    for (const { planned } of attachment.builtPoints)
      this.accounts.notePlace(planned.probes, now.get(planned.plan.at) ?? "none");
  }

  async close(): Promise<void> {
    for (const { attachment, witness } of this.#members) {
      await attachment.close();
      witness?.[Symbol.dispose]();
    }
    for (const { attachment } of this.#replaced) attachment.abandon();
    for (const target of this.#strangers) await target.close();
    this.#maps[Symbol.dispose]();
    this.#elfCache[Symbol.dispose]();
  }
}

function skippedPoint({ images }: Attachment, { planned, refusal }: RefusedPoint): ProbeProblem {
  const print = (at: bigint) => images.symbolize(at).text;
  return {
    probe: print(planned.plan.at),
    reason: refusalText(refusal, print),
    hint: undefined,
    isMissingImage: false,
  };
}

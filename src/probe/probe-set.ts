/**
 * What is armed in one target: its probe points, how each is armed now, and the transactions that change it.
 *
 * The rules, in the order of a probe point's life:
 *   1. Journal first. A record of the old and the new bytes stands in the target before the text is touched.
 *   2. Detours first. A site is written only when the code that it leads to is in place.
 *   3. Helpers first. A short site may hop through other text (padding, a displaced neighbour): that is journalled and
 *      written before the site, and when it cannot be written the site is not.
 *   4. Arm now, optimise later (kprobes): a point whose region may be returned into by a signal handler gets its `int3`,
 *      and the optimizer tries the jump again in a later batch.
 *   5. What runs at an armed point changes through the slot that its detour begins with: a jump over it leads to a detour with
 *      another list of programs. That takes one write, and nobody stands inside.
 *   6. A point is disarmed by its old bytes, and armed again by its new ones; its detours stay. A point whose region a new one
 *      lies in is lowered to an `int3`, whose region is one instruction (kprobes: unoptimize).
 *   7. A call at a function's entry may lead elsewhere, or be a NOP again, at any time: that is one write of its five bytes.
 *
 * Taking out is not done from here but from the journal (restoration.ts), as anybody else would do it.
 */

import { SLOT } from "../patch/detour.ts";
import type {
  CommitRefusal,
  CommitReport,
  Move,
  Retirement,
  SitePoke,
  Transaction,
} from "../target/target.ts";
import type { Journal } from "./journal.ts";
import { trapBytes } from "./site-state.ts";

/** The part of a target that is needed here. */
export interface CommitPort {
  commit(transaction: Transaction): Promise<CommitReport>;
  /** The process id of another tracer that has changed what is at an address, if one has. */
  holderOf?(at: bigint): Promise<number | undefined>;
}

/** One address to be probed, with its code in place. */
export interface PointCode {
  readonly at: bigint;
  /** The bytes of the region that the jump displaces; for `int3` at least the first instruction. */
  readonly oldBytes: Uint8Array;
  /** What a jump writes over the region (same length); undefined when only `int3` is possible. */
  readonly jumpBytes: Uint8Array | undefined;
  readonly detour: bigint;
  /** Where the copy of the displaced instructions begins, from the detour's entry on. */
  readonly copyOffset?: number;
  /** From each displaced instruction's place in the text to its copy in the detour. */
  readonly twins: readonly Move[];
  /** The site belongs to another session: this is written instead of the site. */
  readonly hook?: PointHook | undefined;
  /** For a site that is too short for a jump of its own: `jumpBytes` are the first step of this way. */
  readonly route?: PointRoute | undefined;
  /** `jumpBytes` are a call over NOPs: `twins` lead from those behind the first to behind the call, and never back. */
  readonly isCall?: boolean;
}

/** A point whose call is to lead elsewhere. */
export interface Redirection {
  readonly point: ProbePoint;
  /** The call and where it leads; undefined: the NOPs come back. */
  readonly to: { readonly callBytes: Uint8Array; readonly detour: bigint } | undefined;
}

/** How a detour is chained to that of another session. */
export interface PointHook {
  /** The slot of the other one's detour; for a call, the call itself. */
  readonly slot: bigint;
  /** What the slot holds, and what leads from it to the detour. */
  readonly oldBytes: Uint8Array;
  readonly newBytes: Uint8Array;
  /** Where in the detour the jump stands that leads on. */
  readonly linkOffset: number;
  /** The other one's site holds a call, or has held one: before the detour stands an approach. */
  readonly hasApproach?: boolean;
  /** By what the other one's site leads there. */
  readonly mechanism: "jump" | "punned" | "int3";
}

/** The way of a punned site to its detour. */
export interface PointRoute {
  /** Where the site's own bytes lead. */
  readonly leadsTo: bigint;
  /** Bytes behind the region that the jump is made of, and that no side changes. */
  readonly kept: Uint8Array;
  readonly sides: readonly SideCode[];
}

/** Text beside a site that has to be changed before it. */
export interface SideCode {
  readonly kind: "padding" | "evicted";
  readonly at: bigint;
  readonly oldBytes: Uint8Array;
  readonly newBytes: Uint8Array;
  /** Where its first byte leads. */
  readonly leadsTo: bigint;
  /** Where its displaced instructions, or its padding's jump, end up. */
  readonly detour: bigint;
  readonly twins: readonly Move[];
}

export type PointMechanism = "none" | "call" | "jump" | "punned" | "int3";

interface ProbeSide extends SideCode {
  readonly record: number;
  isWritten: boolean;
}

export interface ProbePoint extends PointCode {
  record: number;
  mechanism: PointMechanism;
  oldBytes: Uint8Array;
  jumpBytes: Uint8Array | undefined;
  detour: bigint;
  twins: readonly Move[];
  /** Where an `int3` of a call's point leads: nothing has been pushed there yet. */
  trapEntry?: bigint;
  /** Nothing is to run there for now: it holds its old bytes. */
  isIdle: boolean;
  /** What the slot of its detour holds, when that leads to another one. */
  slot?: Uint8Array;
  /** From displaced instructions to their copies in detours beside the first one. */
  readonly otherTwins: Move[];
  readonly sides: readonly ProbeSide[];
}

/** A transaction that the target refused as a whole. */
export class ArmError extends Error {
  readonly code: string;
  readonly refusal: CommitRefusal;
  constructor(operation: string, refusal: CommitRefusal) {
    super(`${operation}: ${describeCommitRefusal(refusal)}`);
    this.name = "ArmError";
    this.code = refusal.kind;
    this.refusal = refusal;
  }
}

const hex = (bytes: Uint8Array): string =>
  [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

export function describeCommitRefusal(refusal: CommitRefusal): string {
  switch (refusal.kind) {
    case "text-differs":
      if (refusal.tracer !== undefined)
        return `process ${refusal.tracer} traces it, too, and has come later; it cannot be changed until that one ends`;
      return (
        `text at 0x${refusal.at.toString(16)} is ${hex(refusal.found)}, expected ${hex(refusal.expected)}; ` +
        "another tool has patched it, or the file was replaced after the program was started"
      );
    case "sigtrap-blocked":
      return `thread ${refusal.tid} blocks SIGTRAP: an int3 would kill the process; probe a place that can take a jump`;
    case "sigtrap-unhandled":
      return (
        `process ${refusal.pid} shares the memory and does not handle SIGTRAP: an int3 would kill it; ` +
        "probe a place that can take a jump"
      );
    case "target-gone":
      return "the process has ended";
    default:
      return refusal satisfies never;
  }
}

const INT3 = 0xcc;

/** What one arming did. */
export interface ArmReport {
  readonly stoppedNs: bigint;
  readonly threads: number;
  /** The answer to what was to be retired. */
  readonly retired?: readonly boolean[];
}

export class ProbeSet {
  readonly points: ProbePoint[] = [];
  readonly #target: CommitPort;
  readonly #journal: Journal;

  constructor(target: CommitPort, journal: Journal) {
    this.#target = target;
    this.#journal = journal;
  }

  /**
   * Arms points whose code is in place, all or none of them. Throws `ArmError` when the target refuses; the text is
   * then as before.
   */
  async arm(codes: readonly PointCode[]): Promise<ArmReport> {
    return await this.change(codes, []);
  }

  /**
   * Arms points and leads calls elsewhere, in one transaction: all or nothing. Where a redirected point holds an `int3` it
   * keeps that, and the trap handler has to be told.
   */
  async change(
    codes: readonly PointCode[],
    redirections: readonly Redirection[],
    retire?: Retirement,
  ): Promise<ArmReport> {
    const points = codes.map((code): ProbePoint => {
      const sides = (code.route?.sides ?? []).map((side): ProbeSide => {
        const { at, oldBytes, newBytes, kind, leadsTo, detour } = side;
        const record = this.#journal.addSite({ at, oldBytes, newBytes, mechanism: kind, detour, leadsTo });
        return { ...side, record, isWritten: false };
      });
      // A route cannot change owners: such a site is never put back by this record.
      const isOthersRoute = code.hook?.mechanism === "punned";
      const newBytes = isOthersRoute ? code.oldBytes : (code.jumpBytes ?? trapBytes(code.oldBytes));
      const { at, oldBytes, detour, copyOffset = 0, route } = code;
      const leadsTo = route?.leadsTo ?? 0n;
      const mechanism = upperMechanism(code);
      if (route !== undefined && route.kept.length > 0)
        this.#journal.addKept(at + BigInt(oldBytes.length), route.kept);
      const record = this.#journal.addSite({
        at,
        oldBytes,
        newBytes,
        mechanism,
        detour,
        leadsTo,
        copyOffset,
      });
      if (code.hook !== undefined) {
        const { slot, linkOffset } = code.hook;
        this.#journal.addHook({
          at: slot,
          oldBytes: code.hook.oldBytes,
          newBytes: code.hook.newBytes,
          detour,
          site: at,
          linkOffset,
          ...(code.hook.hasApproach === true ? { hasApproach: true } : {}),
        });
      }
      return { ...code, sides, record, mechanism: "none", isIdle: false, otherTwins: [] };
    });
    const wanted = points.map((point) => ({ point, poke: pokeToArm(point) }));
    const redirected = redirections.filter(({ point, to }) => point.mechanism !== "int3" || to === undefined);
    for (const { point, to } of redirections) this.#announce(point, to);
    let report: Extract<CommitReport, { kind: "committed" }>;
    try {
      report = await this.#poke(
        [...wanted, ...redirected.map((each) => ({ point: each.point, poke: pokeToRedirect(each) }))],
        "arm probes",
        retire,
      );
    } catch (error) {
      for (const { point } of redirections) this.#announce(point, goalOf(point));
      throw error;
    }
    this.points.push(...points);
    for (const { point, to } of redirections) {
      point.isIdle = to === undefined;
      if (to === undefined) {
        point.mechanism = "none";
        this.#journal.setState(point.record, "removed");
        continue;
      }
      point.jumpBytes = to.callBytes;
      point.detour = to.detour;
    }
    const { stoppedNs, threads, retired } = report;
    return { stoppedNs, threads, ...(retired === undefined ? {} : { retired }) };
  }

  /** Writes into the journal what a point's call is about to become. */
  #announce(point: ProbePoint, to: Redirection["to"]): void {
    if (to === undefined) return;
    this.#journal.setState(point.record, "planned");
    if (point.mechanism === "int3")
      this.#journal.changeSite(point.record, "int3", trapBytes(point.oldBytes), point.trapEntry);
    else this.#journal.changeSite(point.record, "call", to.callBytes, to.detour);
  }

  /**
   * Arms points with `int3` that could not get their jump, since something may return into their region. The trap
   * handler must know them already.
   */
  async armTraps(points: readonly ProbePoint[]): Promise<void> {
    for (const { record, oldBytes, trapEntry } of points)
      this.#journal.changeSite(record, "int3", trapBytes(oldBytes), trapEntry);
    await this.#poke(
      points.map((point) => ({ point, poke: pokeToTrap(point) })),
      "arm probes",
    );
  }

  /**
   * Forgets points whose image has been unloaded: there is no text any more to be put back. They can be armed again when the
   * same image lies in the same place again.
   */
  forget(points: readonly ProbePoint[]): void {
    const gone = new Set(points);
    const kept = this.points.filter((point) => !gone.has(point));
    this.points.splice(0, this.points.length, ...kept);
    for (const point of points)
      for (const { record } of [point, ...point.sides]) this.#journal.setState(record, "removed");
  }

  /** Arms forgotten points again, all or none of them: their code is still in place. Throws as `arm`. */
  async armAgain(points: readonly ProbePoint[]): Promise<void> {
    const wanted = points.filter(({ isIdle }) => !isIdle);
    for (const point of wanted) {
      point.mechanism = "none";
      this.#journal.changeSite(
        point.record,
        upperMechanism(point),
        point.jumpBytes ?? trapBytes(point.oldBytes),
        point.detour,
      );
      for (const side of point.sides) side.isWritten = false;
      for (const { record } of [point, ...point.sides]) this.#journal.setState(record, "planned");
    }
    try {
      await this.#poke(
        wanted.map((point) => ({ point, poke: pokeToArm(point) })),
        "arm probes",
      );
    } catch (error) {
      for (const point of wanted)
        for (const { record } of [point, ...point.sides]) this.#journal.setState(record, "removed");
      throw error;
    }
    this.points.push(...points);
  }

  /** Points that could take a jump and have not got it yet. */
  get unoptimized(): readonly ProbePoint[] {
    return this.points.filter((point) => isLower(point) && point.jumpBytes !== undefined && !point.isIdle);
  }

  /** One batch of the optimizer: tries to turn `int3` into the jump. Returns how many points were upgraded. */
  async optimize(): Promise<number> {
    const candidates = this.unoptimized;
    if (candidates.length === 0) return 0;
    const pokes = candidates.map((point) => {
      // The record names the jump from now on; the trap, whose bytes differ from the jump's only in front, is
      // recognised by whoever restores.
      this.#journal.changeSite(point.record, upperMechanism(point), point.jumpBytes!, point.detour);
      const now = point.mechanism === "int3" ? trapBytes(point.oldBytes) : point.oldBytes;
      return { point, poke: pokeToJump(point, now) };
    });
    await this.#poke(pokes, "optimize probes");
    return candidates.filter((point) => !isLower(point)).length;
  }

  /** From copies of instructions in detours to their originals: where threads go on when the text is put back. */
  get homeMoves(): Move[] {
    return this.points.flatMap((point) =>
      (point.isCall === true ? point.sides : [point, ...point.sides, { twins: point.otherTwins }]).flatMap(
        ({ twins }) => twins.map(({ from, to }) => ({ from: to, to: from })),
      ),
    );
  }

  /** Lets other detours run at armed points: `slot` is the jump to `code.detour`, as the slot of the first one has to hold it. */
  async lead(
    changes: readonly { readonly point: ProbePoint; readonly slot: Uint8Array; readonly code: PointCode }[],
  ): Promise<void> {
    // A thread that is in a new detour goes home from there, too.
    for (const { point, code } of changes) point.otherTwins.push(...code.twins);
    await this.#commit(
      changes.map(({ point, slot }) => ({
        at: point.detour,
        expect: point.slot ?? SLOT,
        write: slot,
        fallback: undefined,
        moves: [],
        hasNoInside: true,
      })),
      [],
      "change probes",
    );
    for (const { point, slot } of changes) point.slot = slot;
  }

  /** Puts the old bytes back at points that are armed; what is beside them stays, and so do their detours. */
  async disarm(points: readonly ProbePoint[]): Promise<void> {
    const armed = points.filter(({ mechanism }) => mechanism !== "none");
    if (armed.length > 0)
      await this.#commit(
        armed.flatMap((point) => [
          ...slotUnchanged(point),
          {
            at: point.at,
            expect: bytesNow(point),
            write: point.oldBytes,
            fallback: undefined,
            moves: [],
            hasNoInside: true,
          },
        ]),
        armed,
        "disarm probes",
      );
    for (const point of points) {
      point.isIdle = true;
      point.mechanism = "none";
      this.#journal.setState(point.record, "removed");
    }
  }

  /** Arms points again that were disarmed. */
  async rearm(points: readonly ProbePoint[]): Promise<void> {
    for (const point of points) {
      this.#journal.setState(point.record, "planned");
      point.isIdle = false;
    }
    try {
      await this.#poke(
        points.map((point) => ({ point, poke: pokeToArm(point) })),
        "arm probes",
      );
    } catch (error) {
      for (const point of points) point.isIdle = true;
      throw error;
    }
  }

  /**
   * Makes a point's jump an `int3`, whose region is only its first instruction: `code` is the point with that region, and the
   * trap handler knows it already. What is behind belongs to nobody then.
   */
  async lower(point: ProbePoint, code: PointCode): Promise<void> {
    const newBytes = trapBytes(code.oldBytes);
    const { at, oldBytes, detour, copyOffset = 0 } = code;
    const site = { at, oldBytes, newBytes, mechanism: "int3" as const, detour, leadsTo: 0n, copyOffset };
    const record = this.#journal.addSite(site);
    if (point.mechanism !== "none")
      await this.#commit(
        [
          ...slotUnchanged(point),
          {
            at: point.at,
            expect: bytesNow(point),
            write: trapBytes(point.oldBytes),
            fallback: undefined,
            moves: [],
            hasNoInside: true,
          },
        ],
        [point],
        "lower a probe",
        true,
      );
    this.#journal.setState(point.record, "removed");
    point.otherTwins.push(...point.twins);
    const wasIdle = point.isIdle;
    Object.assign(point, {
      record,
      oldBytes: code.oldBytes,
      jumpBytes: undefined,
      detour: code.detour,
      twins: code.twins,
      slot: undefined,
      mechanism: wasIdle ? "none" : "int3",
    });
    this.#journal.setState(record, wasIdle ? "removed" : "armed");
  }

  /** Whoever has hooked into a point of ours is named. */
  async #refused(operation: string, reason: CommitRefusal): Promise<ArmError> {
    if (reason.kind !== "text-differs") return new ArmError(operation, reason);
    const tracer = await this.#target.holderOf?.(reason.at);
    return new ArmError(operation, tracer === undefined ? reason : { ...reason, tracer });
  }

  /** Which of the ranges, where nothing leads any more, nobody is in. */
  async findVacant(retire: Retirement): Promise<readonly boolean[]> {
    return (await this.change([], [], retire)).retired ?? [];
  }

  /** A detour beside the first one is gone. */
  forgetTwins(point: ProbePoint, twins: readonly Move[]): void {
    const gone = new Set(twins.map(({ to }) => to));
    const left = point.otherTwins.filter(({ to }) => !gone.has(to));
    point.otherTwins.splice(0, point.otherTwins.length, ...left);
  }

  /** A transaction that is made as a whole. */
  async #commit(
    sites: readonly SitePoke[],
    trapped: readonly ProbePoint[],
    operation: string,
    usesTraps = false,
  ): Promise<void> {
    const report = await this.#target.commit({
      sites,
      moves: [],
      trapSites: this.#trapSites(trapped),
      returnTables: [],
      vacate: [],
      usesTraps,
      finalCalls: [],
      why: operation === "disarm probes" ? "disarm" : "arm",
    });
    if (report.kind === "refused") throw await this.#refused(operation, report.reason);
  }

  /** Where an `int3` of ours stands. */
  #trapSites(points: readonly ProbePoint[]): bigint[] {
    const trapped = [...this.points, ...points].filter((point) => point.mechanism === "int3");
    return [...new Set(trapped.map((point) => point.at))];
  }

  async #poke(
    wanted: readonly { readonly point: ProbePoint; readonly poke: SitePoke }[],
    operation: string,
    retire?: Retirement,
  ): Promise<Extract<CommitReport, { kind: "committed" }>> {
    const sites: SitePoke[] = [];
    /** For each poke of `sites`: what to do when it was written. */
    const done: (() => void)[] = [];
    for (const { point, poke } of wanted) {
      const isTrap = poke.write[0] === INT3;
      const requires: number[] = [];
      for (const side of isTrap ? [] : point.sides) {
        if (side.isWritten) continue;
        requires.push(sites.length);
        sites.push(pokeToSide(side));
        done.push(() => {
          side.isWritten = true;
          this.#journal.setState(side.record, "armed");
        });
      }
      sites.push(requires.length === 0 ? poke : { ...poke, requires });
      done.push(() => {
        point.mechanism = isTrap ? "int3" : upperMechanism(point);
        this.#journal.setState(point.record, "armed");
      });
    }
    const report = await this.#target.commit({
      sites,
      moves: [],
      trapSites: this.#trapSites(wanted.map(({ point }) => point)),
      returnTables: [],
      vacate: [],
      usesTraps: sites.some((poke) => poke.write[0] === INT3),
      finalCalls: [],
      retire,
      why: operation === "optimize probes" ? "optimize" : "arm",
    });
    if (report.kind === "refused") throw await this.#refused(operation, report.reason);
    report.outcomes.forEach((outcome, index) => {
      if (outcome === "written") done[index]!();
    });
    return report;
  }
}

/** What the point is to have in the end. */
function upperMechanism(code: PointCode): "call" | "jump" | "punned" | "int3" {
  const { jumpBytes, route, isCall, hook } = code;
  if (hook !== undefined) return hook.mechanism;
  if (jumpBytes === undefined) return "int3";
  return isCall === true ? "call" : route === undefined ? "jump" : "punned";
}

/** Where a point's call leads, or is to lead as soon as it can be written. */
const goalOf = ({ jumpBytes, detour, isIdle }: ProbePoint): Redirection["to"] =>
  isIdle || jumpBytes === undefined ? undefined : { callBytes: jumpBytes, detour };

/** What stands at an armed point, over the length of its region. */
function bytesNow({ mechanism, oldBytes, jumpBytes }: ProbePoint): Uint8Array {
  return mechanism === "int3" ? trapBytes(oldBytes) : mechanism === "none" ? oldBytes : jumpBytes!;
}

/** Another session may have led the slot to a detour of its own: then the point is not ours alone, and the change is refused. */
function slotUnchanged({ detour, slot = SLOT, isCall }: ProbePoint): SitePoke[] {
  if (isCall === true) return [];
  return [{ at: detour, expect: slot, write: slot, fallback: undefined, moves: [], hasNoInside: true }];
}

function isLower({ mechanism, hook }: ProbePoint): boolean {
  return hook === undefined && (mechanism === "none" || mechanism === "int3");
}

/** A thread may stand at the first byte: it will execute the jump. */
function interiorMoves({ at, oldBytes, twins }: Pick<PointCode, "at" | "oldBytes" | "twins">): Move[] {
  const end = at + BigInt(oldBytes.length);
  return twins.filter(({ from }) => from > at && from < end);
}

function pokeToArm(point: PointCode): SitePoke {
  if (point.hook !== undefined) {
    const { slot, oldBytes, newBytes } = point.hook;
    return { at: slot, expect: oldBytes, write: newBytes, fallback: undefined, moves: [] };
  }
  return point.jumpBytes === undefined ? pokeToTrap(point) : pokeToJump(point, point.oldBytes);
}

/** `now`: what the region holds. */
function pokeToJump(point: PointCode, now: Uint8Array): SitePoke {
  return {
    at: point.at,
    expect: point.route === undefined ? now : Uint8Array.of(...now, ...point.route.kept),
    write: point.jumpBytes!,
    fallback: undefined,
    moves: interiorMoves(point),
  };
}

/** A call that stands there is one instruction, and so it has been since it was written. */
function pokeToRedirect({ point, to }: Redirection): SitePoke {
  const { at, mechanism, oldBytes, jumpBytes } = point;
  const now = mechanism === "call" ? jumpBytes! : mechanism === "int3" ? trapBytes(oldBytes) : oldBytes;
  return {
    at,
    expect: now,
    write: to?.callBytes ?? oldBytes,
    fallback: undefined,
    moves: mechanism === "call" ? [] : interiorMoves(point),
    hasNoInside: mechanism === "call" || to === undefined,
  };
}

function pokeToSide(side: SideCode): SitePoke {
  return {
    at: side.at,
    expect: side.oldBytes,
    write: side.newBytes,
    fallback: undefined,
    moves: interiorMoves(side),
    isSide: true,
    hasNoStart: side.kind === "padding",
  };
}

/** Only one byte changes, so that nothing can stand inside. */
function pokeToTrap(point: PointCode): SitePoke {
  return {
    at: point.at,
    expect: point.oldBytes.subarray(0, 1),
    write: Uint8Array.of(INT3),
    fallback: undefined,
    moves: [],
  };
}

/**
 * What is armed in one target: its probe points, how each is armed now, and the transactions that change it.
 *
 * The rules, in the order of a probe point's life:
 *   1. Journal first. A record of the old and the new bytes stands in the target before the text is touched.
 *   2. Detours first. A site is written only when the code that it leads to is in place.
 *   3. Arm now, optimise later (kprobes): a point whose region may be returned into by a signal handler gets its `int3`,
 *      and the optimizer tries the jump again in a later batch.
 *
 * Taking out is not done from here but from the journal (restoration.ts), as anybody else would do it.
 */
import type { CommitRefusal, CommitReport, Move, SitePoke, Transaction } from "../target/target.ts";
import type { Journal } from "./journal.ts";
import { trapBytes } from "./restoration.ts";

/** The part of a target that is needed here. */
export interface CommitPort {
  commit(transaction: Transaction): Promise<CommitReport>;
}

/** One address to be probed, with its code in place. */
export interface PointCode {
  readonly at: bigint;
  /** The bytes of the region that the jump displaces; for `int3` at least the first instruction. */
  readonly oldBytes: Uint8Array;
  /** What a jump writes over the region (same length); undefined when only `int3` is possible. */
  readonly jumpBytes: Uint8Array | undefined;
  readonly detour: bigint;
  /** From each displaced instruction's place in the text to its copy in the detour. */
  readonly twins: readonly Move[];
}

export type PointMechanism = "none" | "jump" | "int3";

export interface ProbePoint extends PointCode {
  readonly record: number;
  mechanism: PointMechanism;
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
      return (
        `text at 0x${refusal.at.toString(16)} is ${hex(refusal.found)}, expected ${hex(refusal.expected)}; ` +
        "another tool has patched it, or the file was replaced after the program was started"
      );
    case "sigtrap-blocked":
      return `thread ${refusal.tid} blocks SIGTRAP: an int3 would kill the process; probe a place that can take a jump`;
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
    const points = codes.map((code) => {
      const newBytes = code.jumpBytes ?? trapBytes(code.oldBytes);
      const mechanism = code.jumpBytes === undefined ? "int3" : "jump";
      const { at, oldBytes, detour } = code;
      const record = this.#journal.addSite({ at, oldBytes, newBytes, mechanism, detour });
      return { ...code, record, mechanism: "none" as PointMechanism };
    });
    const first = await this.#poke(
      points.map((point) => pokeToArm(point)),
      points,
      "arm probes",
    );
    this.points.push(...points);
    return { stoppedNs: first.stoppedNs, threads: first.threads };
  }

  /**
   * Arms points with `int3` that could not get their jump, since something may return into their region. The trap
   * handler must know them already.
   */
  async armTraps(points: readonly ProbePoint[]): Promise<void> {
    for (const point of points) this.#journal.changeSite(point.record, "int3", trapBytes(point.oldBytes));
    await this.#poke(
      points.map((point) => pokeToTrap(point)),
      points,
      "arm probes",
    );
  }

  /** Points that could take a jump and have not got it yet. */
  get unoptimized(): readonly ProbePoint[] {
    return this.points.filter((point) => point.mechanism !== "jump" && point.jumpBytes !== undefined);
  }

  /** One batch of the optimizer: tries to turn `int3` into the jump. Returns how many points were upgraded. */
  async optimize(): Promise<number> {
    const candidates = this.unoptimized;
    if (candidates.length === 0) return 0;
    const pokes = candidates.map((point): SitePoke => {
      // The record names the jump from now on; the trap, whose bytes differ from the jump's only in front, is
      // recognised by whoever restores.
      this.#journal.changeSite(point.record, "jump", point.jumpBytes!);
      return {
        at: point.at,
        expect: point.mechanism === "int3" ? trapBytes(point.oldBytes) : point.oldBytes,
        write: point.jumpBytes!,
        fallback: undefined,
        moves: interiorMoves(point),
      };
    });
    await this.#poke(pokes, candidates, "optimize probes");
    return candidates.filter((point) => point.mechanism === "jump").length;
  }

  /** From copies of instructions in detours to their originals: where threads go on when the text is put back. */
  get homeMoves(): Move[] {
    return this.points.flatMap((point) => point.twins.map(({ from, to }) => ({ from: to, to: from })));
  }

  /** Where an `int3` of ours stands. */
  #trapSites(points: readonly ProbePoint[]): bigint[] {
    const trapped = [...this.points, ...points].filter((point) => point.mechanism === "int3");
    return [...new Set(trapped.map((point) => point.at))];
  }

  async #poke(pokes: readonly SitePoke[], points: readonly ProbePoint[], operation: string) {
    const report = await this.#target.commit({
      sites: pokes,
      moves: [],
      trapSites: this.#trapSites(points),
      returnTables: [],
      vacate: [],
      usesTraps: pokes.some((poke) => poke.write[0] === INT3),
      finalCalls: [],
    });
    if (report.kind === "refused") throw new ArmError(operation, report.reason);
    report.outcomes.forEach((outcome, index) => {
      const point = points[index]!;
      if (outcome !== "written") return;
      point.mechanism = pokes[index]!.write[0] === INT3 ? "int3" : "jump";
      this.#journal.setState(point.record, "armed");
    });
    return report;
  }
}

/** A thread may stand at the first byte: it will execute the jump. */
function interiorMoves(point: PointCode): Move[] {
  const end = point.at + BigInt(point.oldBytes.length);
  return point.twins.filter(({ from }) => from > point.at && from < end);
}

function pokeToArm(point: PointCode): SitePoke {
  if (point.jumpBytes === undefined) return pokeToTrap(point);
  return {
    at: point.at,
    expect: point.oldBytes,
    write: point.jumpBytes,
    fallback: undefined,
    moves: interiorMoves(point),
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

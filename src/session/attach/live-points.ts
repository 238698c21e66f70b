/**
 * Probes that are added, removed, disabled and enabled while their target runs.
 *
 * A point keeps its plan and its first detour for as long as the session lasts. What is to run there is a list; for each list
 * that a point ever had there is one detour (or, at a patchable entry, one trampoline), made when it is first needed. Going
 * from one list to another is one write: of the slot of the first detour, or of the call. So to disable and enable is never
 * to plan or emit anything again, and a detour that somebody may be in is never overwritten. A point with nothing to run holds
 * its old bytes.
 *
 * A new point inside the region of an armed one needs that region back: the older point is lowered to an `int3` first.
 */
import { emitSlotJump, SLOT } from "../../patch/detour.ts";
import { planAsTrap } from "../../patch/plan.ts";
import { describeCommitRefusal, type ProbePoint, type ProbeSet } from "../../probe/probe-set.ts";
import type { CommitRefusal } from "../../target/target.ts";
import { SessionError } from "../session-error.ts";
import type { AttachedProbe, BuiltPoint, PlannedPoint, PointBuilder, RefusedPoint } from "./point-builder.ts";

/** The target as live points need it. */
export interface LivePointsPort {
  readonly probes: ProbeSet;
  readonly builder: Pick<PointBuilder, "build" | "buildCalls" | "trampolines">;
  arm(points: readonly PlannedPoint[]): Promise<{ readonly refused: readonly RefusedPoint[] }>;
  builtPoints(): readonly BuiltPoint[];
  setBuilt(built: readonly BuiltPoint[]): void;
  addTraps(built: readonly BuiltPoint[]): Promise<void>;
  /** Gives an `int3` to points that could not be written, and tells the trap handler where those lead that have one. */
  settle(trapped: readonly BuiltPoint[]): Promise<void>;
  trapObstacle(): CommitRefusal | undefined;
}

interface LivePoint {
  planned: PlannedPoint;
  readonly point: ProbePoint;
  /** All probes of the point, in the order in which they run. */
  probes: readonly AttachedProbe[];
  readonly disabled: Set<AttachedProbe>;
  /** What was built for a list of probes, by its probes' numbers. */
  readonly built: Map<string, BuiltPoint>;
  /** The list that runs now. */
  runs: string;
}

export class LivePoints {
  readonly #port: LivePointsPort;
  readonly #points = new Map<bigint, LivePoint>();
  /** Points of images that are unloaded. */
  readonly #unloaded = new Map<bigint, LivePoint>();
  readonly #numbers = new Map<AttachedProbe, number>();
  #last: Promise<unknown> = Promise.resolve();

  constructor(port: LivePointsPort) {
    this.#port = port;
  }

  /** Points whose image has been unloaded. */
  forget(points: readonly ProbePoint[]): void {
    move(points, this.#points, this.#unloaded);
  }

  /** Points that were forgotten, whose image is there again. */
  recall(points: readonly ProbePoint[]): void {
    move(points, this.#unloaded, this.#points);
  }

  /** Adds probes at their points; points that are armed already get longer lists. Throws when one cannot be armed. */
  add(points: readonly PlannedPoint[]): Promise<void> {
    return this.#inTurn(async () => {
      this.#adopt();
      const fresh: PlannedPoint[] = [];
      const grown: LivePoint[] = [];
      for (const planned of points) {
        const live = this.#points.get(planned.plan.at);
        if (live === undefined) fresh.push(planned);
        else {
          live.probes = [...live.probes, ...planned.probes];
          grown.push(live);
        }
      }
      try {
        for (const { plan } of fresh) await this.#clear(plan.at);
        const { refused } = fresh.length === 0 ? { refused: [] } : await this.#port.arm(fresh);
        const [first] = refused;
        if (first !== undefined)
          throw new SessionError("cannot-probe", {
            operation: "probe",
            object: `0x${first.planned.plan.at.toString(16)}`,
            reason: first.refusal.reason,
          });
        this.#adopt();
        for (const live of grown) await this.#settle(live);
      } catch (error) {
        const added = new Set(points.flatMap(({ probes }) => probes));
        for (const live of grown) live.probes = live.probes.filter((probe) => !added.has(probe));
        throw error;
      }
    });
  }

  /** Takes probes away from all points; the others of their points stay. */
  remove(probes: ReadonlySet<AttachedProbe>): Promise<void> {
    return this.#change(probes, (live) => {
      live.probes = live.probes.filter((probe) => !probes.has(probe));
      for (const probe of probes) live.disabled.delete(probe);
    });
  }

  disable(probes: ReadonlySet<AttachedProbe>): Promise<void> {
    return this.#change(probes, (live) => {
      for (const probe of live.probes) if (probes.has(probe)) live.disabled.add(probe);
    });
  }

  enable(probes: ReadonlySet<AttachedProbe>): Promise<void> {
    return this.#change(probes, (live) => {
      for (const probe of probes) live.disabled.delete(probe);
    });
  }

  /** Disarms whole points, whatever runs there. */
  disarm(addresses: readonly bigint[]): Promise<void> {
    return this.#inTurn(async () => {
      this.#adopt();
      for (const at of addresses) {
        const live = this.#points.get(at);
        if (live === undefined) continue;
        for (const probe of live.probes) live.disabled.add(probe);
        await this.#settle(live);
      }
    });
  }

  #change(probes: ReadonlySet<AttachedProbe>, apply: (live: LivePoint) => void): Promise<void> {
    return this.#inTurn(async () => {
      this.#adopt();
      for (const live of this.#points.values()) {
        if (!live.probes.some((probe) => probes.has(probe))) continue;
        apply(live);
        await this.#settle(live);
      }
    });
  }

  /** Does something that must not meet a change. */
  exclusively(work: () => Promise<void>): Promise<void> {
    return this.#inTurn(work);
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#last.then(work);
    this.#last = done.catch(() => {});
    return done;
  }

  /** Takes over what was armed since. */
  #adopt(): void {
    const points = new Map(this.#port.probes.points.map((point) => [point.at, point]));
    for (const built of this.#port.builtPoints()) {
      const { planned, code } = built;
      const { at } = planned.plan;
      const point = points.get(code.at);
      if (point === undefined || this.#points.has(at)) continue;
      const runs = this.#keyOf(planned.probes);
      this.#points.set(at, {
        planned,
        point,
        probes: planned.probes,
        disabled: new Set(),
        built: new Map([[runs, built]]),
        runs,
      });
    }
  }

  #keyOf(probes: readonly AttachedProbe[]): string {
    return probes
      .map((probe) => {
        const known = this.#numbers.get(probe) ?? this.#numbers.size;
        this.#numbers.set(probe, known);
        return known;
      })
      .join(" ");
  }

  /** Makes what runs at a point what is to run there. */
  async #settle(live: LivePoint): Promise<void> {
    const { planned, point } = live;
    const { probes: set } = this.#port;
    const probes = live.probes.filter((probe) => !live.disabled.has(probe));
    const key = this.#keyOf(probes);
    if (key === live.runs) return;
    if (point.hook !== undefined)
      throw new SessionError("cannot-probe", {
        operation: "change the probes of",
        object: `0x${planned.plan.at.toString(16)}`,
        reason: "another tracer's probes are there, too; end that one first",
      });
    if (probes.length === 0) {
      await set.disarm([point]);
      live.runs = key;
      return;
    }
    const built = live.built.get(key) ?? (await this.#build(live, probes));
    live.built.set(key, built);
    if (point.isCall === true) {
      const to = { callBytes: built.code.jumpBytes!, detour: built.detour.entry };
      point.isIdle = false;
      await set.change([], [{ point, to }]);
    } else {
      const { entry } = built.detour;
      // The list that the first detour was made for runs in that one.
      const slot = entry === point.detour ? SLOT : emitSlotJump(point.detour, entry);
      if (!same(slot, point.slot ?? SLOT)) await set.lead([{ point, slot, code: built.code }]);
      if (point.isIdle) await set.rearm([point]);
    }
    live.runs = key;
    await this.#port.settle(point.isCall === true && point.mechanism === "int3" ? [built] : []);
  }

  async #build(live: LivePoint, probes: readonly AttachedProbe[]): Promise<BuiltPoint> {
    const { planned, point } = live;
    if (point.isCall === true) {
      const [call] = await this.#port.builder.buildCalls([{ ...planned, probes }]);
      this.#port.builder.trampolines.hold(call!.called!);
      return call!;
    }
    // The way from the text to the first detour stays, so the new one is emitted as for a trap, which has none.
    const plan = { ...planned.plan, mechanism: "int3" as const, route: undefined };
    const { built, refused } = await this.#port.builder.build([{ ...planned, plan, probes }]);
    const [first] = built;
    if (first === undefined)
      throw new SessionError("cannot-probe", {
        operation: "change the probes of",
        object: `0x${planned.plan.at.toString(16)}`,
        reason: refused[0]!.refusal.reason,
      });
    return first;
  }

  /** Lowers the point whose region an address lies in. */
  async #clear(at: bigint): Promise<void> {
    for (const live of this.#points.values()) {
      const { planned, point } = live;
      const end = point.at + BigInt(point.oldBytes.length);
      if (at <= point.at || at >= end || point.isCall === true) continue;
      const refusal = { reason: "other-probe-in-region", at } as const;
      const plan = planAsTrap(planned.code, planned.plan, refusal);
      const obstacle = this.#port.trapObstacle();
      if (plan.kind === "refused" || obstacle !== undefined)
        throw new SessionError("cannot-probe", {
          operation: "probe",
          object: `0x${at.toString(16)}`,
          reason:
            `it is in the region of the probe at 0x${point.at.toString(16)}, which would need an int3` +
            (obstacle === undefined ? "" : `: ${describeCommitRefusal(obstacle)}`),
        });
      const lowered = { ...planned, plan };
      const enabled = live.probes.filter((probe) => !live.disabled.has(probe));
      const probes = enabled.length === 0 ? live.probes : enabled;
      const built = (await this.#port.builder.build([{ ...lowered, probes }])).built[0]!;
      await this.#port.addTraps([built]);
      await this.#port.probes.lower(point, built.code);
      this.#port.setBuilt([built]);
      live.planned = lowered;
      live.built.clear();
      const runs = this.#keyOf(probes);
      live.built.set(runs, built);
      live.runs = enabled.length === 0 ? "" : runs;
    }
  }
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

function move(points: readonly ProbePoint[], from: Map<bigint, LivePoint>, to: Map<bigint, LivePoint>): void {
  const wanted = new Set(points);
  for (const [at, live] of from) {
    if (!wanted.has(live.point)) continue;
    from.delete(at);
    to.set(at, live);
  }
}

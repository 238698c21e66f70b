/**
 * Probes that are added, removed, disabled and enabled while their target runs.
 *
 * A point keeps its plan and its first detour for as long as the session lasts. What is to run there is a list; for each list
 * that a point ever had there is one detour, made when it is first needed. Going from one list to another is one write, of the
 * slot of the first detour; all points of a change are written in one transaction. A call at a patchable entry belongs to the
 * function ops, which are told the list. So to disable and enable is never
 * to plan or emit anything again, and a detour that somebody may be in is never overwritten. A point with nothing to run holds
 * its old bytes.
 *
 * A new point inside the region of an armed one needs that region back: the older point is lowered to an `int3` first.
 */
import { emitSlotJump, SLOT } from "../../patch/detour.ts";
import { planAsTrap } from "../../patch/plan.ts";
import { describeCommitRefusal, type ProbePoint, type ProbeSet } from "../../probe/probe-set.ts";
import { sameBytes } from "../../target/process/commit.ts";
import type { CommitRefusal } from "../../target/target.ts";
import { SessionError } from "../session-error.ts";
import type { FunctionOps } from "./function-ops.ts";
import type { AttachedProbe, BuiltPoint, PlannedPoint, PointBuilder, RefusedPoint } from "./point-builder.ts";

/** The target as live points need it. */
export interface LivePointsPort {
  readonly probes: ProbeSet;
  readonly builder: Pick<PointBuilder, "build" | "retirementOf" | "free">;
  /** The owner of all calls. */
  functionOps(): Pick<FunctionOps, "change" | "listedAt">;
  arm(points: readonly PlannedPoint[]): Promise<{ readonly refused: readonly RefusedPoint[] }>;
  /** Makes names of new code known. */
  link(): Promise<void>;
  builtPoints(): readonly BuiltPoint[];
  setBuilt(built: readonly BuiltPoint[]): void;
  addTraps(built: readonly BuiltPoint[]): Promise<void>;
  /** Gives an `int3` to points that could not be written. */
  settle(): Promise<void>;
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

/** A point that is to run another list. */
interface Change {
  readonly live: LivePoint;
  readonly probes: readonly AttachedProbe[];
  readonly key: string;
}

const isCall = ({ live }: Change): boolean => live.point.isCall === true;
const isHeld = ({ live }: Change): boolean => live.point.hook !== undefined;

/** Detours that nothing leads to are not worth stopping threads for below this. */
const WORTH_BYTES = 4 << 10;

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
      const calls: PlannedPoint[] = [];
      const grown: LivePoint[] = [];
      for (const planned of points) {
        const live = this.#points.get(planned.plan.at);
        if (live !== undefined) grown.push(live);
        else if (planned.plan.mechanism === "call") calls.push(planned);
        else fresh.push(planned);
        if (live?.point.isCall === true && planned.probes.some(({ when }) => when !== "entry"))
          throw cannot(
            "probe",
            planned.plan.at,
            "a call is there, which knows of no returns; remove its probes first",
          );
      }
      const probes = new Set(points.flatMap((planned) => planned.probes));
      try {
        for (const { plan } of [...fresh, ...calls]) await this.#clear(plan.at);
        const { refused } = fresh.length === 0 ? { refused: [] } : await this.#port.arm(fresh);
        const first = refused.find(({ planned }) => planned.isOptional !== true);
        if (first !== undefined) throw cannot("probe", first.planned.plan.at, first.refusal.reason);
        this.#adopt();
        for (const planned of points) {
          const live = this.#points.get(planned.plan.at);
          if (live !== undefined && grown.includes(live)) live.probes = [...live.probes, ...planned.probes];
        }
        await this.#settle(grown, calls);
        this.#adopt();
        if (calls.length > 0) await this.#port.link();
      } catch (error) {
        // As much as can be is as before.
        this.#adopt();
        const changed = [...this.#points.values()].filter((live) =>
          live.probes.some((probe) => probes.has(probe)),
        );
        for (const live of changed) live.probes = live.probes.filter((probe) => !probes.has(probe));
        await this.#settle(changed).catch(() => {});
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

  /** Disables all probes of this kind, whichever points they are at. */
  disableWhere(matches: (probe: AttachedProbe) => boolean): Promise<void> {
    return this.#inTurn(async () => {
      this.#adopt();
      const changed = [...this.#points.values()].filter((live) => live.probes.some(matches));
      for (const live of changed)
        for (const probe of live.probes) if (matches(probe)) live.disabled.add(probe);
      await this.#settle(changed);
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
      const changed = addresses.flatMap((at) => this.#points.get(at) ?? []);
      for (const live of changed) for (const probe of live.probes) live.disabled.add(probe);
      await this.#settle(changed);
    });
  }

  #change(probes: ReadonlySet<AttachedProbe>, apply: (live: LivePoint) => void): Promise<void> {
    return this.#inTurn(async () => {
      this.#adopt();
      const changed = [...this.#points.values()].filter((live) =>
        live.probes.some((probe) => probes.has(probe)),
      );
      for (const live of changed) apply(live);
      await this.#settle(changed);
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
      const probes = point.isCall === true ? this.#port.functionOps().listedAt(at) : planned.probes;
      if (probes.length === 0) continue;
      const runs = this.#keyOf(probes);
      this.#points.set(at, {
        planned,
        point,
        probes,
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

  /** Makes what runs at points what is to run there. `calls` are functions where nothing of ours runs yet. */
  async #settle(points: readonly LivePoint[], calls: readonly PlannedPoint[] = []): Promise<void> {
    const changed = points.flatMap((live) => {
      const probes = live.probes.filter((probe) => !live.disabled.has(probe));
      const key = this.#keyOf(probes);
      return key === live.runs ? [] : [{ live, probes, key }];
    });
    const lists = [
      ...calls.map((place) => ({ place, probes: place.probes })),
      ...changed.filter(isCall).map(({ live, probes }) => ({ place: live.planned, probes })),
    ];
    if (lists.length > 0) await this.#port.functionOps().change({ lists });
    for (const { live, key } of changed.filter(isCall)) live.runs = key;

    const others = changed.filter((change) => !isCall(change) && !isHeld(change));
    await this.#empty(others.filter(({ probes }) => probes.length === 0));
    await this.#lead(others.filter(({ probes }) => probes.length > 0));
    const [first] = changed.filter(isHeld);
    if (first !== undefined)
      throw cannot(
        "change the probes of",
        first.live.planned.plan.at,
        `process ${first.live.planned.plan.held!.tracer} has traced it before, and its probes were there first; a point that is shared cannot be changed`,
      );
  }

  async #empty(changes: readonly Change[]): Promise<void> {
    if (changes.length === 0) return;
    await this.#port.probes.disarm(changes.map(({ live }) => live.point));
    for (const { live, key } of changes) live.runs = key;
  }

  /** Leads points to detours of other lists. */
  async #lead(changes: readonly Change[]): Promise<void> {
    if (changes.length === 0) return;
    const { probes: set } = this.#port;
    await this.#build(changes.filter(({ live, key }) => !live.built.has(key)));
    const leads = changes.flatMap(({ live, key }) => {
      const { point } = live;
      const { detour, code } = live.built.get(key)!;
      // The list that the first detour was made for runs in that one.
      const slot = detour.entry === point.detour ? SLOT : emitSlotJump(point.detour, detour.entry);
      return sameBytes(slot, point.slot ?? SLOT) ? [] : [{ point, slot, code }];
    });
    if (leads.length > 0) await set.lead(leads);
    const idle = changes.flatMap(({ live: { point } }) => (point.isIdle ? [point] : []));
    if (idle.length > 0) await set.rearm(idle);
    for (const { live, key } of changes) live.runs = key;
    await this.#port.settle();
    await this.#reclaim();
  }

  /** Takes back the memory of detours that nothing leads to and nobody is in, once there is much of it. */
  async #reclaim(): Promise<void> {
    const { builder, probes: set } = this.#port;
    const unused = [...this.#points.values()].flatMap((live) =>
      [...live.built].flatMap(([key, built]) => {
        const isUsed =
          key === live.runs || built.detour.entry === live.point.detour || isSlotTo(live.point, built);
        return isUsed || live.point.isCall === true || built.detour.kind !== "detour"
          ? []
          : [{ live, key, built, detour: built.detour }];
      }),
    );
    const bytes = unused.reduce((sum, { detour }) => sum + detour.bytes.length, 0);
    if (bytes < WORTH_BYTES) return;
    const vacant = await set.findVacant(builder.retirementOf(unused.map(({ detour }) => detour)));
    const free = unused.filter((_, index) => vacant[index] === true);
    for (const { live, key, built } of free) {
      live.built.delete(key);
      set.forgetTwins(live.point, built.code.twins);
    }
    builder.free(free.map(({ detour }) => detour));
  }

  async #build(changes: readonly Change[]): Promise<void> {
    if (changes.length === 0) return;
    // The way from the text to the first detour stays, so the new one is emitted as for a trap, which has none.
    const { built, refused } = await this.#port.builder.build(
      changes.map(({ live: { planned }, probes }) => {
        const plan = { ...planned.plan, mechanism: "int3" as const, route: undefined };
        return { ...planned, plan, probes };
      }),
    );
    const [first] = refused;
    if (first !== undefined)
      throw cannot("change the probes of", first.planned.plan.at, first.refusal.reason);
    const builtAt = new Map(built.map((each) => [each.planned.plan.at, each]));
    for (const { live, key } of changes) live.built.set(key, builtAt.get(live.planned.plan.at)!);
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
        throw cannot(
          "probe",
          at,
          `it is in the region of the probe at 0x${point.at.toString(16)}, which would need an int3` +
            (obstacle === undefined ? "" : `: ${describeCommitRefusal(obstacle)}`),
        );
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

function cannot(operation: string, at: bigint, reason: string): SessionError {
  return new SessionError("cannot-probe", { operation, object: `0x${at.toString(16)}`, reason });
}

/** Whether the slot of a point's first detour leads to a detour: also while nothing runs there. */
function isSlotTo({ slot = SLOT, detour }: ProbePoint, built: BuiltPoint): boolean {
  return built.detour.entry !== detour && sameBytes(slot, emitSlotJump(detour, built.detour.entry));
}

function move(points: readonly ProbePoint[], from: Map<bigint, LivePoint>, to: Map<bigint, LivePoint>): void {
  const wanted = new Set(points);
  for (const [at, live] of from) {
    if (!wanted.has(live.point)) continue;
    from.delete(at);
    to.set(at, live);
  }
}

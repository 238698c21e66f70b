/**
 * Consumers of function entries that come and go while the target runs: an ops is one consumer with the set of functions
 * that it wants.
 *
 * Each function's call leads to the trampoline for exactly the list of consumers that it has at the moment. Adding or taking
 * away a consumer is one transaction, in which the calls of its functions change: from NOPs to a call, from one trampoline
 * to another, or back to NOPs. A consumer that stays is in the list before and after, so none of its hits is lost, and none is
 * counted twice: a thread that has taken the old call finishes the old list.
 *
 * What live points have at a function (a list of their own) and the ops run in one trampoline, the list in front: nobody else
 * changes a call. Only functions with a patchable entry are served; others get detours of their own.
 */
import type { RefusedSite } from "../../patch/plan.ts";
import { planSites } from "../../patch/plan.ts";
import type { ArmReport, ProbePoint, ProbeSet, Redirection } from "../../probe/probe-set.ts";
import type { ProcessImages } from "../../target/process/images.ts";
import type { AttachedProbe, BuiltPoint, PlannedPoint, PointBuilder } from "./point-builder.ts";
import type { CodeCache } from "./probe-resolution.ts";
import type { PlacedTrampoline } from "./trampoline-store.ts";

/** What runs at each of its functions. */
export type FunctionConsumer = Omit<AttachedProbe, "when">;

/** Which functions: by address, or by name or pattern of names in the images of a name. */
export type FunctionFilter =
  | { readonly kind: "addresses"; readonly addresses: readonly bigint[] }
  | { readonly kind: "symbols"; readonly image: string; readonly symbol: string };

/** A function whose entry can take a call. */
export type FunctionSite = Omit<PlannedPoint, "probes" | "returns">;

/** A registered consumer: to be kept in order to unregister it. */
export interface FunctionOp {
  readonly consumer: FunctionConsumer;
  readonly sites: readonly FunctionSite[];
}

export interface OpsChange {
  readonly add?: readonly FunctionOp[];
  readonly remove?: readonly FunctionOp[];
  readonly lists?: readonly FunctionList[];
}

/** What is to run at a function before the ops do. */
export interface FunctionList {
  readonly place: FunctionSite;
  readonly probes: readonly AttachedProbe[];
}

/** The target as the ops need it. */
export interface FunctionOpsPort {
  readonly images: ProcessImages;
  readonly probes: ProbeSet;
  readonly builder: PointBuilder;
  /** Room for records in the journal. */
  readonly journalRemaining: () => number;
  /** Does something while other tracers are kept away from the target. */
  readonly locked: <Result>(use: () => Promise<Result>) => Promise<Result>;
  /** Writes into the journal what images the points are in. */
  readonly noteImages: (built: readonly BuiltPoint[]) => void;
  /** Takes note of what is built at the calls' places now. */
  readonly setBuilt: (built: readonly BuiltPoint[]) => void;
  /** Gives an `int3` to points that could not be written, and tells the trap handler where those lead that have one. */
  readonly settle: (trapped: readonly BuiltPoint[]) => Promise<void>;
}

interface Site extends Wanted {
  readonly point: ProbePoint;
  trampoline: PlacedTrampoline | undefined;
}

interface Wanted {
  readonly place: FunctionSite;
  /** What somebody else has listed. */
  listed: readonly AttachedProbe[];
  /** What is registered, in its order. */
  registered: readonly AttachedProbe[];
}

const allOf = ({ listed, registered }: Wanted): readonly AttachedProbe[] => [...listed, ...registered];

/** A change of more functions than the journal can remember. */
export class TooManyFunctionsError extends Error {
  readonly code = "too-many-functions";
  readonly functions: number;
  readonly room: number;
  constructor(functions: number, room: number) {
    super(`register probes at ${functions} functions: the journal of this process has room for ${room} more`);
    this.name = "TooManyFunctionsError";
    this.functions = functions;
    this.room = room;
  }
}

export class FunctionOps {
  readonly #port: FunctionOpsPort;
  /** By the address of the function. */
  readonly #sites = new Map<bigint, Site>();
  /** Sites of images that are unloaded; they keep their trampolines. */
  readonly #unloaded = new Map<bigint, Site>();
  /** What runs for each registered ops: the same consumer can be registered twice. */
  readonly #ops = new Map<FunctionOp, AttachedProbe>();
  #last: Promise<unknown> = Promise.resolve();

  constructor(port: FunctionOpsPort) {
    this.#port = port;
  }

  /** Points whose image has been unloaded. */
  forget(points: readonly ProbePoint[]): void {
    for (const { at, site } of this.#found(points, this.#sites)) {
      this.#sites.delete(at);
      this.#unloaded.set(at, site);
    }
  }

  /** Points that were forgotten, whose image is there again. */
  recall(points: readonly ProbePoint[]): void {
    for (const { at, site } of this.#found(points, this.#unloaded)) {
      this.#unloaded.delete(at);
      this.#sites.set(at, site);
    }
  }

  #found(points: readonly ProbePoint[], sites: ReadonlyMap<bigint, Site>) {
    const wanted = new Set(points);
    return [...sites].flatMap(([at, site]) => (wanted.has(site.point) ? [{ at, site }] : []));
  }

  /** Points with calls that were armed otherwise: what runs there runs before what is registered here. */
  adopt(built: readonly BuiltPoint[]): void {
    const { points } = this.#port.probes;
    const pointAt = new Map(points.map((point) => [point.at, point]));
    for (const { planned, code, called } of built) {
      if (called === undefined) continue;
      this.#port.builder.trampolines.hold(called);
      const point = pointAt.get(code.at)!;
      const { probes } = planned;
      const site: Site = { place: planned, point, listed: probes, registered: [], trampoline: called };
      this.#sites.set(planned.plan.at, site);
    }
  }

  /** The functions that a filter selects, and why others of them cannot take a call. */
  find(filter: FunctionFilter, codes: CodeCache): { sites: FunctionSite[]; refused: RefusedSite[] } {
    const { images, probes } = this.#port;
    const locations =
      filter.kind === "addresses"
        ? filter.addresses.flatMap((address) => {
            const image = images.findImageAt(address);
            return image === undefined ? [] : [{ image, addr: address }];
          })
        : images.resolve(filter.image, { kind: "symbol", symbol: filter.symbol }).locations;
    const byImage = new Map<(typeof locations)[number]["image"], Set<bigint>>();
    const sites: FunctionSite[] = [];
    const refused: RefusedSite[] = [];
    for (const { image, addr } of locations) {
      const known = this.#sites.get(addr);
      if (known !== undefined) sites.push(known.place);
      else byImage.set(image, (byImage.get(image) ?? new Set()).add(addr));
    }
    const armed = probes.points.map(({ at }) => at);
    for (const [image, addresses] of byImage) {
      const code = codes.of(image);
      const range = { start: image.start, end: image.end };
      for (const plan of planSites(code, [...addresses], { mechanism: "call", armed }))
        if (plan.kind === "refused") refused.push(plan);
        else sites.push({ plan, code, image: { name: image.name, range } });
    }
    return { sites, refused };
  }

  /** Lets a consumer run at its functions. Throws `ArmError` when the target refuses, and nothing has changed then. */
  async register(consumer: FunctionConsumer, sites: readonly FunctionSite[]): Promise<FunctionOp> {
    const op: FunctionOp = { consumer, sites };
    await this.change({ add: [op] });
    return op;
  }

  async unregister(op: FunctionOp): Promise<ArmReport | undefined> {
    return await this.change({ remove: [op] });
  }

  /** Any number of consumers at once, in one transaction; undefined: nothing of the text had to change. */
  change(change: OpsChange): Promise<ArmReport | undefined> {
    const done = this.#last.then(() => this.#port.locked(() => this.#change(change)));
    this.#last = done.catch(() => {});
    return done;
  }

  /** The consumers of a function at the moment, in the order in which they run. */
  probesAt(fn: bigint): readonly AttachedProbe[] {
    const site = this.#sites.get(fn);
    return site === undefined ? [] : allOf(site);
  }

  /** Those of them that are not registered here. */
  listedAt(fn: bigint): readonly AttachedProbe[] {
    return this.#sites.get(fn)?.listed ?? [];
  }

  async #change({ add = [], remove = [], lists = [] }: OpsChange): Promise<ArmReport | undefined> {
    for (const op of remove) if (!this.#ops.has(op)) throw new Error("unregister: it is not registered");
    const removed = new Set(remove.map((op) => this.#ops.get(op)));
    const added = new Map(
      add.map((op): [FunctionOp, AttachedProbe] => [op, { ...op.consumer, when: "entry" }]),
    );
    const wanted = new Map<bigint, Wanted>();
    const entryOf = (place: FunctionSite) => {
      const { at } = place.plan;
      const { listed = [], registered = [] } = this.#sites.get(at) ?? {};
      const entry = wanted.get(at) ?? {
        place,
        listed,
        registered: registered.filter((probe) => !removed.has(probe)),
      };
      wanted.set(at, entry);
      return entry;
    };
    for (const { sites } of remove) for (const place of sites) entryOf(place);
    for (const [{ sites }, probe] of added)
      for (const place of sites) {
        const entry = entryOf(place);
        entry.registered = [...entry.registered, probe];
      }
    for (const { place, probes } of lists) entryOf(place).listed = probes;
    const report = await this.#lead([...wanted.values()]);
    for (const [op, probe] of added) this.#ops.set(op, probe);
    for (const op of remove) this.#ops.delete(op);
    return report;
  }

  /** Makes each function's call lead to the trampoline for its list. */
  async #lead(wanted: readonly Wanted[]): Promise<ArmReport | undefined> {
    const { builder, probes: set } = this.#port;
    const { trampolines } = builder;
    const room = this.#port.journalRemaining();
    const lists = wanted.map((each) => ({ ...each, probes: allOf(each) }));
    const fresh = lists.filter(({ place, probes }) => probes.length > 0 && !this.#sites.has(place.plan.at));
    if (fresh.length > room) throw new TooManyFunctionsError(fresh.length, room);
    const built = await builder.buildCalls(
      lists.flatMap(({ place, probes }) => (probes.length === 0 ? [] : [{ ...place, probes }])),
    );
    const builtAt = new Map(built.map((each) => [each.planned.plan.at, each]));
    const redirections: Redirection[] = [];
    for (const { place } of wanted) {
      const site = this.#sites.get(place.plan.at);
      const to = builtAt.get(place.plan.at);
      if (site === undefined || site.trampoline === to?.called) continue;
      redirections.push({
        point: site.point,
        to: to === undefined ? undefined : { callBytes: to.code.jumpBytes!, detour: to.detour.entry },
      });
    }
    const codes = fresh.map(({ place }) => builtAt.get(place.plan.at)!.code);
    if (codes.length === 0 && redirections.length === 0) {
      for (const { place, listed, registered } of wanted) {
        const site = this.#sites.get(place.plan.at);
        if (site !== undefined) Object.assign(site, { listed, registered });
      }
      return undefined;
    }

    this.#port.noteImages(built);
    const aims = built.map(({ called }) => called!);
    for (const aim of aims) trampolines.hold(aim);
    const retirement = trampolines.retirement(aims);
    let report: ArmReport;
    try {
      report = await set.change(codes, redirections, retirement?.retire);
    } catch (error) {
      for (const aim of aims) trampolines.release(aim);
      throw error;
    }
    if (retirement !== undefined) trampolines.reclaim(retirement.of, report.retired ?? []);

    const points = new Map(set.points.map((point) => [point.at, point]));
    this.#port.setBuilt(built);
    const trapped: BuiltPoint[] = [];
    for (const { place, listed, registered } of wanted) {
      const { at } = place.plan;
      const to = builtAt.get(at);
      const site = this.#sites.get(at);
      if (site?.trampoline !== undefined) trampolines.release(site.trampoline);
      if (site !== undefined) {
        Object.assign(site, { listed, registered });
        site.trampoline = to?.called;
        if (to !== undefined && site.point.mechanism === "int3") trapped.push(to);
      } else if (to !== undefined) {
        const point = points.get(to.code.at)!;
        this.#sites.set(at, { place, point, listed, registered, trampoline: to.called });
      }
    }
    await this.#port.settle(trapped);
    return report;
  }
}

/**
 * `--budget`: what probes may cost, as a share of the target's own processor time. About once a second the hits of each place
 * are looked at, and places that together have cost more are disarmed, hottest first; the rest of their probes goes on.
 */
import { findBlown } from "../../probe/cost-fuse.ts";
import { ArmError } from "../../probe/probe-set.ts";
import { readCpuTimeNs } from "../../target/process/proc-fs.ts";
import type { SessionIo, TraceOptions } from "../options.ts";
import { SessionError } from "../session-error.ts";
import type { CountedSite, Targets } from "../targets.ts";
import type { HitCosts } from "./hit-cost.ts";

const PERIOD_MS = 1000;

interface Watched {
  cpuNs: number;
  readonly hits: Map<CountedSite["account"], bigint>;
}

export class Budget {
  readonly #share: number;
  readonly #costs: HitCosts;
  readonly #targets: Targets;
  readonly #io: SessionIo;
  readonly #format: TraceOptions["format"];
  readonly #watched = new Map<number, Watched>();
  readonly #disarmed = new Set<CountedSite["account"]>();
  #hasFailed = false;
  #lastMs = performance.now();

  /** `share` of 1. */
  constructor(
    share: number,
    costs: HitCosts,
    targets: Targets,
    options: Pick<TraceOptions, "format">,
    io: SessionIo,
  ) {
    this.#share = share;
    this.#costs = costs;
    this.#targets = targets;
    this.#io = io;
    this.#format = options.format;
  }

  /** To be called often: looks once a period, and disarms what has cost too much. */
  async check(): Promise<void> {
    const nowMs = performance.now();
    const periodMs = nowMs - this.#lastMs;
    if (periodMs < PERIOD_MS) return;
    this.#lastMs = nowMs;
    const byTarget = new Map<CountedSite["attachment"], ReturnType<Budget["sitesOf"]>>();
    for (const { attachment } of this.#targets.siteHits)
      if (!byTarget.has(attachment)) byTarget.set(attachment, this.sitesOf(attachment));
    for (const [attachment, sites] of byTarget) {
      const { pid, hasEnded } = attachment.target;
      if (hasEnded) continue;
      const cpuNs = readCpuTimeNs(pid);
      const watched = this.#watched.get(pid);
      const now: Watched = { cpuNs, hits: new Map(sites.map(({ account, total }) => [account, total])) };
      this.#watched.set(pid, now);
      // The first period begins when everything is armed.
      if (watched === undefined) continue;
      const costs = sites.map(({ at, account, total, nsPerHit }) => {
        const hits = Number(total - (watched.hits.get(account) ?? 0n));
        return { at, account, hits, nsPerHit };
      });
      const blown = findBlown(costs, cpuNs - watched.cpuNs, this.#share);
      if (blown.length === 0) continue;
      try {
        await attachment.livePoints.disarm(blown.map(({ at }) => at));
      } catch (error) {
        // Another tracer's probes are there, too, or the process is ending.
        if (!(error instanceof ArmError || error instanceof SessionError)) throw error;
        if (!this.#hasFailed)
          this.#io.err.write(`note: the budget of process ${pid} cannot be kept: ${error.message}\n`);
        this.#hasFailed = true;
        continue;
      }
      for (const { at, hits, share } of blown) {
        const account = costs.find((site) => site.at === at)!.account;
        this.#disarmed.add(account);
        this.#report(attachment, at, (hits * 1000) / periodMs, share);
      }
    }
  }

  /** Armed places of a target with what a hit costs there. */
  sitesOf(attachment: CountedSite["attachment"]) {
    return this.#targets.siteHits
      .filter((site) => site.attachment === attachment && !this.#disarmed.has(site.account))
      .map(({ account, hits, point }) => {
        const { at } = point.plan;
        const programs = point.probes.map(({ run }) =>
          run.kind === "program" ? this.#costs.programNs[run.index]! : 0,
        );
        const trapNs = attachment.mechanismAt(at) === "int3" ? this.#costs.trapNs : 0;
        return { at, account, total: hits, nsPerHit: programs.reduce((sum, ns) => sum + ns, trapNs) };
      });
  }

  #report(attachment: CountedSite["attachment"], at: bigint, hitsPerSecond: number, share: number): void {
    const { pid } = attachment.target;
    const site = attachment.images.symbolize(at).text;
    const rate = Math.round(hitsPerSecond);
    const percent = (part: number) => `${Number((part * 100).toPrecision(2))}%`;
    if (this.#format === "json") {
      const data = { pid, site, at: `0x${at.toString(16)}`, hits_per_second: rate, share };
      this.#io.out.write(`${JSON.stringify({ type: "disarmed", data })}\n`);
    }
    this.#io.err.write(
      `disarmed ${site} in process ${pid}: ${rate} hits per second cost an estimated ${percent(share)} of its processor time, ` +
        `and the budget is ${percent(this.#share)}\n`,
    );
  }
}

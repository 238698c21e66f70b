/** Which probe points cost more than they may: plain arithmetic on what was counted in a period. */

/** What one armed point has cost in a period. */
export interface SiteCost {
  readonly at: bigint;
  readonly hits: number;
  /** Estimated nanoseconds of one hit. */
  readonly nsPerHit: number;
}

export interface BlownSite extends SiteCost {
  /** Its part of the target's processor time in the period. */
  readonly share: number;
}

/**
 * The hottest points, hottest first, without which the others stay within `budget`, a share of `cpuNs`, the target's processor
 * time in the period.
 */
export function findBlown(sites: readonly SiteCost[], cpuNs: number, budget: number): BlownSite[] {
  if (cpuNs <= 0) return [];
  const costOf = ({ hits, nsPerHit }: SiteCost): number => hits * nsPerHit;
  let left = sites.reduce((sum, site) => sum + costOf(site), 0);
  const blown: BlownSite[] = [];
  for (const site of [...sites].sort((a, b) => costOf(b) - costOf(a))) {
    if (left <= budget * cpuNs) break;
    left -= costOf(site);
    blown.push({ ...site, share: costOf(site) / cpuNs });
  }
  return blown;
}

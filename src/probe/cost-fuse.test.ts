import { describe, expect, it } from "vitest";
import { findBlown, type SiteCost } from "./cost-fuse.ts";

const site = (at: number, hits: number, nsPerHit = 10): SiteCost => ({ at: BigInt(at), hits, nsPerHit });

describe("points that blow the fuse", () => {
  const cases: readonly {
    readonly name: string;
    readonly sites: readonly SiteCost[];
    readonly cpuNs?: number;
    readonly blown: readonly (readonly [at: bigint, share: number])[];
  }[] = [
    { name: "none within the budget", sites: [site(1, 1000), site(2, 1000)], blown: [] },
    { name: "exactly the budget is allowed", sites: [site(1, 2000)], blown: [] },
    {
      name: "the hottest alone, if the rest fits",
      sites: [site(1, 10), site(2, 50_000), site(3, 1500)],
      blown: [[2n, 0.5]],
    },
    {
      name: "a costly one before a frequent one",
      sites: [site(1, 5000, 10), site(2, 100, 3000)],
      blown: [
        [2n, 0.3],
        [1n, 0.05],
      ],
    },
    { name: "many that are too much together", sites: [site(1, 1500), site(2, 1400)], blown: [[1n, 0.015]] },
    { name: "nothing was executed", sites: [site(1, 1000)], cpuNs: 0, blown: [] },
  ];
  it.each(cases)("$name", ({ sites, cpuNs = 1_000_000, blown }) => {
    expect(findBlown(sites, cpuNs, 0.02).map(({ at, share }) => [at, share])).toEqual(blown);
  });
});

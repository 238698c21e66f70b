/** What a tracer must be able to do to be measured. */
import type { HotProcess, Site } from "../hot-process.ts";

/** What the probe does at each hit. Every tracer does it in its own words. */
export type Work = "count" | "hist" | "printf" | "latency" | "return";

export const describeWork: Readonly<Record<Work, string>> = {
  count: "count()",
  hist: "hist(arg0)",
  printf: "printf of arg0",
  latency: "entry + return, hist of latency",
  return: "return, count()",
};

/** A probe in place. */
export interface Planted {
  /** The tracer counts hits in whole steps of so many; undefined: each. */
  readonly step?: number;
  /** Takes it away. Returns how often it was hit, in the tracer's own count; undefined where the tracer cannot say. */
  remove(): Promise<number | undefined>;
  /** How the probe was armed, once it has been removed; only where the tracer says. */
  mechanism?(): string | undefined;
}

export interface Tracer {
  readonly name: string;
  /** Why it cannot be measured here, with what to install; undefined: it can. */
  missing(): string | undefined;
  /** Environment that its targets need from their start. */
  readonly targetEnv: Readonly<Record<string, string>>;
  plant(target: HotProcess, site: Site, work: Work): Promise<Planted>;
}

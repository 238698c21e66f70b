/**
 * What one hit costs: the time of a call with the probe, less the time of a call of an equal function without one, taken in
 * turns in the same process, less what the two differ by before the probe comes. Rounds over all probes are repeated, so that
 * a change of the machine's speed meets all of them.
 */
import { readFileSync } from "node:fs";
import {
  callsIn,
  firstLengths,
  HotProcess,
  type Pace,
  type Placement,
  type Sample,
  type Site,
} from "./hot-process.ts";
import { median, type Spread, spreadOf } from "./statistics.ts";
import { frida } from "./tracers/frida.ts";
import { gdbserver } from "./tracers/gdbserver.ts";
import { kernelUprobe } from "./tracers/kernel-uprobe.ts";
import type { Tracer, Work } from "./tracers/tracer.ts";
import { trapline } from "./tracers/trapline.ts";

export interface HitCase {
  readonly tracer: Tracer;
  readonly site: Site;
  readonly work: Work;
  readonly placement: Placement;
}

/** What was measured of one case. */
export interface HitResult {
  readonly tracer: string;
  readonly site: Site;
  readonly work: Work;
  readonly outcome: HitCost | { readonly kind: "missing" | "failed"; readonly reason: string };
}

export interface HitCost {
  readonly kind: "measured";
  /** Rounds that came to nothing, each with its reason. */
  readonly failures: readonly string[];
  /** Nanoseconds per call. */
  readonly bare: Spread;
  readonly probed: Spread;
  /** Nanoseconds that a hit adds to the call. */
  readonly added: Spread;
  /** Hits that the tracer did not count, or counted twice, over all rounds; undefined where it does not say. */
  readonly miscounted: number | undefined;
  /** How the probe was armed; undefined where the tracer does not say. */
  readonly mechanism?: string | undefined;
}

const auto = trapline("auto");
const call = trapline("call");
const jump = trapline("jump");
const int3 = trapline("int3");
const byStack = trapline("jump", { returns: "stack" });
const onPrivateStack = trapline("jump", { gate: "stack" });
const strict = trapline("jump", { gate: "strict" });
/** Protection keys that the kernel has switched on. */
function hasKeys(): boolean {
  return /^flags.*\bospke\b/m.test(readFileSync("/proc/cpuinfo", "latin1"));
}

const everyWork: readonly Work[] = ["count", "hist", "printf", "latency", "return"];
/** What only an entry is needed for. */
const entryWork: readonly Work[] = ["count", "hist", "printf"];

const onSite =
  (site: Site, placement: Placement = "pie") =>
  (tracer: Tracer, work: Work): HitCase => ({ tracer, site, work, placement });
const onMov = onSite("mov");
const onNop5 = onSite("nop5");
const onSled = onSite("sled");
const onPush = onSite("push");
/** A function that gdbserver can probe too. */
const onImm = onSite("imm", "no-pie");

export const productCases: readonly HitCase[] = [
  ...everyWork.flatMap((work) => [onMov(jump, work), onNop5(jump, work), onMov(int3, work)]),
  // The same function body by both rungs, in turns.
  ...entryWork.flatMap((work) => [onNop5(call, work), onSled(call, work), onSled(jump, work)]),
  onMov(byStack, "return"),
  onMov(onPrivateStack, "count"),
  onMov(onPrivateStack, "hist"),
  onMov(byStack, "latency"),
  onPush(jump, "count"),
  onImm(jump, "count"),
  onImm(jump, "printf"),
];

/** The levels of the gate beside each other; where the processor has protection keys, strict without one as well. */
export const gateCases: readonly HitCase[] = [
  jump,
  onPrivateStack,
  ...(hasKeys() ? [trapline("jump", { gate: "strict", leavesKeys: false })] : []),
  strict,
].flatMap((tracer) => everyWork.map((work) => onMov(tracer, work)));

export const peerCases: readonly HitCase[] = [
  ...everyWork.flatMap((work) => [onMov(kernelUprobe, work), onNop5(kernelUprobe, work)]),
  onPush(kernelUprobe, "count"),
  onImm(gdbserver, "count"),
  onImm(gdbserver, "printf"),
  onMov(frida("c"), "count"),
  onMov(frida("js"), "count"),
  onMov(frida("c"), "return"),
];

/** First instructions of every length side by side, also where only they may be overwritten; returns and traps beside them. */
export const instructionCases: readonly HitCase[] = [
  ...firstLengths.flatMap((bytes) => [
    onSite(`first${bytes}`)(auto, "count"),
    onSite(`hemmed${bytes}`)(auto, "count"),
  ]),
  onSite("first5")(auto, "return"),
  onSite("first1")(auto, "return"),
  onSite("first5")(int3, "count"),
  onSite("hemmed1")(int3, "count"),
];

export async function measureHits(
  cases: readonly HitCase[],
  rounds: number,
  onProgress: (what: string) => void,
): Promise<HitResult[]> {
  const missing = new Map([...new Set(cases.map(({ tracer }) => tracer))].map((it) => [it, it.missing()]));
  const rows = cases.map((hitCase) => ({ hitCase, done: [] as Round[], failures: [] as string[] }));
  for (let round = 0; round < rounds; round++)
    for (const row of rows) {
      const { tracer, site, work } = row.hitCase;
      if (missing.get(tracer) !== undefined) continue;
      onProgress(`round ${round + 1} of ${rounds}: ${tracer.name}, ${work} on ${site}`);
      try {
        row.done.push(await measureOnce(row.hitCase));
      } catch (error) {
        row.failures.push(error instanceof Error ? error.message : String(error));
      }
    }
  return rows.map(({ hitCase: { tracer, site, work }, done, failures }) => {
    const reason = missing.get(tracer);
    const head = { tracer: tracer.name, site, work };
    if (reason !== undefined) return { ...head, outcome: { kind: "missing", reason } };
    if (done.length === 0) return { ...head, outcome: { kind: "failed", reason: failures.join("; ") } };
    return { ...head, outcome: summarize(done, failures) };
  });
}

interface Round {
  readonly bareNs: number;
  readonly probedNs: number;
  readonly addedNs: number;
  readonly miscounted: number | undefined;
  readonly mechanism: string | undefined;
}

/** A sample is to take about so long: short enough that most samples are not interrupted. */
const SAMPLE_NS = 200_000;
const SAMPLES = 101;
const MOST_CALLS = 100_000;
const FEWEST_CALLS = 20;
/** Output has to go somewhere: so many calls at once fit into every tracer's buffer, and are then read from it. */
const BURST: Pace = { calls: 400, twinCalls: 400, samples: 60, pauseUs: 4_000 };
const TRIAL: Pace = { calls: 100, twinCalls: 100, samples: 3, pauseUs: 0 };

const callsFor = (ns: number): number =>
  Math.min(MOST_CALLS, Math.max(FEWEST_CALLS, Math.round(SAMPLE_NS / ns)));

const differenceNs = (samples: readonly Sample[]): number =>
  median(samples.map(({ ownNs, twinNs }) => ownNs - twinNs));

async function measureOnce({ tracer, site, work, placement }: HitCase): Promise<Round> {
  await using target = await HotProcess.start(placement, tracer.targetEnv);
  const takeSamples = async (): Promise<{ readonly samples: readonly Sample[]; readonly calls: number }> => {
    if (work === "printf") return { samples: await target.measure(site, BURST), calls: callsIn(BURST) };
    const trial = await target.measure(site, TRIAL);
    const pace: Pace = {
      calls: callsFor(median(trial.map(({ ownNs }) => ownNs))),
      twinCalls: callsFor(median(trial.map(({ twinNs }) => twinNs))),
      samples: SAMPLES,
      pauseUs: 0,
    };
    return { samples: await target.measure(site, pace), calls: callsIn(pace) + callsIn(TRIAL) };
  };
  const before = await takeSamples();
  const planted = await tracer.plant(target, site, work);
  const { samples, calls } = await takeSamples();
  const hits = await planted.remove();
  return {
    bareNs: median(samples.map(({ twinNs }) => twinNs)),
    probedNs: median(samples.map(({ ownNs }) => ownNs)),
    addedNs: differenceNs(samples) - differenceNs(before.samples),
    miscounted: hits === undefined ? undefined : miscount(calls, hits, planted.step ?? 1),
    mechanism: planted.mechanism?.(),
  };
}

function miscount(calls: number, hits: number, step: number): number {
  const difference = Math.abs(calls - hits);
  return difference < step ? 0 : difference;
}

function summarize(rounds: readonly Round[], failures: readonly string[]): HitCost {
  const miscounts = rounds.map(({ miscounted }) => miscounted);
  return {
    kind: "measured",
    failures,
    bare: spreadOf(rounds.map(({ bareNs }) => bareNs)),
    probed: spreadOf(rounds.map(({ probedNs }) => probedNs)),
    added: spreadOf(rounds.map(({ addedNs }) => addedNs)),
    miscounted: miscounts.includes(undefined)
      ? undefined
      : miscounts.reduce<number>((sum, count) => sum + (count ?? 0), 0),
    mechanism: rounds.find(({ mechanism }) => mechanism !== undefined)?.mechanism,
  };
}

/**
 * Instructions to be probed, drawn at random from what a process executes: far from each other, or side by side in one
 * function, with its returns. What cannot be probed by the mechanism is left out as the engine's own planning says.
 */
import { codeImageOf } from "../../src/elf/index.ts";
import { Blacklist } from "../../src/patch/blacklist.ts";
import { LandingPlaces } from "../../src/patch/landing-places.ts";
import { planSites } from "../../src/patch/plan.ts";
import { blacklistOf } from "../../src/session/attach/image-blacklist.ts";
import { landingPlacesOf } from "../../src/session/attach/landing-memory.ts";
import type { MechanismChoice } from "../../src/session/options.ts";
import { ProcessImages } from "../../src/target/process/images.ts";
import type { MappedImage } from "../../src/target/process/mapped-image.ts";
import { findTrapObstacle } from "../../src/target/process/trap-obstacle.ts";
import { ImageCode } from "../../src/x86/regions.ts";
import { openElf } from "./elf-images.ts";
import type { ExactCount } from "./exact-programs.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { runTracing, type TracingResult } from "./tracing.ts";

export interface DrawnSites {
  /** Attach points. */
  readonly probes: readonly string[];
  /** What each of them is to count, where that is known. */
  readonly counts: readonly number[];
  readonly style: string;
}

export interface BusyFunction {
  readonly path: string;
  readonly fileAddr: bigint;
}

export interface ProbeHits {
  readonly hits: number;
  readonly mechanisms: Readonly<Record<string, number>>;
}

/** The accounting of a run, by attach point. Every hit must have run its program: none of these programs filters. */
export function hitsOf(result: TracingResult): ReadonlyMap<string, ProbeHits> {
  type Account = ProbeHits & { readonly probe: string; readonly run: number };
  const line = result.lines.find(({ type }) => type === "accounting");
  const probes = (line?.data as { readonly probes: readonly Account[] } | undefined)?.probes ?? [];
  for (const { probe, hits, run } of probes)
    if (hits !== run) throw new Error(`${probe}: ${hits} hits, ${run} of them run`);
  return new Map(probes.map((account) => [account.probe, account]));
}

const SIZES = [1, 3, 20, 120, 400] as const;
/** A trap takes a hundred times as long as a jump: programs shall come to their end. */
const MOST_TRAPS = 30_000;
/** The loader's own functions run while images are looked at; the system call that waits for input has begun already. */
const untouched = /ld-linux|step-counter/;

/** Sites whose counts are known. */
export function drawExactSites(
  pid: number,
  counts: readonly ExactCount[],
  mechanism: MechanismChoice,
  random: SeededRandom,
): DrawnSites {
  using images = ProcessImages.open(pid);
  const isDense = random.below(3) === 0;
  const known = new Map<string, Map<bigint, number>>();
  const usable: ExactCount[] = [];
  for (const each of counts) {
    if (untouched.test(each.path) || each.count > (mechanism === "int3" ? 3000 : 1_000_000)) continue;
    usable.push(each);
    const ofPath = known.get(each.path) ?? new Map<bigint, number>();
    known.set(each.path, ofPath.set(each.fileAddr, each.count));
  }
  const chosen = new Map<string, Set<bigint>>();
  const take = (path: string, addr: bigint) => {
    const set = chosen.get(path) ?? new Set();
    chosen.set(path, set.add(addr));
  };
  const size = random.pick(SIZES);
  for (let i = 0; i < (isDense ? 3 : size); i++) {
    const { path, fileAddr } = random.pick(usable);
    take(path, fileAddr);
    if (!isDense) continue;
    // Every instruction of its function that is executed.
    const [image] = images.find(path);
    const fn = image?.code.findFunction(runTime(image, fileAddr));
    if (image === undefined || fn === undefined) continue;
    for (const addr of known.get(path)!.keys()) {
      const at = runTime(image, addr);
      if (at >= fn.start && at < fn.end) take(path, addr);
    }
  }
  return keepPlannable(
    images,
    chosen,
    mechanism,
    `${isDense ? "dense" : "far"} ${size}`,
    (path, addr) => known.get(path)?.get(addr) ?? 0,
  );
}

/** Images whose code was analysed before; programs that always lie at the same place are analysed once. */
const analysed = new Map<string, ImageCode>();

function codeOf(image: MappedImage): ImageCode {
  const key = `${image.path} ${image.bias}`;
  let code = analysed.get(key);
  if (code === undefined) {
    // Of a file that stays open.
    code = new ImageCode(codeImageOf(openElf(image.path), image.bias, image.path));
    analysed.set(key, code);
  }
  return code;
}

function runTime(image: MappedImage, fileAddr: bigint): bigint {
  return fileAddr + image.bias;
}

/** As many of the sites as can be planned together. */
function keepPlannable(
  images: ProcessImages,
  chosen: ReadonlyMap<string, ReadonlySet<bigint>>,
  mechanism: MechanismChoice,
  style: string,
  countOf: (path: string, addr: bigint) => number,
): DrawnSites {
  const probes: string[] = [];
  const counts: number[] = [];
  let traps = findTrapObstacle(images.pid) === undefined ? 0 : Number.POSITIVE_INFINITY;
  for (const [path, addrs] of chosen) {
    const [image] = images.find(path);
    if (image === undefined) continue;
    let sites = [...addrs].map((addr) => runTime(image, addr));
    for (;;) {
      const places =
        mechanism === "auto" || mechanism === "punned"
          ? landingPlacesOf(images.pid)
          : new LandingPlaces([], 0);
      const plans = planSites(codeOf(image), sites, { mechanism, places, blacklist: blacklistOf(image) });
      const fits = plans.filter((plan) => {
        if (plan.kind === "refused") return false;
        if (plan.mechanism !== "int3") return true;
        traps += countOf(path, plan.at - image.bias);
        return traps <= MOST_TRAPS;
      });
      if (fits.length === plans.length) {
        for (const plan of fits) {
          if (plan.kind === "refused") continue;
          const addr = plan.at - image.bias;
          probes.push(`uprobe:${path}:0x${addr.toString(16)}`);
          counts.push(countOf(path, addr));
        }
        break;
      }
      sites = fits.map((plan) => plan.at);
    }
  }
  return { probes, counts, style };
}

/** Functions that run while a program does its work: some hundreds are probed for a while. */
export async function findBusyFunctions(
  pids: readonly number[],
  paths: readonly string[],
  random: SeededRandom,
): Promise<BusyFunction[]> {
  using images = ProcessImages.open(pids[0]!);
  const probes: string[] = [];
  for (const path of paths) {
    const [image] = images.find(path);
    if (image === undefined) throw new Error(`process ${pids[0]} has no image ${path}`);
    const starts: bigint[] = [];
    for (const { start, bytes } of image.code.text) {
      const end = start + BigInt(bytes.length);
      for (let at = start; at < end; ) {
        const fn = image.code.findFunction(at);
        if (fn === undefined || fn.end <= at) {
          at += 1n;
          continue;
        }
        if (fn.name !== undefined && fn.start >= at) starts.push(fn.start);
        at = fn.end;
      }
    }
    const drawn = new Set<bigint>();
    while (drawn.size < Math.min(900, starts.length / 2)) drawn.add(random.pick(starts));
    const options = { mechanism: "jump" as const, blacklist: blacklistOf(image) };
    for (const plan of planSites(codeOf(image), [...drawn], options))
      if (plan.kind === "planned") probes.push(`uprobe:${path}:0x${(plan.at - image.bias).toString(16)}`);
  }
  const script = `${probes.join(",")} { @ = count(); } interval:ms:700 { exit(); }`;
  const result = await runTracing(["--mechanism", "jump", "-p", pids.join(","), "-e", script]);
  if (result.code !== 0) throw new Error(`find busy functions: ${result.err}`);
  return [...hitsOf(result)].flatMap(([probe, { hits }]) => {
    const [, path, addr] = probe.split(":");
    return hits === 0 ? [] : [{ path: path!, fileAddr: BigInt(addr!) }];
  });
}

/** Sites of busy functions: instructions here and there, or all of one function. */
export function drawLiveSites(
  pid: number,
  busy: readonly BusyFunction[],
  mechanism: MechanismChoice,
  random: SeededRandom,
): DrawnSites {
  using images = ProcessImages.open(pid);
  const isDense = random.below(3) === 0;
  const size = random.pick(SIZES);
  const chosen = new Map<string, Set<bigint>>();
  for (let i = 0; i < (isDense ? 2 : size); i++) {
    const { path, fileAddr } = random.pick(busy);
    const [image] = images.find(path);
    const fn = image && codeOf(image).functionAt(runTime(image, fileAddr));
    if (image === undefined || fn === undefined || fn.code.count === 0) continue;
    const set = chosen.get(path) ?? new Set<bigint>();
    chosen.set(path, set);
    for (const [index, offset] of fn.code.offsets.subarray(0, fn.code.count).entries())
      if (isDense ? index < 300 : random.below(fn.code.count) === 0) set.add(fileAddr + BigInt(offset));
    if (set.size === 0) set.add(fileAddr);
  }
  return keepPlannable(images, chosen, mechanism, `${isDense ? "dense" : "far"} ${size}`, () => 0);
}

/** Random instructions of files that nothing has mapped yet, and that can be probed alone by a jump. */
export function drawFileSites(paths: readonly string[], count: number, random: SeededRandom): DrawnSites {
  const probes: string[] = [];
  for (const path of paths) {
    const key = `${path} of the file`;
    const code = analysed.get(key) ?? new ImageCode(codeImageOf(openElf(path), 0n, path));
    analysed.set(key, code);
    const { start, bytes } = code.image.text[0]!;
    const sites = new Set<bigint>();
    for (let tries = 0; sites.size < count && tries < count * 20; tries++) {
      const fn = code.functionAt(start + BigInt(random.below(bytes.length)));
      if (fn === undefined || fn.code.count === 0) continue;
      sites.add(fn.start + BigInt(fn.code.offsets[random.below(fn.code.count)]!));
    }
    const blacklist = new Blacklist({ image: code.image, rseqTable: undefined });
    for (const plan of planSites(code, [...sites], { mechanism: "jump", blacklist }))
      if (plan.kind === "planned") probes.push(`uprobe:${path}:0x${plan.at.toString(16)}`);
  }
  return { probes, counts: [], style: `files ${count}` };
}

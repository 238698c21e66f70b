/**
 * `trapline coverage`: which rung of the ladder every function or every instruction of an image would get, and why not a
 * higher one. Each candidate is planned as if it were the only probe. Nothing is touched.
 *
 * Without a process the image is taken as if it were loaded where the kernel usually puts one of its kind, with nothing else
 * near: what punned jumps can reach then is a good guess, and everything else the same.
 */
import { readFileSync } from "node:fs";
import { byteSourceOf, codeImageOf, type ElfFile, parseElf } from "../../elf/index.ts";
import { type PlannedSite, planSites, type Route } from "../../patch/index.ts";
import { LandingPlaces } from "../../patch/landing-places.ts";
import { checkAttachable } from "../../target/process/attach-check.ts";
import { ProcessImages } from "../../target/process/images.ts";
import { describeLocationRefusal } from "../../target/process/location-refusal.ts";
import type { AddrRange } from "../../target/target.ts";
import type { CodeImage, FunctionRange } from "../../x86/code-image.ts";
import { ImageCode } from "../../x86/regions.ts";
import { HEAP_DISTANCE, HEAP_GROWTH, landingPlacesOf } from "../attach/landing-memory.ts";
import type { CoverageOptions, SessionIo } from "../options.ts";
import { SessionError } from "../session-error.ts";

/** The rungs as reported. */
const rungs = ["call", "jump", "punned", "int3", "refused"] as const;
type Rung = (typeof rungs)[number];

export interface Coverage {
  readonly image: string;
  readonly candidates: "functions" | "instructions";
  readonly total: number;
  readonly mechanisms: Readonly<Record<Rung, number>>;
  /** How punned sites get to their detours. */
  readonly tactics: Readonly<Partial<Record<Route["tactic"], number>>>;
  /** For each rung that was refused to candidates: how many of them, by reason. */
  readonly reasons: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

export interface CoverageImage {
  readonly name: string;
  readonly code: CodeImage;
  readonly places: LandingPlaces;
}

/** So many sites are planned together. */
const BATCH = 65_536;
/** The same candidates every time. */
const SEED = 0x1234_5678;

export async function coverage(options: CoverageOptions, io: SessionIo): Promise<number> {
  const { pid } = options;
  if (pid !== undefined) checkAttachable(pid);
  using images = pid === undefined ? undefined : ProcessImages.open(pid);
  const image = images === undefined ? openFile(options.image) : findMapped(images, options.image);
  const onSite = options.verbose ? (site: PlannedSite) => writeSite(site, image, options, io) : undefined;
  const found = measureCoverage(image, options.candidates, options.sample, onSite);
  if (options.format === "json") {
    const { image: name, mechanisms, reasons, candidates, total, tactics } = found;
    const data = {
      image: name,
      mechanisms,
      reasons,
      candidates,
      total,
      tactics,
      trap_free_percent: trapFree(found),
      ...(options.sample === 1 ? {} : { sample_percent: options.sample * 100 }),
    };
    io.out.write(`${JSON.stringify({ type: "coverage", data })}\n`);
  } else io.out.write(table(found, options.sample));
  return 0;
}

/** Plans each candidate by itself. `sample` is the part of them that is looked at: 1 is all. */
export function measureCoverage(
  image: CoverageImage,
  candidates: Coverage["candidates"],
  sample = 1,
  onSite?: (site: PlannedSite) => void,
): Coverage {
  const code = new ImageCode(image.code);
  const mechanisms: Record<Rung, number> = { call: 0, jump: 0, punned: 0, int3: 0, refused: 0 };
  const tactics: Partial<Record<Route["tactic"], number>> = {};
  const reasons: Record<string, Record<string, number>> = {};
  let total = 0;
  const plan = (sites: readonly bigint[]) => {
    const options = {
      mechanism: "auto" as const,
      alone: true,
      withoutLiveness: true,
      places: image.places,
    };
    for (const site of planSites(code, sites, options)) {
      total++;
      mechanisms[site.kind === "refused" ? "refused" : site.mechanism]++;
      if (site.kind === "planned" && site.route !== undefined)
        tactics[site.route.tactic] = (tactics[site.route.tactic] ?? 0) + 1;
      for (const { mechanism, refusal } of site.refused) {
        reasons[mechanism] ??= {};
        reasons[mechanism][refusal.reason] = (reasons[mechanism][refusal.reason] ?? 0) + 1;
      }
      onSite?.(site);
    }
  };
  let batch: bigint[] = [];
  for (const site of candidatesOf(code, candidates, sample)) {
    batch.push(site);
    if (batch.length < BATCH) continue;
    plan(batch);
    batch = [];
  }
  plan(batch);
  return { image: image.name, candidates, total, mechanisms, tactics, reasons };
}

/** A sample of instructions is all those of a sample of functions: others need not be decoded. */
function* candidatesOf(
  code: ImageCode,
  candidates: Coverage["candidates"],
  sample: number,
): Generator<bigint> {
  const random = seededRandom();
  for (const { start } of functionsOf(code.image)) {
    if (sample < 1 && random() >= sample) continue;
    if (candidates === "functions") yield start;
    else {
      const block = code.functionAt(start)?.code;
      // The last offset is where decoding ended.
      for (const offset of block?.offsets.subarray(0, block.count) ?? []) yield start + BigInt(offset);
    }
  }
}

/** All functions that symbols or the unwind table know, ascending. */
export function* functionsOf(image: CodeImage): Generator<FunctionRange> {
  for (const { start, bytes } of image.text) {
    const end = start + BigInt(bytes.length);
    for (let at = start; at < end; ) {
      const range = image.findFunction(at);
      if (range === undefined || range.end <= at) {
        at++;
        continue;
      }
      if (range.start >= at) yield range;
      at = range.end;
    }
  }
}

/** Numbers from 0 to 1 (xorshift32). */
function seededRandom(): () => number {
  let state = SEED;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

function findMapped(images: ProcessImages, name: string): CoverageImage {
  const [image] = images.find(name);
  if (image === undefined) {
    const { refusal } = images.resolve(name, { kind: "address", address: 0n });
    const { message, hint } = describeLocationRefusal(refusal!);
    throw new SessionError(
      "no-image",
      { operation: "coverage", object: `process ${images.pid}`, reason: message },
      hint,
    );
  }
  return { name: image.path, code: image.code, places: landingPlacesOf(images.pid) };
}

const PIE_AT = 0x5555_5555_4000n;
const LIBRARY_AT = 0x7fff_f700_0000n;
const END = 0x7fff_ffff_f000n;

function openFile(path: string): CoverageImage {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    throw new SessionError(
      "no-image",
      {
        operation: "coverage",
        object: path,
        reason: code === "ENOENT" ? "there is no such file" : `cannot be read: ${code}`,
      },
      "an image of a running process is named like in a probe: trapline coverage -p PID libc",
    );
  }
  return fileImage(parseElf(byteSourceOf(bytes), { name: path }), path);
}

/** An image as it would be loaded. */
export function fileImage(elf: ElfFile, path: string): CoverageImage {
  const isLibrary = elf.kind === "dyn" && /\.so(\.|$)/.test(path);
  const bias = elf.kind === "exec" ? 0n : isLibrary ? LIBRARY_AT : PIE_AT;
  const ends = elf.segments.map(({ addr, memBytes }) => addr + BigInt(memBytes));
  const end = ends.reduce((highest, at) => (at > highest ? at : highest), 0n) + bias;
  const start = elf.origin + bias;
  const occupied: AddrRange[] = isLibrary
    ? // Others lie above it, up to the stack.
      [{ start, end: END }]
    : [{ start, end: end + HEAP_DISTANCE + HEAP_GROWTH }];
  return { name: path, code: codeImageOf(elf, bias, path), places: new LandingPlaces(occupied) };
}

const trapFree = ({ mechanisms, total }: Coverage): number => {
  const free = mechanisms.call + mechanisms.jump + mechanisms.punned;
  return total === 0 ? 100 : Math.floor((free / total) * 100_000) / 1000;
};

function table(found: Coverage, sample: number): string {
  const { total, mechanisms, tactics, reasons } = found;
  const lines = [
    `${found.image}: ${total} ${found.candidates}${sample === 1 ? "" : ` (a sample of ${sample * 100} %)`}`,
  ];
  const percent = (count: number) => `${((total === 0 ? 0 : count / total) * 100).toFixed(3).padStart(8)} %`;
  for (const rung of rungs) {
    const how = rung === "punned" ? describeCounts(tactics) : "";
    lines.push(`  ${rung.padEnd(8)}${`${mechanisms[rung]}`.padStart(9)}${percent(mechanisms[rung])}${how}`);
  }
  lines.push(`  trap-free${"".padEnd(8)}${`${trapFree(found).toFixed(3)} %`.padStart(10)}`);
  for (const [rung, counts] of Object.entries(reasons)) {
    lines.push(`not ${rung}:`);
    for (const [reason, count] of Object.entries(counts).sort(([, a], [, b]) => b - a))
      lines.push(`${`${count}`.padStart(9)}  ${reason}`);
  }
  return `${lines.join("\n")}\n`;
}

function describeCounts(counts: Readonly<Record<string, number>>): string {
  const parts = Object.entries(counts).sort(([, a], [, b]) => b - a);
  return parts.length === 0 ? "" : `  (${parts.map(([name, count]) => `${name} ${count}`).join(", ")})`;
}

function writeSite(
  site: PlannedSite,
  { code }: CoverageImage,
  options: CoverageOptions,
  io: SessionIo,
): void {
  const fn = code.findFunction(site.at);
  const name = fn?.name ?? (fn === undefined ? "" : `0x${fn.start.toString(16)}`);
  const offset = fn === undefined || fn.start === site.at ? "" : `+0x${(site.at - fn.start).toString(16)}`;
  const rung = site.kind === "refused" ? "refused" : site.mechanism;
  const tactic = site.kind === "planned" ? site.route?.tactic : undefined;
  const refused = site.refused.map(({ mechanism, refusal }) => [mechanism, refusal.reason] as const);
  if (options.format === "json") {
    const data = {
      site: `0x${site.at.toString(16)}`,
      place: `${name}${offset}`,
      mechanism: rung,
      tactic,
      refused: refused.map(([mechanism, reason]) => ({ mechanism, reason })),
    };
    io.out.write(`${JSON.stringify({ type: "candidate", data })}\n`);
    return;
  }
  const how = tactic === undefined ? rung : `${rung} (${tactic})`;
  // That a site cannot take a call goes without saying, unless it nearly could.
  const telling = refused.filter(
    ([, reason]) => reason !== "no-patchable-entry" && reason !== "not-a-function-entry",
  );
  const why = telling.map(([mechanism, reason]) => `not ${mechanism}: ${reason}`).join(", ");
  io.out.write(
    `0x${site.at.toString(16)}  ${how.padEnd(20)}  ${name}${offset}${why === "" ? "" : `  ${why}`}\n`,
  );
}

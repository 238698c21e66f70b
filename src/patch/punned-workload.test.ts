/**
 * Instructions that are too short or too hemmed in for a jump, anywhere in a statically linked program and its C library, reach
 * their detours by every tactic of the punned rung: the program must compute what it computed before, and come by as often
 * as it does when the same instructions hold an int3.
 *
 * TRAPLINE_SEEDS=1-100 runs more rounds.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildFixture } from "../../test/support/fixtures.ts";
import { randomWords } from "../../test/support/native-code.ts";
import { byteSourceOf, codeImageOf, parseElf } from "../elf/index.ts";
import type { GateProgram } from "../gate/gate-frame.ts";
import { Assembler } from "../x86/assembler.ts";
import { ImageCode } from "../x86/regions.ts";
import { RSP } from "../x86/registers.ts";
import { relocate } from "../x86/relocate.ts";
import { emitDetour } from "./detour.ts";
import { LandingPlaces } from "./landing-places.ts";
import { patchOf, planSites, type SitePlan } from "./plan.ts";
import { evictedBy, patchRoute, type Route } from "./route.ts";
import { encodeSignalAction } from "./signal-action.ts";
import { emitTrapHandler } from "./trap-handler.ts";
import { TrapTable } from "./trap-table.ts";

// Above the heap of a program without PIE, which the kernel places up to 1 GiB behind its data.
const CODE = 0x6000_0000n;
const COUNTER = 0x6800_0000n;
const SITES = 2000;

/** Functions that run while the text changes. */
const untouched =
  /^(main|apply|_start|read|__read.*|__libc_read|mmap.*|__mmap.*|open.*|__open.*|__libc_open.*|_exit)$/;

let binary: string;
let folder: string;
let expected: string;
let code: ImageCode;
/** Sites that cannot hold a jump. */
let candidates: bigint[];
beforeAll(() => {
  binary = buildFixture("patch-workload", { flags: ["-static", "-no-pie", "-fno-pie", "-lm"] });
  folder = mkdtempSync(join(tmpdir(), "trapline-punned-"));
  expected = run("/nonexistent").stdout;
  code = new ImageCode(codeImageOf(parseElf(byteSourceOf(readFileSync(binary)), { name: "workload" }), 0n));
  const all = allInstructions();
  const jumps = code.jumpRegions(all, { alone: true });
  candidates = all.filter((_, i) => jumps[i]!.kind === "refused");
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Without randomisation of addresses: some paths of the C library depend on where data lies. */
function run(patches: string) {
  return spawnSync("setarch", ["-R", binary, patches], { encoding: "utf8", timeout: 60_000 });
}

function allInstructions(): bigint[] {
  const found: bigint[] = [];
  for (const range of code.image.text) {
    const end = range.start + BigInt(range.bytes.length);
    for (let at = range.start; at < end; ) {
      const fn = code.functionAt(at);
      if (fn === undefined) {
        at++;
        continue;
      }
      at = fn.end;
      if (fn.name === undefined || untouched.test(fn.name)) continue;
      for (let i = 0; i < fn.code.count; i++) found.push(fn.start + BigInt(fn.code.offsets[i]!));
    }
  }
  return found;
}

const occupied = [
  { start: 0x40_0000n, end: 0x5800_0000n },
  { start: CODE, end: CODE + 0x1000_0000n },
];

/** No memory for landings: only padding and neighbours are left. */
const noLandings = () => new LandingPlaces(occupied, 0);

/** Where a pun of one byte finds nothing, the successor has to make way. */
class WideOnly extends LandingPlaces {
  override find(first: bigint, count: number, stride = 1): bigint | undefined {
    return count === 1 ? undefined : super.find(first, count, stride);
  }
}

function record(kind: number, at: bigint, bytes: Uint8Array): Buffer {
  const head = BigUint64Array.of(BigInt(kind), at, BigInt(bytes.length));
  return Buffer.concat([Buffer.from(head.buffer), Buffer.from(bytes)]);
}

/** Counts, and ruins every register and flag. */
function emitRuin(at: bigint): Uint8Array {
  const asm = new Assembler(at);
  asm.lock().inc({ ripTo: COUNTER });
  for (let reg = 0; reg < 16; reg++) if (reg !== RSP) asm.movImm(reg, 0xdead_0000 + reg);
  asm.addImm(RSP, 0);
  asm.ret();
  return asm.finish();
}

const ruin: GateProgram = {
  name: "ruin",
  entry: CODE,
  clobbers: 0xffff & ~(1 << RSP),
  ctxReads: new Set(),
  stackBytes: 8,
  cookie: 0n,
};

/** The patches of all plans, for the program to apply to itself. */
function patchesOf(plans: readonly SitePlan[], places: LandingPlaces): Buffer {
  const arena = new Uint8Array(3 << 20);
  arena.set(emitRuin(CODE));
  let next = CODE + 256n;
  const put = (bytes: Uint8Array) => {
    arena.set(bytes, Number(next - CODE));
    next += BigInt(bytes.length);
  };
  const landings = places.ranges.map(({ start, end }) => ({
    start,
    bytes: new Uint8Array(Number(end - start)),
  }));
  const pokes: Buffer[] = [];
  const traps = new TrapTable(TrapTable.capacityFor(SITES));
  for (const plan of plans) {
    const detour = emitDetour({ plan, at: next, programs: [ruin] });
    if (detour.kind === "refused") throw new Error(detour.refusal.reason);
    put(detour.bytes);
    const { route } = plan;
    if (route === undefined) {
      pokes.push(record(1, plan.at, patchOf(plan, plan.mechanism, detour.entry)));
      if (plan.mechanism === "int3") traps.set(plan.at, detour.entry);
      continue;
    }
    const region = evictedBy(route);
    const copy = region === undefined ? undefined : relocate(region, next);
    if (copy?.kind === "refused") throw new Error(copy.refusal.reason);
    const patch = patchRoute(route, plan, detour.entry, copy?.at)!;
    if (copy !== undefined) put(copy.bytes);
    for (const { at, bytes } of patch.landings) {
      const pages = landings.find((each) => at >= each.start && at < each.start + BigInt(each.bytes.length))!;
      pages.bytes.set(bytes, Number(at - pages.start));
    }
    for (const side of patch.sides) pokes.push(record(1, side.at, side.newBytes));
    pokes.push(record(1, plan.at, patch.siteBytes));
  }
  const previous = { handler: 0n, flags: 0n, restorer: 0n, mask: 0n };
  const handler = emitTrapHandler({ at: (next + 63n) & ~63n, table: traps, previous });
  arena.set(handler.bytes, Number(handler.at - CODE));
  next = handler.at + BigInt(handler.bytes.length);
  return Buffer.concat([
    record(0, CODE, arena.subarray(0, Number(next - CODE))),
    record(0, COUNTER, new Uint8Array(4096)),
    ...landings.map(({ start, bytes }) => record(0, start, bytes)),
    record(2, 0n, encodeSignalAction(handler.action)),
    ...pokes,
  ]);
}

function runPatched(plans: readonly SitePlan[], places: LandingPlaces) {
  const file = join(folder, "patches");
  writeFileSync(file, patchesOf(plans, places));
  const { status, signal, stdout, stderr } = run(file);
  return { status, signal, output: stdout, hits: Number(stderr.match(/^hits (\d+)$/m)?.[1]) };
}

const isPlan = (plan: { readonly kind: string }): plan is SitePlan => plan.kind === "planned";

function seeds(): number[] {
  const [first, last] = (process.env.TRAPLINE_SEEDS ?? "1-1").split("-").map(Number);
  return Array.from({ length: last! - first! + 1 }, (_, i) => first! + i);
}

const cases: readonly {
  readonly name: string;
  readonly places: () => LandingPlaces;
  readonly tactics: readonly Route["tactic"][];
}[] = [
  { name: "all memory", places: () => new LandingPlaces(occupied), tactics: ["pun", "padding"] },
  { name: "no memory for landings", places: noLandings, tactics: ["padding", "neighbour"] },
  { name: "no puns of one byte", places: () => new WideOnly(occupied), tactics: ["pun", "successor"] },
];

describe("thousands of short sites are passed as often as with int3, and the results are the same", () => {
  for (const { name, places: makePlaces, tactics } of cases) {
    for (const seed of seeds()) {
      test(`${name}, seed ${seed}`, () => {
        const random = randomWords(seed);
        const sites = new Set<bigint>();
        while (sites.size < SITES) sites.add(candidates[Number(random() % BigInt(candidates.length))]!);
        const places = makePlaces();
        const plans = planSites(code, [...sites], { mechanism: "punned", places }).filter(isPlan);
        const used = new Set(plans.map(({ route }) => route?.tactic));
        for (const tactic of tactics) expect(used).toContain(tactic);
        expect(plans.length).toBeGreaterThan(SITES / 3);
        const result = runPatched(plans, places);
        expect(result).toMatchObject({ status: 0, signal: null, output: expected });
        expect(result.hits).toBeGreaterThan(5_000);
        const trapped = planSites(
          code,
          plans.map(({ at }) => at),
          { mechanism: "int3" },
        ).filter(isPlan);
        expect(runPatched(trapped, noLandings()).hits).toBe(result.hits);
      });
    }
  }
});

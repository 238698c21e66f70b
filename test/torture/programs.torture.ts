/**
 * Real programs under load, probed at random instructions by random mechanisms, armed and taken out again and again.
 *
 * Programs that do the same every time are probed from their first line of input to their end: they must print the same,
 * and every probe must count what single steps have counted. Servers and programs with threads, signals and children
 * are probed for a while under load: every answer must be right, and nothing may be left in them.
 *
 * TRAPLINE_TORTURE_MINUTES is how long it takes, TRAPLINE_SEED repeats a run, TRAPLINE_ONLY takes one program by name.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { exactPrograms, finishExact, referenceOf, startExact } from "../support/exact-programs.ts";
import { loadedPrograms } from "../support/loaded-programs.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import {
  type DrawnSites,
  drawExactSites,
  drawFileSites,
  drawLiveSites,
  findBusyFunctions,
  hitsOf,
  type ProbeHits,
} from "../support/random-sites.ts";
import { SeededRandom } from "../support/seeded-random.ts";
import { runTracing, Tracing } from "../support/tracing.ts";

const minutes = Number(process.env.TRAPLINE_TORTURE_MINUTES ?? 10);
const firstSeed = Number(process.env.TRAPLINE_SEED ?? Date.now() % 1_000_000);
const only = process.env.TRAPLINE_ONLY;

const mechanisms = ["auto", "auto", "jump", "punned", "int3"] as const;

interface Row {
  readonly name: string;
  cycles: number;
  sites: number;
  hits: number;
  failed: string;
  readonly mechanisms: Record<string, number>;
}
const rows: Row[] = [];

afterAll(() => {
  const titles = ["cycles", "sites", "hits"].map((title) => title.padStart(10)).join("");
  const lines = rows.map(({ name, cycles, sites, hits, failed, mechanisms: used }) => {
    const figures = [cycles, sites, hits].map((figure) => `${figure}`.padStart(10)).join("");
    const by = Object.entries(used)
      .map(([mechanism, count]) => `${mechanism} ${count}`)
      .join(", ");
    return `${name.padEnd(20)}${figures}  ${by}${failed === "" ? "" : `\n    FAILED: ${failed}`}`;
  });
  console.log([`${"program".padEnd(20)}${titles}  sites by mechanism`, ...lines].join("\n"));
});

const exact = exactPrograms().filter(({ name }) => only === undefined || only === name);
const loaded = loadedPrograms.filter(({ name }) => only === undefined || only === name);
const deadline = performance.now() + minutes * 60_000;
let programsLeft = exact.length + loaded.length + (only === undefined || only === "gcc" ? 1 : 0);

function newRow(name: string): Row {
  const row: Row = { name, cycles: 0, sites: 0, hits: 0, failed: "", mechanisms: {} };
  rows.push(row);
  return row;
}

function note(row: Row, drawn: DrawnSites, counts: ReadonlyMap<string, ProbeHits>): void {
  row.cycles++;
  row.sites += drawn.probes.length;
  for (const { hits, mechanisms: used } of counts.values()) {
    row.hits += hits;
    for (const [mechanism, count] of Object.entries(used))
      row.mechanisms[mechanism] = (row.mechanisms[mechanism] ?? 0) + count;
  }
}

/** Cycles until the program's share of time is over; a failure names the seed that repeats it. */
async function repeat(row: Row, cycle: (random: SeededRandom) => Promise<void>): Promise<void> {
  // What counting steps and finding busy functions took is not there for others any more.
  const now = performance.now();
  const end = now + (deadline - now) / Math.max(1, programsLeft--);
  for (let seed = firstSeed; performance.now() < end || seed === firstSeed; seed++) {
    try {
      // Neighbouring seeds begin alike.
      await cycle(new SeededRandom(Math.imul(seed, 0x9e37_79b1)));
    } catch (error) {
      row.failed = `TRAPLINE_SEED=${seed} TRAPLINE_ONLY='${row.name}': ${error instanceof Error ? error.message : error}`;
      throw new Error(row.failed, { cause: error });
    }
  }
}

for (const program of exact) {
  test(`${program.name} does the same, and every probe counts what steps count (seed ${firstSeed})`, async () => {
    const row = newRow(program.name);
    const reference = await referenceOf(program);
    await repeat(row, async (random) => {
      using child = await startExact(program);
      const mechanism = random.pick(mechanisms);
      const drawn = drawExactSites(child.pid, reference.counts, mechanism, random);
      // A few sites may have no place for this mechanism.
      if (drawn.probes.length === 0) return;
      const script = `${drawn.probes.join(",")} { @ = count(); }`;
      await using tracing = await Tracing.armed(["--mechanism", mechanism, "-p", `${child.pid}`], script);
      const output = await finishExact(child, program, 60_000);
      const result = await tracing.ended();
      const what = `${mechanism}, ${drawn.style}`;
      expect({ what, output, code: result.code, err: result.err }).toEqual({
        what,
        output: reference.output,
        code: 0,
        err: "",
      });
      const counts = hitsOf(result);
      const wrong = drawn.probes.flatMap((probe, i) => {
        const hits = counts.get(probe)?.hits;
        return hits === drawn.counts[i] ? [] : [`${probe}: ${hits} instead of ${drawn.counts[i]}`];
      });
      expect({ what, wrong: wrong.slice(0, 10), of: wrong.length }).toEqual({ what, wrong: [], of: 0 });
      note(row, drawn, counts);
    });
  });
}

for (const { name, images, start } of loaded) {
  test(`${name} under load (seed ${firstSeed})`, async () => {
    const row = newRow(name);
    await using program = await start();
    const pids = program.pids();
    const busy = await findBusyFunctions(pids, images, new SeededRandom(firstSeed));
    expect(busy.length).toBeGreaterThan(3);
    await repeat(row, async (random) => {
      const mechanism = random.pick(mechanisms);
      const before = pids.map(readProcessState);
      const drawn = drawLiveSites(pids[0]!, busy, mechanism, random);
      if (drawn.probes.length === 0) return;
      const script = `${drawn.probes.join(",")} { @ = count(); } interval:ms:${10 + random.below(150)} { exit(); }`;
      const result = await runTracing(["--mechanism", mechanism, "-p", pids.join(","), "-e", script]);
      const what = `${mechanism}, ${drawn.style}`;
      // On a busy machine a thread that begins or ends may block signals for long: then nothing is armed.
      const isHeldUp = result.err.includes("blocks SIGTRAP");
      if (!isHeldUp) expect({ what, code: result.code, err: result.err }).toEqual({ what, code: 0, err: "" });
      for (const [i, pid] of pids.entries()) expectNoTrace(pid, before[i]!);
      expect(await program.wrong()).toEqual([]);
      if (!isHeldUp) note(row, drawn, hitsOf(result));
    });
    expect(await program.stop()).toEqual([]);
  });
}

/** A command that is over in a moment and starts others: they have the probes of its text until they execute something else. */
test.runIf(only === undefined || only === "gcc")(`gcc makes the same (seed ${firstSeed})`, async () => {
  const row = newRow("gcc");
  const folder = mkdtempSync(join(tmpdir(), "trapline-gcc-"));
  const source = join(folder, "source.c");
  writeFileSync(
    source,
    "int f(int n) { int s = 0; for (int i = 0; i < n; i++) s += i * i % 7; return s; }\n",
  );
  const objectBy = (name: string) => ["/usr/bin/gcc", "-O2", "-c", "-o", join(folder, name), source];
  const [program, ...args] = objectBy("plain.o");
  execFileSync(program!, args);
  const images = [realpathSync("/usr/bin/gcc"), "/usr/lib/x86_64-linux-gnu/libc.so.6"];
  try {
    await repeat(row, async (random) => {
      const drawn = drawFileSites(images, random.pick([5, 60, 300]), random);
      const script = `${drawn.probes.join(",")} { @ = count(); }`;
      const result = await runTracing(["-c", objectBy("probed.o").join(" "), "-e", script]);
      expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
      expect(readFileSync(join(folder, "probed.o")).equals(readFileSync(join(folder, "plain.o")))).toBe(true);
      rmSync(join(folder, "probed.o"));
      note(row, drawn, hitsOf(result));
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
});

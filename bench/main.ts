/**
 * The benchmark: `npm run bench` runs all of it, `npm run bench -- NAME...` only the groups that are named. Prints tables,
 * and writes the same as JSON to `bench/results/latest.json`.
 *
 *     hits     what a hit costs with trapline
 *     gate     what it costs behind each level of the gate
 *     instructions  what it costs on first instructions of 1 to 15 bytes, and at returns
 *     peers    what it costs with trapline and with other tracers
 *     attach   how long attaching and detaching take, and how long the target stands still
 *     arena    lookups and updates in a map of a gigabyte, in pages of each size that the machine grants
 *     programs size and time of compiled programs, beside the kernel's JIT
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { measureArena } from "./arena.ts";
import { printArena } from "./arena-report.ts";
import { attachCases, measureAttach, measureFirstEvent } from "./attach.ts";
import { printAttach, printSpread } from "./attach-report.ts";
import { repository } from "./fixture.ts";
import { gateCases, instructionCases, measureHits, peerCases, productCases } from "./hits.ts";
import { printHits } from "./hits-report.ts";
import { printInstructions } from "./instructions-report.ts";
import { describeMachine } from "./machine.ts";
import { measurePrograms } from "./programs.ts";
import { printPrograms } from "./programs-report.ts";
import { checkTargets, printTargets } from "./targets.ts";
import { trapline } from "./tracers/trapline.ts";

const HIT_ROUNDS = 3;
const ATTACH_ROUNDS = 5;
const FIRST_EVENT_ROUNDS = 11;
const PROGRAM_ROUNDS = 7;
const ARENA_ROUNDS = 5;

const groups = ["hits", "gate", "instructions", "peers", "attach", "programs", "arena"] as const;
type Group = (typeof groups)[number];

function parseGroups(args: readonly string[]): ReadonlySet<Group> {
  const unknown = args.filter((arg) => !groups.some((group) => group === arg));
  if (unknown.length > 0) throw new Error(`no group ${unknown.join(", ")}: there are ${groups.join(", ")}`);
  return new Set(args.length === 0 ? groups : (args as readonly Group[]));
}

function showProgress(what: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${what}`);
}

async function main(args: readonly string[]): Promise<void> {
  const wanted = parseGroups(args);
  const unbuilt = trapline("jump").missing();
  if (unbuilt !== undefined) throw new Error(`trapline is ${unbuilt}`);
  const started = performance.now();
  const machine = describeMachine();
  const print = (title: string, text: string): void => {
    showProgress("");
    process.stdout.write(`\n${title}\n\n${text}\n`);
  };
  process.stdout.write(
    `${machine.processors} x ${machine.processor}, Linux ${machine.kernel}, Node ${machine.node}, ` +
      `load ${machine.load.toFixed(1)}\n`,
  );

  const withPeers = wanted.has("peers");
  const hits =
    withPeers || wanted.has("hits")
      ? await measureHits(
          withPeers ? [...productCases, ...peerCases] : productCases,
          HIT_ROUNDS,
          showProgress,
        )
      : [];
  if (hits.length > 0) print("Cost of a hit: nanoseconds per call, medians", printHits(hits));

  const gate = wanted.has("gate") ? await measureHits(gateCases, HIT_ROUNDS, showProgress) : [];
  if (gate.length > 0) print("Cost of a hit behind each level of the gate, medians", printHits(gate));

  const instructions = wanted.has("instructions")
    ? await measureHits(instructionCases, HIT_ROUNDS, showProgress)
    : [];
  if (instructions.length > 0)
    print("First instructions of every length: count(), medians", printInstructions(instructions));

  const attach = wanted.has("attach") ? await measureAttach(attachCases, ATTACH_ROUNDS, showProgress) : [];
  const firstEvent = wanted.has("attach") ? await measureFirstEvent(FIRST_EVENT_ROUNDS) : undefined;
  if (firstEvent !== undefined) {
    print("Attaching and detaching: milliseconds, median (lowest..highest)", printAttach(attach));
    print("Start of the command to its first event, milliseconds", printSpread(firstEvent));
  }

  const programs = wanted.has("programs") ? await measurePrograms(PROGRAM_ROUNDS, showProgress) : [];
  if (programs.length > 0)
    print(
      "Compiled programs beside the kernel's JIT, an empty program's time subtracted",
      printPrograms(programs),
    );

  const arena = wanted.has("arena") ? await measureArena(ARENA_ROUNDS, showProgress) : undefined;
  if (arena !== undefined)
    print(
      `A hash map of ${arena.entries} entries in ${Math.round(arena.mapBytes / 2 ** 20)} MiB, keys at random, medians`,
      printArena(arena),
    );

  const targets = checkTargets([...hits, ...gate], attach, firstEvent);
  print("Promises", printTargets(targets));

  const file = join(repository, "bench/results/latest.json");
  mkdirSync(join(file, ".."), { recursive: true });
  writeFileSync(
    file,
    `${JSON.stringify({ machine, hits, gate, instructions, attach, firstEvent, programs, arena, targets }, undefined, 2)}\n`,
  );
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  process.stdout.write(`\n${seconds} s; as JSON in bench/results/latest.json\n`);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`bench: ${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 1;
}

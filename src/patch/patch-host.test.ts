/** Detours, the trap handler and return trampolines in a real process: threads, signals, longjmp, fork. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildFixture } from "../../test/support/fixtures.ts";
import { byteSourceOf, codeImageOf, type ElfFile, parseElf } from "../elf/index.ts";
import type { GateProgram } from "../gate/gate-frame.ts";
import { Assembler } from "../x86/assembler.ts";
import { ImageCode } from "../x86/regions.ts";
import { PT_REGS_IP, ptRegsOffset, RAX, RSP, regSet } from "../x86/registers.ts";
import { emitDetour } from "./detour.ts";
import { type Mechanism, patchOf, planSites } from "./plan.ts";
import { emitReturnTrampoline } from "./return-probe.ts";
import { emitReturnRuntime, returnTableBytes } from "./return-table.ts";
import { encodeSignalAction, SA_RESETHAND, SA_SIGINFO, type SignalAction } from "./signal-action.ts";
import { emitTrapHandler } from "./trap-handler.ts";
import { TrapTable } from "./trap-table.ts";

// Above the heap of a program without PIE, which the kernel places up to 1 GiB behind its data.
const CODE = 0x6000_0000n;
const TRAMPOLINES = 0x6800_0000n;
const TABLE = 0x6900_0000n;
const COUNTERS = 0x6a00_0000n;
const SITE_BYTES = 1024;

let binary: string;
let elf: ElfFile;
let code: ImageCode;
let folder: string;
beforeAll(() => {
  binary = buildFixture("patch-host", { flags: ["-no-pie", "-fno-pie", "-O1", "-foptimize-sibling-calls"] });
  elf = parseElf(byteSourceOf(readFileSync(binary)), { name: "patch-host" });
  code = new ImageCode(codeImageOf(elf, 0n));
  folder = mkdtempSync(join(tmpdir(), "trapline-patch-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const addresses = new Map<string, bigint>();
function addressOf(name: string): bigint {
  if (addresses.size === 0) {
    const listing = spawnSync("nm", [binary], { encoding: "utf8" }).stdout;
    for (const line of listing.split("\n")) {
      const [at, , symbol] = line.split(" ");
      if (symbol !== undefined && at !== "") addresses.set(symbol, BigInt(`0x${at}`));
    }
  }
  const found = addresses.get(name);
  if (found === undefined) throw new Error(`no symbol ${name}`);
  return found;
}

interface Probe {
  readonly symbol: string;
  readonly mechanism: Mechanism;
  readonly withReturn?: boolean;
}

interface Setup {
  readonly probes?: readonly Probe[];
  /** What SIGTRAP did before; also makes a trap handler even where no site needs one. */
  readonly previous?: SignalAction;
  readonly tableEntries?: number;
}

function record(kind: number, at: bigint, bytes: Uint8Array): Buffer {
  const head = BigUint64Array.of(BigInt(kind), at, BigInt(bytes.length));
  return Buffer.concat([Buffer.from(head.buffer), Buffer.from(bytes)]);
}

function counting(entry: bigint, slots: readonly number[]): GateProgram {
  return {
    name: "count",
    entry,
    clobbers: regSet(RAX),
    ctxReads: new Set(slots),
    stackBytes: 0,
    cookie: 0n,
  };
}

/**
 * Counters by word: for probe i, word 4i counts entries, 4i+1 returns, 4i+2 sums return values; word 3 counts missed
 * returns of all.
 */
function patchesFor({ probes = [], previous, tableEntries = 1024 }: Setup): Buffer {
  const codeBytes = new Uint8Array(64 << 10);
  const trampolineBytes = new Uint8Array(16 << 10);
  const pokes: Buffer[] = [];
  const put = (at: bigint, bytes: Uint8Array) => codeBytes.set(bytes, Number(at - CODE));

  const runtime = emitReturnRuntime(CODE + 512n, {
    at: TABLE,
    entries: tableEntries,
    trampolines: { start: TRAMPOLINES, end: TRAMPOLINES + BigInt(trampolineBytes.length) },
  });
  put(runtime.at, runtime.bytes);
  const traps = new TrapTable(64);
  for (const [i, probe] of probes.entries()) {
    const counters = COUNTERS + BigInt(i * 32);
    const base = CODE + BigInt(4096 + i * SITE_BYTES);
    const countEntry = new Assembler(base);
    countEntry.lock().inc({ ripTo: counters });
    countEntry.ret();
    put(base, countEntry.finish());
    const countReturn = new Assembler(base + 64n);
    countReturn.mov(RAX, { base: RSP, disp: 8 + ptRegsOffset[RAX]! });
    countReturn.lock().add({ ripTo: counters + 16n }, RAX);
    countReturn.lock().inc({ ripTo: counters + 8n });
    countReturn.mov(RAX, { base: RSP, disp: 8 + PT_REGS_IP });
    countReturn.ret();
    put(base + 64n, countReturn.finish());
    const [plan] = planSites(code, [addressOf(probe.symbol)], { mechanism: probe.mechanism });
    if (plan?.kind !== "planned") throw new Error(`${probe.symbol} refused`);
    let hook: { trampoline: bigint; claim: bigint } | undefined;
    if (probe.withReturn === true) {
      const trampoline = emitReturnTrampoline({
        at: TRAMPOLINES + BigInt(i * 1024),
        programs: [counting(base + 64n, [ptRegsOffset[RAX]!, PT_REGS_IP])],
        runtime,
        nmissed: COUNTERS + BigInt(probes.length * 32),
      });
      trampolineBytes.set(trampoline.bytes, i * 1024);
      hook = { trampoline: trampoline.stubs, claim: runtime.claim };
    }
    const detour = emitDetour({ plan, at: base + 128n, programs: [counting(base, [])], returnHook: hook });
    if (detour.kind === "refused") throw new Error(detour.refusal.reason);
    expect(detour.bytes.length).toBeLessThan(SITE_BYTES - 128);
    put(detour.at, detour.bytes);
    pokes.push(record(1, plan.at, patchOf(plan, probe.mechanism, detour.entry)));
    if (probe.mechanism === "int3") traps.set(plan.at, detour.entry);
  }
  const needsHandler = previous !== undefined || probes.some((probe) => probe.mechanism === "int3");
  if (needsHandler) {
    const handler = emitTrapHandler({
      at: CODE + BigInt(32 << 10),
      table: traps,
      previous: previous ?? { handler: 0n, flags: 0n, restorer: 0n, mask: 0n },
      resetWord: COUNTERS + 2048n,
    });
    put(handler.at, handler.bytes);
    pokes.push(record(2, 0n, encodeSignalAction(handler.action)));
  }
  return Buffer.concat([
    record(0, CODE, codeBytes),
    record(0, TRAMPOLINES, trampolineBytes),
    record(0, TABLE, new Uint8Array(returnTableBytes(tableEntries))),
    record(0, COUNTERS, new Uint8Array(4096)),
    ...pokes,
    record(3, COUNTERS, new Uint8Array(probes.length * 32 + 32)),
  ]);
}

function run(scenario: string, setup: Setup) {
  const file = join(folder, `${scenario.replaceAll(" ", "-")}-${Math.trunc(performance.now() * 1000)}`);
  writeFileSync(file, patchesFor(setup));
  const child = spawnSync(binary, [file, scenario], { encoding: "utf8", timeout: 30_000 });
  const numbers = (key: string) =>
    [...child.stdout.matchAll(new RegExp(`^${key} (\\d+)$`, "gm"))].map((match) => Number(match[1]));
  return {
    status: child.status,
    signal: child.signal,
    wrong: numbers("wrong")[0],
    traps: numbers("traps")[0],
    words: numbers("word"),
    numbers,
  };
}

describe("a probed function called by four threads is counted exactly", () => {
  for (const mechanism of ["jump", "int3"] as const) {
    test(mechanism, () => {
      const result = run("work", { probes: [{ symbol: "work", mechanism }] });
      expect(result).toMatchObject({ status: 0, wrong: 0 });
      expect(result.words[0]).toBe(4 * 20_000);
    });
  }
});

describe("entry and return counts are equal", () => {
  for (const mechanism of ["jump", "int3"] as const) {
    test(`recursion on four threads, ${mechanism}`, () => {
      const result = run("fib", { probes: [{ symbol: "fib", mechanism, withReturn: true }] });
      expect(result).toMatchObject({ status: 0, wrong: 0 });
      const callsOfFib16 = 3193;
      expect(result.words.slice(0, 2)).toEqual([4 * callsOfFib16, 4 * callsOfFib16]);
      expect(result.words.at(-4)).toBe(0);
    });
  }

  test("a chain of tail calls between probed functions", () => {
    const probes = ["chain_a", "chain_b", "chain_c"].map((symbol) => ({
      symbol,
      mechanism: "jump" as const,
      withReturn: true,
    }));
    const result = run("chain", { probes });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
    const sum = Array.from({ length: 1000 }, (_, i) => (i + 3) ** 2 + 1).reduce((a, b) => a + b);
    for (let i = 0; i < 3; i++) expect(result.words.slice(i * 4, i * 4 + 3)).toEqual([1000, 1000, sum]);
  });

  test("chains deeper than seven tail calls are counted as missed", () => {
    const probes = ["even", "odd"].map((symbol) => ({
      symbol,
      mechanism: "jump" as const,
      withReturn: true,
    }));
    const result = run("mutual", { probes });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
    const entries = result.words[0]! + result.words[4]!;
    const returns = result.words[1]! + result.words[5]!;
    expect(result.words.at(-4)).toBeGreaterThan(0);
    expect(returns + result.words.at(-4)!).toBe(entries);
  });

  test("a full table counts missed returns and changes nothing else", () => {
    const result = run("deep", {
      probes: [{ symbol: "deep", mechanism: "jump", withReturn: true }],
      tableEntries: 8,
    });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
    expect(result.words[0]).toBe(101 + 4);
    expect(result.words.at(-4)).toBe(101 - 8);
    expect(result.words[1]).toBe(8 + 4);
  });

  test("values in rdx:rax, xmm0 and st0 come through", () => {
    const probes = ["wide", "real", "extended"].map((symbol) => ({
      symbol,
      mechanism: "jump" as const,
      withReturn: true,
    }));
    const result = run("values", { probes });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
    for (let i = 0; i < 3; i++) expect(result.words.slice(i * 4, i * 4 + 2)).toEqual([100, 100]);
  });

  test("signal handlers that call probed functions", () => {
    const probes = ["fib", "work"].map((symbol) => ({
      symbol,
      mechanism: "jump" as const,
      withReturn: true,
    }));
    const result = run("signals", { probes });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
    expect(result.numbers("handled")).toEqual([1]);
    expect(result.words[1]).toBe(result.words[0]);
    expect(result.words[5]).toBe(result.words[4]);
    expect(result.words[4]).toBeGreaterThan(0);
  });
});

describe("functions that do not return", () => {
  test("longjmp leaves entries behind that are taken over", () => {
    const probes = ["jumper", "fib"].map((symbol) => ({
      symbol,
      mechanism: "jump" as const,
      withReturn: true,
    }));
    const result = run("longjmp", { probes, tableEntries: 128 });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
    expect(result.words[1]).toBe(0);
    // Nobody calls at exactly the slots of the last ones again.
    expect(result.words.at(-3)).toBeGreaterThan(0);
    expect(result.words.at(-3)).toBeLessThanOrEqual(result.words[0]!);
    expect(result.words[5]).toBe(result.words[4]);
  });

  test("threads that exit inside", () => {
    const result = run("exit", {
      probes: [
        { symbol: "leaver", mechanism: "jump", withReturn: true },
        { symbol: "fib", mechanism: "jump", withReturn: true },
      ],
    });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
    expect(result.words.slice(0, 2)).toEqual([800, 0]);
    expect(result.words[5]).toBe(result.words[4]);
  });

  test("a forked child returns through its own copy", () => {
    const result = run("fork", { probes: [{ symbol: "forker", mechanism: "jump", withReturn: true }] });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
    expect(result.words.slice(0, 2)).toEqual([1, 1]);
  });
});

function action(handler: string, flags: bigint): SignalAction {
  return { handler: addressOf(handler), flags, restorer: 0n, mask: 0n };
}

describe("traps of the application", () => {
  const site: Probe = { symbol: "work", mechanism: "int3" };
  for (const scenario of ["breakpoint", "long breakpoint", "kill", "ignored breakpoint"]) {
    test(`${scenario}: dies of SIGTRAP`, () => {
      const handler = scenario.startsWith("ignored") ? 1n : 0n;
      const result = run(scenario, {
        probes: [site],
        previous: { handler, flags: 0n, restorer: 0n, mask: 0n },
      });
      expect(result).toMatchObject({ status: null, signal: "SIGTRAP" });
    });
  }

  test("a signal sent to a process that ignores it is ignored", () => {
    const result = run("ignored kill", { previous: { handler: 1n, flags: 0n, restorer: 0n, mask: 0n } });
    expect(result).toMatchObject({ status: 0, wrong: 0 });
  });

  test("handler with siginfo", () => {
    const result = run("breakpoint", { probes: [site], previous: action("app_info_handler", SA_SIGINFO) });
    expect(result).toMatchObject({ status: 0, traps: 1 });
  });

  test("plain handler", () => {
    const result = run("breakpoint", { probes: [site], previous: action("app_plain_handler", 0n) });
    expect(result).toMatchObject({ status: 0, traps: 1 });
  });

  test("handler that comes to a site itself", () => {
    const result = run("breakpoint", {
      probes: [site],
      previous: action("app_working_handler", SA_SIGINFO),
    });
    expect(result).toMatchObject({ status: 0, traps: 1 });
    expect(result.words[0]).toBe(1);
  });

  test("handler for one time: the second trap is fatal", () => {
    const result = run("two breakpoints", {
      probes: [site],
      previous: action("app_plain_handler", SA_RESETHAND),
    });
    expect(result).toMatchObject({ status: null, signal: "SIGTRAP" });
    expect(result.numbers("once")).toEqual([1]);
  });
});

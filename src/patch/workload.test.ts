/**
 * Thousands of instructions of a statically linked program and its C library are probed at once, anywhere in their
 * functions, by programs that ruin every register and flag. The program must compute what it computed before.
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
import { PT_REGS_FLAGS, PT_REGS_IP, PT_REGS_SP, RSP } from "../x86/registers.ts";
import { emitDetour } from "./detour.ts";
import { patchOf, planSites } from "./plan.ts";
import { encodeSignalAction } from "./signal-action.ts";
import { emitTrapHandler } from "./trap-handler.ts";
import { TrapTable } from "./trap-table.ts";

// Above the heap of a program without PIE, which the kernel places up to 1 GiB behind its data.
const CODE = 0x6000_0000n;
const COUNTER = 0x6800_0000n;
const SITES = 2500;

/** Functions that run while the text changes. */
const untouched =
  /^(main|apply|_start|read|__read.*|__libc_read|mmap.*|__mmap.*|open.*|__open.*|__libc_open.*|_exit)$/;

let binary: string;
let folder: string;
let expected: string;
let code: ImageCode;
let candidates: bigint[];
beforeAll(() => {
  binary = buildFixture("patch-workload", { flags: ["-static", "-no-pie", "-fno-pie", "-lm"] });
  folder = mkdtempSync(join(tmpdir(), "trapline-workload-"));
  const plain = spawnSync(binary, ["/nonexistent"], { encoding: "utf8" });
  expect(plain.status).toBe(0);
  expected = plain.stdout;
  code = new ImageCode(codeImageOf(parseElf(byteSourceOf(readFileSync(binary)), { name: "workload" }), 0n));
  candidates = allInstructions();
});
afterAll(() => rmSync(folder, { recursive: true }));

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

function record(kind: number, at: bigint, bytes: Uint8Array): Buffer {
  const head = BigUint64Array.of(BigInt(kind), at, BigInt(bytes.length));
  return Buffer.concat([Buffer.from(head.buffer), Buffer.from(bytes)]);
}

function emitRuin(at: bigint): Uint8Array {
  const asm = new Assembler(at);
  asm.lock().inc({ ripTo: COUNTER });
  for (let reg = 0; reg < 16; reg++) if (reg !== RSP) asm.movImm(reg, 0xdead_0000 + reg);
  asm.addImm(RSP, 0);
  asm.ret();
  return asm.finish();
}

function seeds(): number[] {
  const [first, last] = (process.env.TRAPLINE_SEEDS ?? "1-4").split("-").map(Number);
  return Array.from({ length: last! - first! + 1 }, (_, i) => first! + i);
}

describe("a program computes the same with thousands of probes that ruin all they may", () => {
  for (const seed of seeds()) {
    test(`seed ${seed}`, () => {
      const random = randomWords(seed);
      const sites = new Set<bigint>();
      while (sites.size < SITES) sites.add(candidates[Number(random() % BigInt(candidates.length))]!);
      // Every other round takes int3 where a jump is refused.
      const withTraps = seed % 2 === 1;
      const plans = planSites(code, [...sites], { mechanism: withTraps ? "auto" : "jump" });
      const traps = new TrapTable(TrapTable.capacityFor(SITES));
      const arena = new Uint8Array(3 << 20);
      arena.set(emitRuin(CODE));
      const program: GateProgram = {
        name: "ruin",
        entry: CODE,
        clobbers: 0xffff & ~(1 << RSP),
        ctxReads: new Set(seed % 4 < 2 ? [] : [PT_REGS_IP, PT_REGS_SP, PT_REGS_FLAGS, 112]),
        stackBytes: 8,
        cookie: 0n,
      };
      const pokes: Buffer[] = [];
      let next = CODE + 256n;
      for (const plan of plans) {
        if (plan.kind === "refused") continue;
        const detour = emitDetour({ plan, at: next, programs: [program] });
        if (detour.kind === "refused") throw new Error(detour.refusal.reason);
        arena.set(detour.bytes, Number(next - CODE));
        next += BigInt(detour.bytes.length);
        pokes.push(record(1, plan.at, patchOf(plan, plan.mechanism, detour.entry)));
        if (plan.mechanism === "int3") traps.set(plan.at, detour.entry);
      }
      expect(pokes.length).toBeGreaterThan(SITES * (withTraps ? 0.99 : 0.85));
      if (withTraps) {
        const previous = { handler: 0n, flags: 0n, restorer: 0n, mask: 0n };
        const handler = emitTrapHandler({ at: (next + 63n) & ~63n, table: traps, previous });
        arena.set(handler.bytes, Number(handler.at - CODE));
        next = handler.at + BigInt(handler.bytes.length);
        pokes.unshift(record(2, 0n, encodeSignalAction(handler.action)));
      }
      const file = join(folder, `patches-${seed}`);
      writeFileSync(
        file,
        Buffer.concat([
          record(0, CODE, arena.subarray(0, Number(next - CODE))),
          record(0, COUNTER, new Uint8Array(4096)),
          ...pokes,
        ]),
      );
      const run = spawnSync(binary, [file], { encoding: "utf8", timeout: 60_000 });
      expect({ status: run.status, signal: run.signal, output: run.stdout }).toEqual({
        status: 0,
        signal: null,
        output: expected,
      });
      expect(Number(run.stderr.match(/^hits (\d+)$/m)?.[1])).toBeGreaterThan(5_000);
    });
  }
});

/** Clocks, the functions' arguments, and reads of the program's own memory. */
import { readdirSync, readFileSync } from "node:fs";
import { uptime } from "node:os";
import { afterAll, describe, expect, it } from "vitest";
import { HelperCases, memoryWith } from "../../../../test/support/helper-case.ts";
import { clockGettimeAddress, contextOf } from "../../../../test/support/native-bpf.ts";
import {
  HELPER_GET_FUNC_ARG,
  HELPER_GET_FUNC_ARG_CNT,
  HELPER_GET_FUNC_RET,
  HELPER_GET_NUMA_NODE_ID,
  HELPER_JIFFIES64,
  HELPER_KTIME_GET_BOOT_NS,
  HELPER_KTIME_GET_COARSE_NS,
  HELPER_KTIME_GET_TAI_NS,
  HELPER_PROBE_READ,
  HELPER_PROBE_READ_KERNEL,
  HELPER_PROBE_READ_KERNEL_STR,
  HELPER_PROBE_READ_STR,
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
} from "../../helpers.ts";

const cases = new HelperCases();
afterAll(() => cases[Symbol.dispose]());

const near = (got: bigint, want: bigint, within: bigint) => {
  expect(got).toBeGreaterThan(want - within);
  expect(got).toBeLessThan(want + within);
};
const word = (memory: Uint8Array) => new DataView(memory.buffer).getBigUint64(64, true);

describe("clocks", () => {
  const SECOND = 1_000_000_000n;
  const TICKS = 20_000_000n;
  it.each([
    { name: "system call", clockGettime: undefined },
    { name: "C function", clockGettime: clockGettimeAddress() },
  ])("by $name", ({ clockGettime }) => {
    using timed = new HelperCases([], { clockGettime });
    const read = (helper: number) => timed.runNative({ helper, args: [] }).result;
    near(read(HELPER_KTIME_GET_BOOT_NS), BigInt(Math.round(uptime() * 1e9)), 2n * SECOND);
    near(read(HELPER_KTIME_GET_COARSE_NS), process.hrtime.bigint(), TICKS);
    // Ahead of UTC by whole seconds, or the same where nobody told the kernel.
    const ahead = read(HELPER_KTIME_GET_TAI_NS) - BigInt(Date.now()) * 1_000_000n;
    const seconds = (ahead + SECOND / 2n) / SECOND;
    expect([0n, 37n]).toContain(seconds);
    near(ahead, seconds * SECOND, TICKS);
  });

  it("ticks go on as the coarse clock does, from 300 seconds before 2^32", () => {
    const [ticks, ns] = [HELPER_JIFFIES64, HELPER_KTIME_GET_COARSE_NS].map(
      (helper) => cases.runNative({ helper, args: [] }).result,
    ) as [bigint, bigint];
    const fits = [100n, 250n, 300n, 1000n].filter((hz) => {
      const want = 2n ** 32n - 300n * hz + ns / (SECOND / hz);
      return ticks >= want - 10n && ticks <= want;
    });
    expect(fits).toHaveLength(1);
  });

  it.each(["rdpid", "lsl"] as const)("memory node by %s", (cpu) => {
    using placed = new HelperCases([], { cpu });
    const nodes = readdirSync("/sys/devices/system").includes("node")
      ? readFileSync("/sys/devices/system/node/online", "utf8")
      : "0";
    const last = Number(/\d+\s*$/.exec(nodes)![0]);
    const { result } = placed.runNative({ helper: HELPER_GET_NUMA_NODE_ID, args: [] });
    expect(result).toBeGreaterThanOrEqual(0n);
    expect(result).toBeLessThanOrEqual(BigInt(last));
  });
});

describe("the traced function", () => {
  const ctx = contextOf((offset) => BigInt(offset) << 40n);
  it.each([
    { n: 0n, result: 0n, slot: 112n },
    { n: 1n, result: 0n, slot: 104n },
    { n: 2n, result: 0n, slot: 96n },
    { n: 3n, result: 0n, slot: 88n },
    { n: 4n, result: 0n, slot: 72n },
    { n: 5n, result: 0n, slot: 64n },
    { n: 6n, result: -22n, slot: 0n },
    { n: 1n << 32n, result: -22n, slot: 0n },
    { n: -1n, result: -22n, slot: 0n },
  ])("argument $n", ({ n, result, slot }) => {
    const got = cases.run({ helper: HELPER_GET_FUNC_ARG, args: ["ctx", n, { memory: 64 }], ctx });
    expect([got.result, word(got.memory)]).toEqual([result, slot << 40n]);
  });

  it("result", () => {
    const got = cases.run({ helper: HELPER_GET_FUNC_RET, args: ["ctx", { memory: 64 }], ctx });
    expect([got.result, word(got.memory)]).toEqual([0n, 80n << 40n]);
  });

  it("as many arguments as there are registers", () => {
    expect(cases.run({ helper: HELPER_GET_FUNC_ARG_CNT, args: ["ctx"] }).result).toBe(6n);
  });
});

describe("reads of the program's own memory", () => {
  const before = memoryWith([[256, "some text in a map"]]);
  const memory = [HELPER_PROBE_READ, HELPER_PROBE_READ_USER, HELPER_PROBE_READ_KERNEL];
  const strings = [HELPER_PROBE_READ_STR, HELPER_PROBE_READ_USER_STR, HELPER_PROBE_READ_KERNEL_STR];

  it.each(memory)("bytes by helper %i", (helper) => {
    const got = cases.run({ helper, args: [{ memory: 0 }, 8, { memory: 256 }], before });
    expect(got.result).toBe(0n);
    expect(Buffer.from(got.memory.subarray(0, 9)).toString("latin1")).toBe("some tex\0");
  });

  it.each(strings)("a string by helper %i", (helper) => {
    const whole = cases.run({ helper, args: [{ memory: 0 }, 64, { memory: 261 }], before });
    expect(whole.result).toBe(14n);
    expect(Buffer.from(whole.memory.subarray(0, 14)).toString("latin1")).toBe("text in a map\0");
    const cut = cases.run({ helper, args: [{ memory: 0 }, 5, { memory: 261 }], before });
    expect(cut.result).toBe(5n);
    expect(Buffer.from(cut.memory.subarray(0, 5)).toString("latin1")).toBe("text\0");
  });

  it.each([...memory, ...strings])("an address where nothing is, by helper %i", (helper) => {
    const got = cases.run({ helper, args: [{ memory: 0 }, 16, 0x1000n], before: new Uint8Array(32).fill(7) });
    expect(got.result).toBe(-14n);
    expect(got.memory.subarray(0, 17)).toEqual(new Uint8Array([...new Uint8Array(16), 7]));
  });
});

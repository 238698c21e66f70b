/** Records of printk, written by compiled code and by the interpreter, and the text that is made of them. */
import { afterAll, describe, expect, it } from "vitest";
import { CASE_BYTES, HelperCases, memoryWith } from "../../../../test/support/helper-case.ts";
import { NativeBpf } from "../../../../test/support/native-bpf.ts";
import { CONTROL_BYTES, forkedMemory, SteppedProgram } from "../../../../test/support/stepped-program.ts";
import { InsnBuilder, r1, r2, r3, r4, r5, r10 } from "../../builder.ts";
import { HELPER_TRACE_PRINTK, HELPER_TRACE_VPRINTK } from "../../helpers.ts";
import { layoutMap, RingConsumer, RingMap } from "../../maps/index.ts";
import { decodePrintk, formatPrintk } from "../../printk.ts";
import type { MapSpec } from "../../program.ts";

const RING = 1;
const [FORMAT, DATA, TEXTS] = [0, 2048, 3072];
const ring = (valueBytes: number): MapSpec => ({
  name: "printk",
  kind: "ringbuf",
  keyBytes: 0,
  valueBytes,
  maxEntries: 8,
});

/** Memory, a ring for records of this size, and its reader. */
function openRing(valueBytes: number) {
  const cases = new HelperCases([ring(valueBytes)], {}, { printk: RING });
  const map = cases.native.maps[RING];
  if (!(map instanceof RingMap)) throw new Error("no ring");
  const consumer = new RingConsumer(map.layout, map.memory, map.byteOffset, { nowMs: () => 0 });
  const take = () => {
    const records: Uint8Array[] = [];
    consumer.drain((record) => records.push(record.slice()));
    return records;
  };
  return { cases, take };
}

const large = openRing(1024);
const small = openRing(160);
afterAll(() => {
  large.cases[Symbol.dispose]();
  small.cases[Symbol.dispose]();
});

interface At {
  readonly at: number;
}

interface Line {
  readonly format: string;
  readonly args?: readonly (bigint | At)[];
  readonly texts?: string | Uint8Array;
  readonly world?: typeof large;
  readonly size?: number;
}

/** Prints by both helpers where there are three arguments, by the one that takes any number otherwise. */
function print({ format, args = [], texts = "", world = large, size = format.length + 1 }: Line) {
  const { cases, take } = world;
  const values = args.map((arg) => (typeof arg === "bigint" ? arg : cases.memoryAt + BigInt(TEXTS + arg.at)));
  const data = new Uint8Array(8 * values.length);
  for (const [i, value] of values.entries())
    new DataView(data.buffer).setBigUint64(8 * i, BigInt.asUintN(64, value), true);
  const before = memoryWith([
    [FORMAT, format],
    [DATA, data],
    [TEXTS, texts],
  ]);
  const calls = [
    {
      helper: HELPER_TRACE_VPRINTK,
      args: [{ memory: FORMAT }, size, { memory: DATA }, data.length],
    },
  ] as { helper: number; args: Parameters<HelperCases["run"]>[0]["args"] }[];
  if (values.length === 3)
    calls.push({ helper: HELPER_TRACE_PRINTK, args: [{ memory: FORMAT }, size, ...values] });
  const outcomes = calls.map((call) => {
    const { result } = cases.run({
      ...call,
      before,
      host: {
        pidTgid: () => (BigInt(process.pid) << 32n) | 77n,
        readUser(addr, into) {
          const at = addr - cases.memoryAt;
          if (at < 0n || at + BigInt(into.length) > BigInt(CASE_BYTES)) return false;
          into.set(before.subarray(Number(at), Number(at) + into.length));
          return true;
        },
      },
    });
    const records = take();
    // Thread, processor and time are the host's; the rest is the same to the byte.
    expect(records.map((record) => Buffer.from(record.subarray(12, 16)).toString("hex"))[0]).toBe(
      records.map((record) => Buffer.from(record.subarray(12, 16)).toString("hex"))[1],
    );
    expect(records[0]?.subarray(24)).toEqual(records[1]?.subarray(24));
    return { result: Number(result), records };
  });
  expect(outcomes[1] ?? outcomes[0]).toMatchObject({ result: outcomes[0]!.result });
  return {
    result: outcomes[0]!.result,
    texts: outcomes.flatMap(({ records }) => records.map(formatPrintk)),
    outcomes,
  };
}

describe("trace_printk and trace_vprintk", () => {
  it.each([
    { format: "hello", want: "hello" },
    { format: "", want: "" },
    { format: "%d %d %d", args: [1n, -2n, 3n], want: "1 -2 3" },
    {
      format: "malloc %lu by %s, 100%%",
      args: [4096n, { at: 0 }, 0n],
      texts: "nginx",
      want: "malloc 4096 by nginx, 100%",
    },
    {
      format: "%s|%8s|%-6s|",
      args: [{ at: 0 }, { at: 3 }, 8n],
      texts: "ab\0cd",
      want: "ab|      cd|      |",
    },
    { format: "%pks %pus %c", args: [{ at: 0 }, { at: 3 }, 65n], texts: "ab\0cd", want: "ab cd A" },
    {
      format: "%pI4 %pi6 %px",
      args: [{ at: 0 }, { at: 4 }, 255n],
      texts: Uint8Array.from({ length: 20 }, (_, i) => i),
      want: "0.1.2.3 0405060708090a0b0c0d0e0f10111213 00000000000000ff",
    },
    { format: "%pI4 %pI6", args: [0n, 8n], want: "0.0.0.0 0000:0000:0000:0000:0000:0000:0000:0000" },
    { format: "%d%s%d%s", args: [1n, { at: 0 }, 2n, { at: 1 }], texts: "xyz", want: "1xyz2yz" },
    { format: "%d %d", args: [1n, 2n, 3n], want: "1 2" },
    {
      format: "%d%d%d%d%d%d%d%d%d%d%d%d",
      args: Array.from({ length: 12 }, (_, i) => BigInt(i)),
      want: "01234567891011",
    },
  ] as readonly (Line & { readonly want: string })[])("$format", ({ want, ...line }) => {
    const got = print(line);
    expect(got.result).toBe(line.format.length);
    expect(new Set(got.texts)).toEqual(new Set([want]));
    expect(got.texts).toHaveLength(line.args?.length === 3 ? 4 : 2);
  });

  it("says who printed, where and when", () => {
    const before = process.hrtime.bigint();
    const { outcomes } = print({ format: "x" });
    const record = decodePrintk(outcomes[0]!.records[0]!);
    expect(record).toMatchObject({ pid: process.pid, text: "x" });
    expect(record.tid).toBeGreaterThan(0);
    expect(record.cpu).toBeLessThan(4096);
    expect(record.timeNs).toBeGreaterThanOrEqual(before);
    expect(record.timeNs).toBeLessThanOrEqual(process.hrtime.bigint());
  });

  it.each([
    { name: "the format does not fit", format: `${"f".repeat(200)}%d`, args: [1n], want: "f".repeat(128) },
    {
      name: "a string is cut",
      format: "%s",
      args: [{ at: 0 }],
      texts: "s".repeat(300),
      want: "s".repeat(160 - 24 - 8 - 2 - 2 - 1),
    },
    {
      name: "the second string does not fit",
      format: "%s%s",
      args: [{ at: 0 }, { at: 0 }],
      texts: "s".repeat(300),
      want: "s".repeat(160 - 24 - 16 - 4 - 2 - 1),
    },
    {
      name: "an address does not fit",
      format: `${"f".repeat(110)}%pI6`,
      args: [{ at: 0 }],
      texts: "x".repeat(16),
      want: `${"f".repeat(110)}0000:0000:0000:0000:0000:0000:0000:0000`,
    },
  ] as readonly (Line & { readonly name: string; readonly want: string })[])(
    "cut: $name",
    ({ want, ...line }) => {
      const got = print({ ...line, world: small });
      expect(got.result).toBe(line.format.length);
      expect(got.texts).toEqual([want, want]);
    },
  );

  it("strings are cut at 511 bytes", () => {
    const { texts } = print({ format: "%s!", args: [{ at: 0 }], texts: "x".repeat(600) });
    expect(texts[0]).toBe(`${"x".repeat(511)}!`);
  });

  it.each([
    { name: "no NUL", format: "abc", size: 3 },
    {
      name: "no bytes of arguments that there could be",
      format: "abc",
      args: Array.from({ length: 13 }, () => 0n),
    },
  ])("-EINVAL: $name", (line) => {
    const got = print(line);
    expect([got.result, got.texts]).toEqual([-22, []]);
  });

  it("what ends before the size is the format", () => {
    expect(print({ format: "ab\0cd", size: 6 }).texts[0]).toBe("ab");
  });

  it.each(["%", "%y", "%d %d", "caf\xe9"])(
    "a format that the kernel refuses is shown as it is: %s",
    (format) => {
      expect(print({ format, args: [1n] }).texts[0]).toMatch(/^\(invalid format "/);
    },
  );

  it("a full ring", () => {
    const world = openRing(256);
    using _ = world.cases;
    const { cases } = world;
    const before = memoryWith([[FORMAT, "x"]]);
    const call = { helper: HELPER_TRACE_PRINTK, args: [{ memory: FORMAT }, 2, 0, 0, 0], before };
    const results = Array.from({ length: 10 }, () => Number(cases.runNative(call).result));
    expect(results).toEqual([1, 1, 1, 1, 1, 1, 1, 1, -16, -16]);
    expect(world.take()).toHaveLength(8);
  });

  it.each([
    { name: "no ring", printk: {} },
    { name: "a ring of tiny records", printk: { printk: RING } },
  ])("without a reader: $name", ({ printk }) => {
    using cases = new HelperCases([ring(64)], {}, printk);
    const run = (text: string, size: number) =>
      Number(
        cases.runNative({
          helper: HELPER_TRACE_PRINTK,
          args: [{ memory: FORMAT }, size, 0, 0, 0],
          before: memoryWith([[FORMAT, text]]),
        }).result,
      );
    expect([run("hello", 6), run("hello", 5)]).toEqual([5, -22]);
  });

  it("the reader believes nothing", () => {
    const record = print({ format: "%s %d %s", args: [{ at: 0 }, 5n, { at: 0 }], texts: "text" }).outcomes[0]!
      .records[0]!;
    for (let at = 12; at < record.length; at++) {
      for (const value of [0, 0x7f, 0xff]) {
        const changed = record.slice();
        changed[at] = value;
        expect(typeof formatPrintk(changed)).toBe("string");
      }
      expect(typeof formatPrintk(record.subarray(0, at))).toBe("string");
    }
    expect(layoutMap(ring(1024)).kind).toBe("ringbuf");
  });
});

describe("a thread that dies while it prints", () => {
  it("leaves a whole record or none, at every instruction, and the ring goes on", () => {
    const spec = { ...ring(256), maxEntries: 4 };
    const memory = forkedMemory(layoutMap(spec).totalBytes + 64 + CONTROL_BYTES);
    const native = new NativeBpf({ maps: [spec], memory, printk: 0 });
    const { insns } = new InsnBuilder()
      .st(4, r10, -8, 0x00_73_25)
      .mov64(r1, r10)
      .alu64("add", r1, -8)
      .mov64(r3, r1)
      .mov64(r2, 3)
      .mov64(r4, 0)
      .mov64(r5, 0)
      .call(HELPER_TRACE_PRINTK)
      .exit()
      .build();
    const outcomes = new Set<string>();
    using stepped = new SteppedProgram(native, memory, memory.bytes.length - CONTROL_BYTES, insns, 0n);
    stepped.save();
    let steps = 0;
    do {
      const map = native.maps[0] as RingMap;
      const clock = { ms: 0 };
      const consumer = new RingConsumer(map.layout, native.memory, map.byteOffset, {
        nowMs: () => clock.ms,
        retireAfterMs: 10,
      });
      const lines: string[] = [];
      const read = () => consumer.poll(10, (record) => lines.push(formatPrintk(record)));
      read();
      clock.ms = 10;
      read();
      expect(["", "%s"]).toContain(lines.join());
      outcomes.add(lines.join());
      for (let lap = 0; lap < 3; lap++) {
        for (let i = 0; i < 3; i++) map.submit(map.reserve(64)!);
        expect(read()).toBe(3);
      }
      expect(consumer.corrupt).toBe(0);
      steps++;
    } while (stepped.advance());
    expect(steps).toBeGreaterThan(100);
    expect(outcomes).toEqual(new Set(["", "%s"]));
    native[Symbol.dispose]();
    memory[Symbol.dispose]();
  });
});

/** Helpers about the thread and the clock, against what the test process knows about itself. */
import { readFileSync } from "node:fs";
import koffi from "koffi";
import { describe, expect, it } from "vitest";
import {
  clockGettimeAddress,
  contextOf,
  insnsOf,
  nativeBpfOpener,
} from "../../../../test/support/native-bpf.ts";
import {
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_GET_FUNC_IP,
  HELPER_GET_PRANDOM_U32,
  HELPER_GET_SMP_PROCESSOR_ID,
  HELPER_KTIME_GET_NS,
  r1,
  r2,
} from "../../index.ts";

const libc = koffi.load("libc.so.6");
const gettid = libc.func("int gettid()");
const open = nativeBpfOpener();
const noContext = contextOf(() => 0n);
const call = (helper: number) => insnsOf((b) => b.call(helper));

/** Where the C library keeps the thread id: found by looking for it, as at attach. */
function findTidOffset(): number {
  const native = open([]);
  for (let offset = 0x100; offset < 0x800; offset += 4) {
    const { asm, written } = native.place((a) => {
      const entry = a.here("read fs");
      a.mov(0, { fs: offset }, 32);
      a.ret();
      return entry;
    });
    const program = { ...native.compile(call(HELPER_GET_SMP_PROCESSOR_ID)).program };
    if (native.run({ program, entry: asm.addressOf(written) }, noContext) === BigInt(gettid())) return offset;
  }
  throw new Error("the thread id is nowhere near fs");
}

describe("who and when", () => {
  it.each(["rdpid", "lsl"] as const)("processor number by %s", (cpu) => {
    const native = open([], { cpu });
    const program = native.compile(call(HELPER_GET_SMP_PROCESSOR_ID));
    const allowed = /Cpus_allowed_list:\s*(.*)/.exec(readFileSync("/proc/self/status", "utf8"))![1]!;
    const cpus = allowed.split(",").flatMap((range) => {
      const [from, to = from] = range.split("-").map(Number) as [number, number?];
      return Array.from({ length: to - from + 1 }, (_, i) => BigInt(from + i));
    });
    expect(cpus).toContain(native.run(program, noContext));
    expect(program.program.clobbers).toBe(1);
  });

  it.each([
    { name: "system call", clockGettime: undefined },
    { name: "C function", clockGettime: clockGettimeAddress() },
  ])("time by $name", ({ clockGettime }) => {
    const native = open([], { clockGettime });
    const program = native.compile(call(HELPER_KTIME_GET_NS));
    for (let i = 0; i < 5; i++) {
      const before = process.hrtime.bigint();
      const got = native.run(program, noContext);
      expect(got).toBeGreaterThanOrEqual(before);
      expect(got).toBeLessThanOrEqual(process.hrtime.bigint());
    }
  });

  it.each([
    { name: "by system call", env: () => ({}) },
    { name: "from the thread's own memory", env: () => ({ tidOffset: findTidOffset() }) },
  ])("process and thread id $name; the cache is filled once and believed", ({ env }) => {
    const native = open([], env());
    const program = native.compile(call(HELPER_GET_CURRENT_PID_TGID));
    const want = (BigInt(process.pid) << 32n) | BigInt(gettid());
    const { view } = native.memory;
    const cache = native.memory.bytes.length - 64;
    expect(native.run(program, noContext)).toBe(want);
    expect(view.getUint32(cache, true)).toBe(process.pid);
    expect(view.getUint32(cache + 4, true)).toBe(process.pid);
    expect(native.run(program, noContext)).toBe(want);
    view.setUint32(cache, 77, true);
    expect(native.run(program, noContext)).toBe((77n << 32n) | BigInt(gettid()));
    view.setUint32(cache + 4, 0, true);
    view.setUint32(cache, 0, true);
    expect(native.run(program, noContext)).toBe(want);
  });

  it("user and group id", () => {
    const native = open([]);
    const got = native.run(native.compile(call(HELPER_GET_CURRENT_UID_GID)), noContext);
    expect(got).toBe((BigInt(process.getgid!()) << 32n) | BigInt(process.getuid!()));
  });

  it("random numbers are 32 bits wide and differ", () => {
    const native = open([]);
    const program = native.compile(call(HELPER_GET_PRANDOM_U32));
    const got = Array.from({ length: 200 }, () => native.run(program, noContext));
    expect(got.every((value) => value >> 32n === 0n)).toBe(true);
    expect(new Set(got).size).toBeGreaterThan(195);
    const ones = got.reduce((sum, value) => sum + value.toString(2).replaceAll("0", "").length, 0);
    expect(Math.abs(ones / 200 - 16)).toBeLessThan(2);
  });

  it("cookie and address of the function come from the context", () => {
    const native = open([]);
    const ctx = contextOf((offset) => BigInt(offset) << 40n);
    const cookie = native.compile(call(HELPER_GET_ATTACH_COOKIE));
    expect(native.run(cookie, ctx)).toBe(120n << 40n);
    expect(cookie.program.ctxReads).toEqual(new Set([120]));
    const ip = native.compile(call(HELPER_GET_FUNC_IP));
    expect(native.run(ip, ctx)).toBe(128n << 40n);
    expect(ip.program.ctxReads).toEqual(new Set([128]));
  });

  it.each([1, 2, 5, 15, 16, 17, 32])("the thread's name in %i bytes", (lenBytes) => {
    const native = open([{ name: "a", kind: "array", keyBytes: 4, valueBytes: 40, maxEntries: 1 }]);
    const program = native.compile(
      insnsOf((b) => b.ldMapValue(r1, 0).mov64(r2, lenBytes).call(HELPER_GET_CURRENT_COMM)),
    );
    native.memory.bytes.fill(0xee, 0, 40);
    expect(native.run(program, noContext)).toBe(0n);
    const name = readFileSync("/proc/thread-self/comm").subarray(0, -1);
    const want = new Uint8Array(40).fill(0xee, lenBytes);
    want.set(name.subarray(0, lenBytes - 1));
    expect(native.memory.bytes.slice(0, 40)).toEqual(want);
  });
});

import { describe, expect, it } from "vitest";
import { encodePrintk } from "../../bpf/printk.ts";
import { formatPrintkLine, PrintkReader } from "./printk-lines.ts";

const record = (format: string, ids: bigint) =>
  encodePrintk({
    pidTgid: ids,
    cpu: 1,
    timeNs: 12_345_000_678_901n,
    format: new TextEncoder().encode(format),
    args: [42n],
    memory: { string: () => new Uint8Array(0), bytes: () => undefined },
    limitBytes: 256,
  });

describe("lines of bpf_printk", () => {
  it("stand as in trace_pipe", () => {
    const line = { comm: "redis-server", pid: 7, tid: 4242, cpu: 3, ns: 12_345_000_678_901n, text: "x=1" };
    expect(formatPrintkLine(line)).toBe(
      "    redis-server-4242    [003] ..... 12345.000678: bpf_trace_printk: x=1",
    );
  });

  it("have the name of the thread, and no newline of their own", () => {
    const pid = BigInt(process.pid);
    const line = new PrintkReader().read(record("got %d\n", (pid << 32n) | pid));
    expect(line).toEqual({
      comm: expect.stringMatching(/./),
      pid: process.pid,
      tid: process.pid,
      cpu: 1,
      ns: 12_345_000_678_901n,
      text: "got 42",
    });
  });

  it("have no name where the thread is gone", () => {
    const gone = 4_194_303n;
    expect(new PrintkReader().read(record("%d", (gone << 32n) | gone)).comm).toBe("<...>");
  });
});

import { type ChildProcess, spawn } from "node:child_process";
import { afterEach, describe, expect, it } from "vitest";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { compareText, readTextFingerprint } from "./fingerprint.ts";

const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

function startSleep(): number {
  const child = spawn("sleep", ["60"], { stdio: "ignore" });
  children.push(child);
  return child.pid!;
}

/** Waits until the loader has mapped the C library. */
async function settledFingerprint(pid: number) {
  for (;;) {
    const fingerprint = readTextFingerprint(pid);
    if (fingerprint.mappings.some(({ path }) => path.includes("libc.so"))) return fingerprint;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

describe("text fingerprint", () => {
  it("is the same when nothing has changed, and another when one byte has", async () => {
    const pid = startSleep();
    const before = await settledFingerprint(pid);
    expect(readTextFingerprint(pid)).toEqual(before);
    expect(before.totalBytes).toBeGreaterThan(1 << 20);

    const libc = before.mappings.find(({ path }) => path.includes("libc.so"))!;
    const memory = MemoryFile.open(pid);
    const at = libc.start + BigInt(libc.lenBytes) - 1n;
    const old = memory.read(at, 1);
    memory.write(at, Uint8Array.of(old[0]! ^ 0xff));
    const changed = readTextFingerprint(pid);
    expect(changed.digest).not.toBe(before.digest);
    expect(compareText(before, changed)).toEqual({
      changed: [libc],
      gone: [],
      added: [],
    });

    memory.write(at, old);
    memory.close();
    expect(readTextFingerprint(pid)).toEqual(before);
  });

  it("an image that was loaded or unloaded is no change", async () => {
    const before = await settledFingerprint(startSleep());
    const [first, ...others] = before.mappings;
    const fewer = { ...before, mappings: others };
    expect(compareText(before, fewer)).toEqual({ changed: [], gone: [first], added: [] });
    expect(compareText(fewer, before)).toEqual({ changed: [], gone: [], added: [first] });
  });
});

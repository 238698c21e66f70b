/** Keys of a live process. These tests are the tracer: ptrace belongs to this thread. */
import { closeSync } from "node:fs";
import { expect, test } from "vitest";
import { readSmaps, startKeyed } from "../../../test/support/keyed-process.ts";
import { describeWithKeys } from "../../../test/support/protection-keys.ts";
import { createHugeMemory } from "./huge-memory.ts";
import { describeKeyRefusal, type KeyGrant } from "./protection-keys.ts";
import { READ_WRITE, TracedProcess } from "./traced-process.ts";

const PAGE = 4096;
const KEYS = 15;

/** A process with a page of ours, its key written at the page's beginning. */
async function prepare() {
  const { child, ask } = await startKeyed();
  const traced = TracedProcess.open(child.pid);
  const { at, fd } = traced.createShared("trapline", PAGE);
  closeSync(fd);
  const unmap = { name: "munmap", number: 11, args: [at, BigInt(PAGE)] };
  return { child, traced, at, ask, unmap, range: { start: at, end: at + BigInt(PAGE) } };
}

function numberOf(grant: KeyGrant): number {
  if (grant.kind === "refused") throw new Error(describeKeyRefusal(grant.refusal));
  return grant.number;
}

describeWithKeys("protection keys", () => {
  test("memory with a key is closed to all threads, those that have opened everything, and later ones", async () => {
    const { child, traced, at, ask, unmap, range } = await prepare();
    using _ = child;
    const text = at.toString(16);
    expect(await ask("keys")).toBe(`${KEYS} keys`);
    expect(await ask(`read ${text}`)).toBe("main reads, opened reads");
    const number = numberOf(traced.allocateKey(at));
    // The record is there before anything has the key.
    expect([...traced.read(at, 1)]).toEqual([number]);
    traced.protectWithKey(range, READ_WRITE, number);
    const closed = `main faults by key ${number}, opened faults by key ${number}`;
    expect(await ask(`read ${text}`)).toBe(closed);
    // The tracer reads and writes as before.
    traced.write(at, Uint8Array.of(number, 2, 3));
    expect([...traced.read(at, 4)]).toEqual([number, 2, 3, 0]);
    expect(await ask("keys")).toBe(`${KEYS - 1} keys`);
    // The kernel does not let a system call of a thread touch what the thread may not.
    const [result] = traced.call([{ name: "rt_sigaction", number: 13, args: [10n, 0n, at, 8n] }]);
    expect(result).toBe(-14n);

    expect(traced.call([unmap])).toEqual([0n]);
    traced.freeKey(number);
    expect(await ask("keys")).toBe(`${KEYS} keys`);
    traced.close();
  });

  test("a process without a key left is told so, and nothing is changed", async () => {
    const { child, traced, at, ask } = await prepare();
    using _ = child;
    expect(await ask("take")).toBe("taken");
    expect(traced.allocateKey(at)).toEqual({ kind: "refused", refusal: { kind: "none-left" } });
    expect([...traced.read(at, 1)]).toEqual([0]);
    traced.close();
  });

  test("huge pages get a key as a whole, and stay huge", async ({ skip }) => {
    const made = createHugeMemory("trapline-maps", "thp", 4 << 20);
    // Linux 6.1 can be built without.
    if (made.kind === "refused") return skip(`no transparent huge pages: ${made.code}`);
    const { child, traced, at, ask } = await prepare();
    using _ = child;
    const huge = 2n << 20n;
    const place = ((traced.reserve(8 << 20) + huge - 1n) / huge) * huge;
    traced.mapDescriptor(made.fd, made.lenBytes, at, place);
    const text = place.toString(16);
    expect(await ask(`read ${text}`)).toBe("main reads, opened reads");
    const number = numberOf(traced.allocateKey(at));
    traced.protectWithKey({ start: place, end: place + BigInt(made.lenBytes) }, READ_WRITE, number);
    expect(await ask(`read ${text}`)).toBe(`main faults by key ${number}, opened faults by key ${number}`);
    const mapping = readSmaps(child.pid).find(({ start }) => start === place);
    expect(mapping).toMatchObject({ key: number, hugeKib: 2048 });
    made.mapping.unmap();
    closeSync(made.fd);
    traced.close();
  });
});

/** bpf_override_return in live processes: the function does not run, and returns what the program says. */
import { basename } from "node:path";
import { describe, expect, it } from "vitest";
import { buildBpfObject, PRELUDE } from "../support/bpf-objects.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { runObject } from "../support/object-run.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 3;
const CALLS = 2_000;

/** Every second call returns 7; a program before and one behind count all calls, and see the arguments. */
const skip = (program: string) =>
  buildBpfObject(
    `override-${program}`,
    `${PRELUDE}
u64 before, behind, skipped;

SEC("uprobe/${program}:probed") int count_before(struct pt_regs *ctx) {
  __sync_fetch_and_add(&before, 1);
  return 0;
}

SEC("uprobe/${program}:probed") int skip(struct pt_regs *ctx) {
  if (PT_REGS_PARM2(ctx) % 2 == 0) return 0;
  bpf_override_return(ctx, 7);
  __sync_fetch_and_add(&skipped, 1);
  return 0;
}

SEC("uprobe/${program}:probed") int count_behind(struct pt_regs *ctx) {
  __sync_fetch_and_add(&behind, 1);
  return 0;
}
`,
  );

/** What counter prints for these results of probed. */
function expectedLine(probed: (a: bigint, b: bigint) => bigint): string {
  let sum = 0n;
  for (let thread = 1n; thread <= BigInt(THREADS); thread++) {
    let value = thread;
    for (let i = 0n; i < BigInt(CALLS); i++) value = BigInt.asUintN(64, probed(value, i));
    sum ^= value;
  }
  return sum.toString(16).padStart(16, "0");
}

const plain = (a: bigint, b: bigint) => a * 31n + (b ^ (a >> 7n));
const original = expectedLine(plain);
const overridden = expectedLine((a, b) => (b % 2n === 1n ? 7n : plain(a, b)));

const attached = (section: string) =>
  buildBpfObject(
    "override-refused",
    `${PRELUDE}
SEC("${section}") int skip(struct pt_regs *ctx) {
  bpf_override_return(ctx, 0);
  return 0;
}
`,
  );

describe("bpf_override_return", () => {
  it.each(["call", "jump", "int3"])(
    "by %s: every second call is skipped, in all threads",
    async (mechanism) => {
      const isCall = mechanism === "call";
      const path = isCall
        ? buildFixture("counter", { flags: ["-fpatchable-function-entry=5"], variant: "patchable" })
        : buildFixture("counter");
      using child = await UnmanagedChild.start([path, `${THREADS}`, `${CALLS}`]);
      const run = async () => {
        child.send("\n");
        return child.line();
      };
      expect(await run()).toBe(original);
      let [first, second] = ["", ""];
      const { code, map } = await runObject(
        [skip(basename(path)), "-f", "json", "-p", `${child.pid}`, "--mechanism", mechanism],
        async () => {
          first = await run();
          second = await run();
        },
      );
      expect([code, first, second]).toEqual([0, overridden, overridden]);
      const calls = 2 * THREADS * CALLS;
      expect([map("before"), map("skipped"), map("behind")]).toEqual([calls, calls / 2, calls]);
      expect(await run()).toBe(original);
    },
  );

  it.each([
    {
      name: "at the return",
      section: "uretprobe/counter:probed",
      err: /bpf_override_return at the return of probed.*: the function has run already/,
    },
    {
      name: "inside the function",
      section: "uprobe/counter:probed+3",
      err: /bpf_override_return skips a whole function, and probed\+0x3.* is no function entry/,
    },
  ])("is refused $name", ({ section, err }) => {
    const argv = ["run", attached(section), "-c", `${buildFixture("counter")} 1 1`];
    expect(runCommand(argv, "\n")).toMatchObject({ code: 1, err: expect.stringMatching(err) });
  });
});

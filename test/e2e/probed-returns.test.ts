/** Stacks of functions whose callers have return probes: the probes' own addresses do not show. */
import { expect, it } from "vitest";
import { buildBpfObject, PRELUDE } from "../support/bpf-objects.ts";
import { buildFixture } from "../support/fixtures.ts";
import { runObject } from "../support/object-run.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const source = `${PRELUDE}
struct { __uint(type, BPF_MAP_TYPE_STACK_TRACE); __uint(max_entries, 16384);
  __uint(key_size, 4); __uint(value_size, 127 * 8); } stacks SEC(".maps");
u64 returned;

SEC("uprobe/example-target:leaf") int keep_stack(struct pt_regs *ctx) {
  bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
  return 0;
}

SEC("uretprobe/example-target:leaf") int leaf_returned(struct pt_regs *ctx) {
  __sync_fetch_and_add(&returned, 1);
  return 0;
}

SEC("uretprobe/example-target:caller_one") int one_returned(struct pt_regs *ctx) {
  __sync_fetch_and_add(&returned, 1);
  return 0;
}

SEC("uretprobe/example-target:caller_two") int two_returned(struct pt_regs *ctx) {
  __sync_fetch_and_add(&returned, 1);
  return 0;
}
`;

it.each(["sites", "stack"])("a stack goes on through functions whose returns are probed: %s", async (way) => {
  const target = buildFixture("example-target", { flags: ["-fno-omit-frame-pointer"] });
  using child = await UnmanagedChild.start([target]);
  const object = buildBpfObject("probed-returns", source);
  const { code, map } = await runObject(
    [object, "--return", way, "-f", "json", "-p", `${child.pid}`],
    async () => {
      child.send("s\n");
      expect(await child.line()).toBe("done");
    },
  );
  expect([code, map("returned")]).toEqual([0, 42 + 2]);
  const frames = Object.values(map("stacks") as Record<string, string[]>).map((stack) =>
    stack.slice(0, 3).map((frame) => frame.replace(/\+0x[0-9a-f]+/, "").replace(/ .*/, "")),
  );
  expect(frames.sort((a, b) => (a.join() < b.join() ? -1 : 1))).toEqual([
    ["leaf", "caller_one", "main"],
    ["leaf", "caller_two", "main"],
  ]);
});

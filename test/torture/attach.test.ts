/**
 * Attaching and detaching again and again to programs that are hard at work: no crash, no wrong output, and nothing left.
 * TRAPLINE_CYCLES sets how often (`npm run torture:attach`).
 */
import { expect, it } from "vitest";
import { Watched } from "../support/dead-tracer.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { Nginx, Redis } from "../support/servers.ts";
import { runTracing } from "../support/tracing.ts";

const cycles = Number(process.env.TRAPLINE_CYCLES ?? 12);
const timeout = 60_000 + cycles * 5_000;

/** Programs that end at once, by themselves, after some hits. */
const programs: readonly {
  readonly name: string;
  readonly args: readonly string[];
  readonly program: string;
}[] = [
  { name: "jump", args: [], program: "uprobe:compute:step,uprobe:compute:work { @ = count(); }" },
  { name: "int3", args: ["--mechanism", "int3"], program: "uprobe:compute:work { @ = count(); }" },
  {
    name: "returns",
    args: [],
    program: "uretprobe:compute:work,uretprobe:libc:epoll_wait,uretprobe:libc:usleep { @[probe] = count(); }",
  },
  {
    name: "returns by the stack",
    args: ["--return", "stack"],
    program: "uretprobe:compute:work,uretprobe:libc:epoll_wait,uretprobe:libc:usleep { @[probe] = count(); }",
  },
  {
    name: "events",
    args: [],
    program: 'uprobe:libc:epoll_wait { printf("%d %s\\n", tid, comm); @[tid] = sum(arg2); }',
  },
];

const ending = " interval:ms:20 { exit(); }";

it(`a busy program with 16 threads, ${cycles} times`, { timeout }, async () => {
  using watched = await Watched.start(16);
  for (let cycle = 0; cycle < cycles; cycle++) {
    const { args, program, name } = programs[cycle % programs.length]!;
    const result = await runTracing([...args, "-p", `${watched.child.pid}`, "-e", program + ending]);
    expect({ name, cycle, code: result.code, err: result.err }).toEqual({ name, cycle, code: 0, err: "" });
    expect(result.map("@")).toBeDefined();
    await watched.expectAlive();
    watched.expectAsBefore();
  }
});

it(`redis-server under load, ${cycles} times`, { timeout }, async () => {
  await using redis = await Redis.start();
  const before = readProcessState(redis.pid);
  const load = redis.startLoad(8);
  let hits = 0;
  for (let cycle = 0; cycle < cycles; cycle++) {
    const program =
      cycle % 2 === 0
        ? "uprobe:/usr/bin/redis-server:processCommand,uprobe:libc:read { @ = count(); }"
        : "uretprobe:/usr/bin/redis-server:processCommand { @ = count(); } uprobe:libc:write { @sizes[tid] = hist(arg2); }";
    const result = await runTracing(["-p", `${redis.pid}`, "-e", program + ending]);
    expect({ cycle, code: result.code, err: result.err }).toEqual({ cycle, code: 0, err: "" });
    hits += result.map("@") as number;
    expectNoTrace(redis.pid, before);
  }
  expect(hits).toBeGreaterThan(0);
  const { requests, wrong } = await load.stop();
  expect(wrong).toEqual([]);
  expect(requests).toBeGreaterThan(cycles * 100);
});

it(`nginx under load, its master and both workers at once, ${cycles} times`, { timeout }, async () => {
  await using nginx = await Nginx.start();
  const pids = [nginx.pid, ...nginx.workers];
  expect(pids).toHaveLength(3);
  const before = pids.map(readProcessState);
  const load = nginx.startLoad(2);
  let hits = 0;
  for (let cycle = 0; cycle < cycles; cycle++) {
    const args = cycle % 3 === 2 ? ["--mechanism", "int3"] : [];
    const program =
      cycle % 2 === 0
        ? "uprobe:nginx:ngx_http_process_request { @[pid] = count(); }"
        : "uretprobe:nginx:ngx_http_process_request,uprobe:libc:writev { @[pid] = count(); }";
    const result = await runTracing([...args, "-p", pids.join(","), "-e", program + ending]);
    expect({ cycle, code: result.code, err: result.err }).toEqual({ cycle, code: 0, err: "" });
    for (const pid of Object.keys(result.map("@") ?? {})) expect(nginx.workers).toContain(Number(pid));
    hits += Object.keys(result.map("@") ?? {}).length;
    for (const [index, pid] of pids.entries()) expectNoTrace(pid, before[index]!);
  }
  expect(hits).toBeGreaterThan(0);
  const { requests, wrong } = await load.stop();
  expect(wrong).toEqual([]);
  expect(requests).toBeGreaterThan(cycles);
  expect(nginx.workers).toEqual(pids.slice(1));
});

/**
 * A tracer that is killed at some moment of its run, and what must hold then: the target computes on, is listed, can be
 * put back by anybody, and is then as if nothing had been.
 */
import { expect } from "vitest";
import { findJournals, findTracedProcesses } from "../../src/session/reports/processes.ts";
import { buildFixture } from "./fixtures.ts";
import { expectNoTrace, findOurMappings, readProcessState } from "./process-state.ts";
import { runTracing, Tracing, withSign } from "./tracing.ts";
import { UnmanagedChild } from "./unmanaged-child.ts";

export interface KillPlan {
  /** When to kill it: so long after its start, or after its probes are armed, or after it was asked to end. */
  readonly after: "start" | "armed" | "interrupt";
  readonly delayMs: number;
  readonly probes: ProbeChoice;
}

const choices = {
  jump: { args: ["--mechanism", "jump"], program: "uprobe:compute:step { @ = count(); }" },
  int3: { args: ["--mechanism", "int3"], program: "uprobe:compute:work { @ = count(); }" },
  return: {
    args: [],
    program:
      "uretprobe:compute:work { @ = count(); } uretprobe:libc:epoll_wait { @w[tid] = hist(retval); } " +
      "uretprobe:libc:usleep { @u = count(); }",
  },
  "return by int3": { args: ["--mechanism", "int3"], program: "uretprobe:compute:work { @ = count(); }" },
  "return by the stack": {
    args: ["--return", "stack"],
    program:
      "uretprobe:compute:work { @ = count(); } uretprobe:libc:epoll_wait { @w[tid] = hist(retval); } " +
      "uretprobe:libc:usleep { @u = count(); }",
  },
  many: { args: [], program: "uprobe:libc:*poll*,uprobe:libc:mem*,uprobe:compute:* { @[probe] = count(); }" },
} as const;
export type ProbeChoice = keyof typeof choices;
export const probeChoices = Object.keys(choices) as readonly ProbeChoice[];

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** A program that notices when anything is wrong with it. */
export class Watched implements Disposable {
  readonly child: UnmanagedChild;
  readonly before: ReturnType<typeof readProcessState>;
  readonly #descriptors: readonly string[];
  readonly #threads: readonly string[];

  readonly #waiters: number;

  private constructor(child: UnmanagedChild, threads: number) {
    this.child = child;
    this.#waiters = threads >> 1;
    this.before = readProcessState(child.pid);
    this.#descriptors = this.before.descriptors;
    this.#threads = this.before.threads;
  }

  static async start(threads: number): Promise<Watched> {
    const child = await UnmanagedChild.start([buildFixture("compute"), `${threads}`]);
    // Until every thread has opened what it will use.
    await sleep(50);
    return new Watched(child, threads);
  }

  /** It computes on, and has seen nothing wrong. */
  async expectAlive(): Promise<void> {
    const first = await this.#rounds();
    await sleep(20);
    for (let tries = 0; (await this.#rounds()) <= first; tries++) {
      expect(tries).toBeLessThan(100);
      await sleep(20);
    }
    expect(this.child.pending).toEqual([]);
  }

  /** Nothing of a tracer is left. */
  expectAsBefore(): void {
    expectNoTrace(this.child.pid, this.before);
    const now = readProcessState(this.child.pid);
    expect({ descriptors: now.descriptors, threads: now.threads, mappings: now.mappings }).toEqual({
      descriptors: this.#descriptors,
      threads: this.#threads,
      mappings: this.before.mappings,
    });
  }

  /**
   * A tracer that dies in the moment between stopping a thread and making its epoll_wait again cannot make it again: the
   * kernel has the thread go on with EINTR. Nobody can repair that later, so it is allowed for, once for each waiter.
   */
  async passOverInterruptions(): Promise<void> {
    await sleep(10);
    const { pending } = this.child;
    const interrupted = pending.filter((line) => line === "epoll_wait failed: 4").length;
    expect(interrupted).toBeLessThanOrEqual(this.#waiters);
    for (let count = 0; count < interrupted; count++)
      expect(await this.child.line()).toBe("epoll_wait failed: 4");
  }

  async #rounds(): Promise<number> {
    this.child.send("\n");
    const line = await this.child.line();
    expect(line).toMatch(/^alive \d+$/);
    return Number(line.slice("alive ".length));
  }

  [Symbol.dispose](): void {
    this.child[Symbol.dispose]();
  }
}

/** Traces a program, kills the tracer, and cleans up after it. Returns whether there was anything to clean up. */
export async function killTracer(watched: Watched, plan: KillPlan): Promise<boolean> {
  const { pid } = watched.child;
  const { args, program } = choices[plan.probes];
  const tracing = Tracing.start([...args, "-p", `${pid}`, "-e", withSign(program)]);
  if (plan.after !== "start") await tracing.until("armed");
  if (plan.after === "interrupt") tracing.signal("SIGINT");
  await sleep(plan.delayMs);
  tracing.signal("SIGKILL");
  await tracing.ended();
  await watched.passOverInterruptions();
  await watched.expectAlive();

  const leftBehind = findOurMappings(pid).length > 0;
  // One that died with memory mapped and no journal begun has planted nothing: there is only memory to free.
  if (findJournals(pid).length > 0) expect(listedProcesses()).toContain(pid);
  const detached = await runTracing(["detach", "-p", `${pid}`]);
  expect({ code: detached.code, err: detached.err }).toEqual({ code: 0, err: "" });
  expect(listedProcesses()).not.toContain(pid);
  watched.expectAsBefore();
  await watched.expectAlive();
  return leftBehind;
}

/** What `trapline ps` knows, damaged journals included. */
function listedProcesses(): number[] {
  const { traced, damaged } = findTracedProcesses();
  return [...traced, ...damaged].map(({ pid }) => pid);
}

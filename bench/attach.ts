/**
 * How long attaching and detaching take, and for how long they stop the target: from the start of the command until the
 * first probed function's code is changed (seen from outside), the stop as the product itself measures it, and the longest time
 * that a thread of the target, which looks at the clock every millisecond, did not get to look. The last one also holds what
 * the scheduler took from that thread meanwhile.
 */
import { Child } from "./child.ts";
import { CodeBytes } from "./code-bytes.ts";
import { buildFixture } from "./fixture.ts";
import { type Spread, spreadOf } from "./statistics.ts";
import { traplineCommand } from "./tracers/trapline.ts";

export interface AttachCase {
  readonly probes: 1 | 100 | 2000 | 10_000;
  readonly threads: number;
  /** Whether the threads rest most of the time, or all compete for the processors. */
  readonly load: "idle" | "busy";
}

export interface AttachResult extends AttachCase {
  readonly failures: readonly string[];
  /** Undefined when every round failed. All in milliseconds. */
  readonly times: Readonly<Record<keyof AttachTimes, Spread>> | undefined;
}

export interface AttachTimes {
  /** Start of the command to changed code. */
  readonly attach: number;
  /** How long threads stood for it, as the command says. */
  readonly attachStop: number;
  /** Ctrl-C to restored code. */
  readonly detach: number;
  readonly detachStop: number;
  /** Ctrl-C to the end of the command. */
  readonly end: number;
  /** Longest time between two looks at the clock, over all of it. */
  readonly silence: number;
  /** All of the command: from its start to its end, without waiting in between. */
  readonly total: number;
}

export const attachCases: readonly AttachCase[] = [
  ...([1, 100, 2000] as const).flatMap((probes) =>
    [1, 16, 200].map((threads): AttachCase => ({ probes, threads, load: "idle" })),
  ),
  { probes: 10_000, threads: 16, load: "idle" },
  { probes: 1, threads: 200, load: "busy" },
];

const patterns = { 1: "work_0000", 100: "work_00*", 2000: "work_*", 10000: "work_*" } as const;

export async function measureAttach(
  cases: readonly AttachCase[],
  rounds: number,
  onProgress: (what: string) => void,
): Promise<AttachResult[]> {
  const rows = cases.map((attachCase) => ({
    attachCase,
    done: [] as AttachTimes[],
    failures: [] as string[],
  }));
  for (let round = 0; round < rounds; round++)
    for (const { attachCase, done, failures } of rows) {
      const { probes, threads, load } = attachCase;
      onProgress(`round ${round + 1} of ${rounds}: attach, ${probes} probes, ${threads} ${load} threads`);
      try {
        done.push(await attachOnce(attachCase));
      } catch (error) {
        failures.push(error instanceof Error ? error.message : String(error));
      }
    }
  return rows.map(({ attachCase, done, failures }) => ({
    ...attachCase,
    failures,
    times: done.length === 0 ? undefined : spreadOfEach(done),
  }));
}

/** Milliseconds from the start of the command to the first event that it prints, on a small program. */
export async function measureFirstEvent(rounds: number): Promise<Spread> {
  const times: number[] = [];
  for (let round = 0; round < rounds; round++) {
    await using target = await ManyThreads.start({ probes: 1, threads: 1, load: "idle" });
    const script = `uprobe:${target.binary}:work_0000 { printf("hit\\n"); exit(); }`;
    await using tracer = new Child([...traplineCommand, "-p", `${target.pid}`, "-e", script]);
    const { atMs } = await tracer.line(({ text, stream }) => stream === "out" && text.includes("hit"));
    times.push(atMs - tracer.startedMs);
    await tracer.end();
  }
  return spreadOf(times);
}

async function attachOnce(attachCase: AttachCase): Promise<AttachTimes> {
  await using target = await ManyThreads.start(attachCase);
  using code = new CodeBytes(target.pid, target.firstFunction);
  const script = `uprobe:${target.binary}:${patterns[attachCase.probes]} { @ = count(); }`;
  target.watch();
  // Among 200 threads that never rest, the command would wait for a processor most of the time.
  const priority = attachCase.load === "busy" ? ["nice", "-n", "-15"] : [];
  await using tracer = new Child([
    ...priority,
    ...traplineCommand,
    "-v",
    "-p",
    `${target.pid}`,
    "-e",
    script,
  ]);
  const armedMs = await code.until("changed", tracer);
  const armed = await tracer.line(({ text }) => attachStop.test(text));
  tracer.kill("SIGINT");
  const interruptedMs = performance.now();
  const restoredMs = await code.until("original");
  await tracer.end();
  const silence = await target.report();
  if (tracer.exitCode !== 0) throw new Error(`trapline ended with ${tracer.exitCode}: ${tracer.lastWords}`);
  const restored = tracer.lines.find(({ text }) => detachStop.test(text));
  return {
    attach: armedMs - tracer.startedMs,
    attachStop: numberIn(attachStop, armed.text),
    detach: restoredMs - interruptedMs,
    detachStop: numberIn(detachStop, restored?.text ?? ""),
    end: tracer.endedMs! - interruptedMs,
    silence,
    total: tracer.endedMs! - tracer.startedMs,
  };
}

// What the product says with -v.
const attachStop = /stopped \d+ threads? for ([\d.]+) ms/;
const detachStop = /threads? stood for ([\d.]+) ms/;

function numberIn(pattern: RegExp, text: string): number {
  const found = pattern.exec(text)?.[1];
  if (found === undefined) throw new Error(`no ${pattern} in "${text}"`);
  return Number(found);
}

const timeNames: readonly (keyof AttachTimes)[] = [
  "attach",
  "attachStop",
  "detach",
  "detachStop",
  "end",
  "silence",
  "total",
];

const spreadOfEach = (rounds: readonly AttachTimes[]): Readonly<Record<keyof AttachTimes, Spread>> =>
  Object.fromEntries(timeNames.map((name) => [name, spreadOf(rounds.map((round) => round[name]))])) as Record<
    keyof AttachTimes,
    Spread
  >;

/** The fixture `many`. */
class ManyThreads implements AsyncDisposable {
  readonly binary: string;
  readonly firstFunction: bigint;
  readonly #child: Child;

  private constructor(binary: string, child: Child, firstFunction: bigint) {
    this.binary = binary;
    this.#child = child;
    this.firstFunction = firstFunction;
  }

  static async start({ probes, threads, load }: AttachCase): Promise<ManyThreads> {
    const binary = buildFixture("many", "pie", probes > 2000 ? "TEN_THOUSAND" : undefined);
    const child = new Child([binary, `${threads}`, load]);
    const [, address] = (await child.line()).text.split(" ");
    await child.line(({ text }) => text === "ready");
    return new ManyThreads(binary, child, BigInt(`0x${address}`));
  }

  get pid(): number {
    return this.#child.pid;
  }

  watch(): void {
    this.#child.send("watch\n");
  }

  /** Milliseconds. */
  async report(): Promise<number> {
    this.#child.send("report\n");
    return Number((await this.#child.line()).text) / 1e6;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child[Symbol.asyncDispose]();
  }
}

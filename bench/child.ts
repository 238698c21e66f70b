/**
 * A process that the benchmark has started: its output by lines, each with the time at which it came. Whatever still
 * runs when the benchmark ends is killed.
 */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { createInterface } from "node:readline";

const running = new Set<Child>();
process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => process.exit(1));

export interface Line {
  readonly text: string;
  /** `performance.now()` when it came. */
  readonly atMs: number;
  readonly stream: "out" | "err";
}

export class Child implements AsyncDisposable {
  readonly name: string;
  readonly startedMs: number;
  readonly #process: ChildProcessWithoutNullStreams;
  readonly #lines: Line[] = [];
  #read = 0;
  #wake: (() => void) | undefined;
  #endedMs: number | undefined;
  #failure: Error | undefined;
  readonly #closed: Promise<void>;

  constructor(argv: readonly string[], env: Readonly<Record<string, string>> = {}) {
    this.name = argv.join(" ");
    this.startedMs = performance.now();
    this.#process = spawn(argv[0]!, argv.slice(1), { env: { ...process.env, ...env } });
    running.add(this);
    // Writing to a process that has just ended: the missing answer tells.
    this.#process.stdin.on("error", () => undefined);
    for (const stream of ["out", "err"] as const)
      createInterface({ input: stream === "out" ? this.#process.stdout : this.#process.stderr }).on(
        "line",
        (text) => {
          this.#lines.push({ text, atMs: performance.now(), stream });
          this.#wake?.();
        },
      );
    this.#process.on("exit", () => {
      this.#endedMs = performance.now();
    });
    this.#closed = new Promise((resolve) => {
      const end = (): void => {
        running.delete(this);
        this.#endedMs ??= performance.now();
        this.#wake?.();
        resolve();
      };
      this.#process.on("error", (error) => {
        this.#failure = error;
        end();
      });
      this.#process.on("close", end);
    });
  }

  get pid(): number {
    const { pid } = this.#process;
    if (pid === undefined) throw new Error(`start ${this.name}`, { cause: this.#failure });
    return pid;
  }

  /** `performance.now()` at its end; undefined while it runs. */
  get endedMs(): number | undefined {
    return this.#endedMs;
  }

  get exitCode(): number | null {
    return this.#process.exitCode;
  }

  /** How it ended, for messages. */
  get exit(): string {
    const { exitCode, signalCode } = this.#process;
    return signalCode ?? (exitCode === null ? "running" : `exit code ${exitCode}`);
  }

  get lines(): readonly Line[] {
    return this.#lines;
  }

  /** The end of what it said, for messages. */
  get lastWords(): string {
    return this.#lines
      .slice(-6)
      .map(({ text }) => text.slice(0, 200))
      .join(" | ");
  }

  send(text: string): void {
    this.#process.stdin.write(text);
  }

  kill(signal: NodeJS.Signals): void {
    this.#process.kill(signal);
  }

  /** The next line that was not yet read and passes; those before it are skipped. */
  async line(
    passes: (line: Line) => boolean = ({ stream }) => stream === "out",
    timeoutMs = 20_000,
  ): Promise<Line> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      while (this.#read < this.#lines.length) {
        const line = this.#lines[this.#read++]!;
        if (passes(line)) return line;
      }
      const leftMs = deadline - performance.now();
      if (leftMs <= 0) throw new Error(`${this.name}: no answer for ${timeoutMs} ms${this.#transcript()}`);
      if (!running.has(this)) throw new Error(`${this.name}: ended${this.#transcript()}`);
      await this.#news(leftMs);
    }
  }

  /** Waits for the end of the process and of its output. Killed when it takes too long: then an error. */
  async end(timeoutMs = 20_000): Promise<void> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.kill("SIGKILL");
    }, timeoutMs);
    await this.#closed;
    clearTimeout(timer);
    if (late) throw new Error(`${this.name}: did not end within ${timeoutMs} ms${this.#transcript()}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill("SIGKILL");
    await this.#closed;
  }

  #news(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #transcript(): string {
    return this.#lines.length === 0 ? "" : `; it said: ${this.lastWords}`;
  }
}

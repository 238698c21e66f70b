/**
 * A run of the built command that goes on while the test does something else: what it has printed so far, its end, and
 * what its maps held.
 */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { commandPath } from "./built-command.ts";
import { patient } from "./patience.ts";

/** A line of the JSON output. */
export interface JsonLine {
  readonly type: string;
  readonly data: unknown;
}

export interface TracingResult {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
  readonly lines: readonly JsonLine[];
  /** What a map held at the end; undefined when it was not printed. Integers above 2^53 lose digits: use `out`. */
  map(name: string): unknown;
}

/** Printed by `withSign` once the probes are armed: intervals start after that. */
const ARMED = '{"type": "printf", "data": "armed\\n"}';

/** A program that also says when its probes are armed. */
export function withSign(program: string): string {
  return `${program} interval:ms:5 /!@armed/ { @armed = 1; printf("armed\\n"); } END { clear(@armed); }`;
}

export class Tracing implements AsyncDisposable {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #ended: Promise<TracingResult>;
  #out = "";
  #err = "";
  #wake: (() => void) | undefined;

  private constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child;
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      this.#out += text;
      this.#wake?.();
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#err += text;
    });
    this.#ended = new Promise((resolve) => {
      child.once("close", (code, signal) => {
        const { result } = this;
        resolve({ ...result, code, signal });
        this.#wake?.();
      });
    });
  }

  /** Runs the command with JSON output. `prefix` is put in front of it, to start it as another user for example. */
  static start(args: readonly string[], prefix: readonly string[] = []): Tracing {
    const [program, ...rest] = [...prefix, process.execPath, commandPath, "-f", "json", ...args];
    return new Tracing(spawn(program!, rest));
  }

  /** Runs the command until its probes are armed; the program comes from `withSign`. */
  static async armed(args: readonly string[], program: string, prefix?: readonly string[]): Promise<Tracing> {
    const tracing = Tracing.start([...args, "-e", withSign(program)], prefix);
    await tracing.until(ARMED);
    return tracing;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  get result(): TracingResult {
    const out = this.#out;
    const lines = parseLines(out);
    return {
      code: this.#child.exitCode,
      signal: this.#child.signalCode,
      out,
      err: this.#err,
      lines,
      map: (name) => findMap(lines, name),
    };
  }

  /** Waits until the output contains a text. */
  async until(text: string, timeoutMs = 30_000): Promise<void> {
    await this.#until(text, () => this.#out, timeoutMs);
  }

  /** Waits until a message contains a text. */
  async untilError(text: string, timeoutMs = 30_000): Promise<void> {
    await this.#until(text, () => this.#err, timeoutMs);
  }

  async #until(text: string, output: () => string, usualTimeoutMs: number): Promise<void> {
    const timeoutMs = patient(usualTimeoutMs);
    const deadline = Date.now() + timeoutMs;
    while (!output().includes(text)) {
      const left = deadline - Date.now();
      if (left <= 0 || this.hasEnded)
        throw new Error(
          `${this.hasEnded ? "the command ended" : `${timeoutMs} ms passed`} without "${text}":\n${this.#out}${this.#err}`,
        );
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, Math.min(left, 100));
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** All of its standard input, which a command of its own reads, too. */
  send(text: string): void {
    this.#child.stdin.end(text);
  }

  /** Whoever reads its output goes away. */
  closeOutput(): void {
    this.#child.stdout.destroy();
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  /** Waits for its end. */
  async ended(): Promise<TracingResult> {
    this.#child.stdin.end();
    return await this.#ended;
  }

  /** Ends it as Ctrl-C does. */
  async interrupt(): Promise<TracingResult> {
    this.signal("SIGINT");
    return await this.ended();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.hasEnded) this.signal("SIGKILL");
    await this.#ended;
  }
}

/** Runs the command to its end. */
export async function runTracing(
  args: readonly string[],
  prefix: readonly string[] = [],
): Promise<TracingResult> {
  return await Tracing.start(args, prefix).ended();
}

function parseLines(out: string): JsonLine[] {
  return out
    .slice(0, out.lastIndexOf("\n") + 1)
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as JsonLine);
}

function findMap(lines: readonly JsonLine[], name: string): unknown {
  const found = lines.findLast(
    ({ type, data }) => (type === "map" || type === "stats" || type === "hist") && name in (data as object),
  );
  return found === undefined ? undefined : (found.data as Record<string, unknown>)[name];
}

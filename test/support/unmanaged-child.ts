/**
 * A child process that Node does not know of: Node reaps the stops that ptrace reports for children that it started.
 * A shell in between starts the program and prints its number.
 */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { patient } from "./patience.ts";

export class UnmanagedChild implements Disposable {
  readonly pid: number;
  readonly #shell: ChildProcessWithoutNullStreams;
  readonly #lines: string[] = [];
  #wake: (() => void) | undefined;

  private constructor(shell: ChildProcessWithoutNullStreams, pid: number) {
    this.#shell = shell;
    this.pid = pid;
  }

  /** Starts a program and waits for its first line, "ready". */
  static async start(
    argv: readonly string[],
    options: { readonly ready?: boolean } = {},
  ): Promise<UnmanagedChild> {
    // The number comes from the process that becomes the program: so it comes before all that the program prints.
    const script =
      'exec 3<&0; sh -c \'echo $$; exec "$@"\' sh "$@" <&3 3<&- & exec 3<&-; { wait $!; echo "status $?"; } 2>/dev/null';
    const shell = spawn("/bin/sh", ["-c", script, "sh", ...argv]);
    let child: UnmanagedChild | undefined;
    const pid = await new Promise<number>((resolve, reject) => {
      shell.once("error", reject);
      shell.stderr.on("data", (text: Buffer) => process.stderr.write(text));
      createInterface({ input: shell.stdout }).on("line", (line) => {
        if (child === undefined) {
          child = new UnmanagedChild(shell, Number(line));
          resolve(child.pid);
        } else {
          child.#lines.push(line);
          child.#wake?.();
        }
      });
    });
    if (child === undefined) throw new Error(`start ${argv[0]}: no process number, got ${pid}`);
    const started: UnmanagedChild = child;
    if (options.ready ?? true) {
      const line = await started.line();
      if (line !== "ready") throw new Error(`start ${argv[0]}: expected "ready", got "${line}"`);
    }
    return started;
  }

  /** The next line that the program prints. After its end, a line "status N". */
  async line(usualTimeoutMs = 30_000): Promise<string> {
    const timeoutMs = patient(usualTimeoutMs);
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const line = this.#lines.shift();
      if (line !== undefined) return line;
      const left = deadline - Date.now();
      if (left <= 0) throw new Error(`process ${this.pid} printed nothing for ${timeoutMs} ms`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** Lines that have come and were not read. */
  get pending(): readonly string[] {
    return this.#lines;
  }

  send(text: string): void {
    this.#shell.stdin.write(text);
  }

  kill(signal: NodeJS.Signals = "SIGKILL"): void {
    try {
      process.kill(this.pid, signal);
    } catch {
      // It has ended by itself.
    }
  }

  [Symbol.dispose](): void {
    this.kill();
    this.#shell.stdin.destroy();
  }
}

/**
 * The main program's end of the tracer worker, and the process target: the same operations as `TracedProcess`, each a promise.
 */
import { closeSync } from "node:fs";
import { Worker } from "node:worker_threads";
import type { CommitReport, Transaction } from "../target.ts";
import { type Mapping, mapShared, openPidFd, pidFdEnded } from "./libc.ts";
import type { TracedProcess } from "./traced-process.ts";
import type { PlainError, ProcessMethod, Request, Response } from "./tracer-worker.ts";

/** What the worker could not do. `kind` is the name of the error's class there, `code` its literal code. */
export class TracerError extends Error {
  readonly kind: string;
  readonly code: string | undefined;
  readonly fields: Readonly<Record<string, unknown>>;
  constructor(plain: PlainError) {
    super(plain.message);
    this.name = "TracerError";
    this.kind = plain.name;
    this.code = plain.code;
    this.fields = plain.fields;
    if (plain.stack !== undefined) this.stack = plain.stack;
  }
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

type RequestBody = Request extends infer One ? (One extends Request ? Omit<One, "id"> : never) : never;

/** What to do while another tracer is at work on a process. */
export interface LockWait {
  /** Once aborted, nobody waits any longer than for a moment. */
  readonly stop: AbortSignal;
  say(line: string): void;
}

const SAY_AFTER_MS = 1000;
/** How long is waited for another tracer once the session is to end: what is left then stands in the journal. */
const LAST_WAIT_MS = 5000;

/** The worker thread. One serves any number of processes. */
export class Tracer {
  lockWait: LockWait | undefined;
  readonly #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  /** Is told of every transaction in any process. */
  onCommit: ((pid: number, transaction: Transaction, report: CommitReport) => void) | undefined;
  #nextId = 1;

  constructor() {
    this.#worker = new Worker(new URL("./tracer-worker.js", import.meta.url), {
      // Descriptors opened there are closed here.
      trackUnmanagedFds: false,
    });
    this.#worker.on("message", (response: Response) => {
      const pending = this.#pending.get(response.id);
      this.#pending.delete(response.id);
      if (response.kind === "ok") pending?.resolve(response.value);
      else pending?.reject(new TracerError(response.error));
    });
    this.#worker.on("error", (error) => {
      for (const pending of this.#pending.values()) pending.reject(error);
      this.#pending.clear();
    });
  }

  /** Attaches to a running process; rejects with code `no-such-process`, `zombie`, `not-permitted`, … */
  async open(pid: number): Promise<ProcessTarget> {
    await this.patiently(pid, () => this.request({ kind: "open", pid }), 0);
    return new ProcessTarget(this, pid, false);
  }

  /** Starts a command that stands before its first instruction until `release`. */
  async start(argv: readonly string[]): Promise<ProcessTarget> {
    const pid = (await this.request({ kind: "start", argv, env: { ...process.env } })) as number;
    return new ProcessTarget(this, pid, true);
  }

  /**
   * Repeats what another tracer stands in the way of, until it is done. Once the session is to end it gives up after
   * `lastWaitMs`, and rejects with code `target-busy`.
   */
  async patiently<Result>(
    pid: number,
    attempt: () => Promise<Result>,
    lastWaitMs = LAST_WAIT_MS,
  ): Promise<Result> {
    const { lockWait } = this;
    const startMs = performance.now();
    let hasSaid = false;
    let leftMs = lastWaitMs;
    for (let waitMs = 1; ; waitMs = Math.min(waitMs * 2, 16)) {
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof TracerError) || error.code !== "target-busy") throw error;
        if (lockWait?.stop.aborted === true) {
          if (leftMs <= 0) throw error;
          leftMs -= waitMs;
        }
        if (!hasSaid && performance.now() - startMs > SAY_AFTER_MS) {
          const { holder } = error.fields;
          const who = typeof holder === "number" ? `process ${holder}` : "another tracer";
          lockWait?.say(`process ${pid}: waiting for ${who}, which is changing it`);
          hasSaid = true;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, waitMs));
    }
  }

  request(body: RequestBody): Promise<unknown> {
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      this.#worker.postMessage({ ...body, id });
    });
  }

  async close(): Promise<void> {
    await this.#worker.terminate();
  }
}

type Promised<Method> = Method extends (...args: infer Args) => infer Result
  ? (...args: Args) => Promise<Result>
  : never;

/** A live process. Every operation is made on the tracer's thread. */
export class ProcessTarget {
  readonly pid: number;
  /** Whether this tracer has started it, and so must collect its exit status. */
  readonly isOwnCommand: boolean;
  readonly #tracer: Tracer;
  readonly #pidFd: number;

  constructor(tracer: Tracer, pid: number, isOwnCommand: boolean) {
    this.#tracer = tracer;
    this.pid = pid;
    this.isOwnCommand = isOwnCommand;
    this.#pidFd = openPidFd(pid);
  }

  readonly read = this.#forward("read");
  readonly readMany = this.#forward("readMany");
  readonly findMany = this.#forward("findMany");
  readonly mapDescriptor = this.#forward("mapDescriptor");
  readonly write = this.#forward("write");
  readonly reserve = this.#forward("reserve");
  readonly createPrivateIn = this.#forward("createPrivateIn");
  readonly createPrivate = this.#forward("createPrivate");
  readonly createStacks = this.#forward("createStacks");
  readonly allocateKey = this.#forward("allocateKey");
  readonly freeKey = this.#forward("freeKey");
  readonly protectWithKey = this.#forward("protectWithKey");
  readonly createCodeWhereFree = this.#forward("createCodeWhereFree");
  readonly call = this.#forward("call");
  readonly readSignalActions = this.#forward("readSignalActions");
  readonly findTidOffset = this.#forward("findTidOffset");
  readonly hasThreadPointers = this.#forward("hasThreadPointers");
  readonly #commit = this.#forward("commit");
  readonly release = this.#forward("release");
  readonly reopen = this.#forward("reopen");

  async commit(transaction: Transaction): Promise<CommitReport> {
    const report = await this.#commit(transaction);
    this.#tracer.onCommit?.(this.pid, transaction, report);
    return report;
  }

  /**
   * Creates memory shared with the target and maps it here. The mapping outlives the target. `fd` stays open so that
   * other targets can be given the same memory; close it when there are no more. `place` is reserved.
   */
  async createShared(
    name: string,
    lenBytes: number,
    place?: bigint,
  ): Promise<{ readonly at: bigint; readonly mapping: Mapping; readonly fd: number }> {
    const { at, fd } = await this.#forward("createShared")(name, lenBytes, place);
    return { at, mapping: mapShared(fd, lenBytes), fd };
  }

  /**
   * Keeps other tracers away from the process until `unlock`. May be called while this one holds the lock; each call needs its
   * `unlock`. `lastWaitMs` as in `Tracer.patiently`.
   */
  async lock(lastWaitMs?: number): Promise<void> {
    const { pid } = this;
    const take = () => this.#tracer.request({ kind: "process", pid, method: "lock", args: [] });
    await this.#tracer.patiently(pid, take, lastWaitMs);
  }

  readonly unlock = this.#forward("unlock");

  /** Does something while other tracers are kept away. */
  async locked<Result>(use: () => Promise<Result>): Promise<Result> {
    await this.lock();
    try {
      return await use();
    } finally {
      await this.unlock();
    }
  }

  get hasEnded(): boolean {
    return pidFdEnded(this.#pidFd);
  }

  /** The exit code of a command of ours that has ended. */
  async reap(): Promise<number | undefined> {
    return (await this.#tracer.request({ kind: "reap", pid: this.pid })) as number | undefined;
  }

  async close(): Promise<void> {
    await this.#forward("close")();
    closeSync(this.#pidFd);
  }

  #forward<Name extends ProcessMethod>(method: Name): Promised<TracedProcess[Name]> {
    return ((...args: readonly unknown[]) =>
      this.#tracer.patiently(this.pid, () =>
        this.#tracer.request({ kind: "process", pid: this.pid, method, args }),
      )) as Promised<TracedProcess[Name]>;
  }
}

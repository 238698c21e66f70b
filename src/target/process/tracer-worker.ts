/**
 * The one OS thread that makes all ptrace and wait calls. It serves requests one after another; each runs to its end,
 * so the thread that waits for events in the main program never blocks.
 */
import { parentPort } from "node:worker_threads";
import { isEnding } from "./address-space.ts";
import { reapCommand } from "./reap-command.ts";
import { startStopped } from "./start-command.ts";
import { TracedProcess } from "./traced-process.ts";

export type ProcessMethod = Exclude<keyof TracedProcess, "pid">;

export type Request =
  | { readonly id: number; readonly kind: "open"; readonly pid: number }
  | {
      readonly id: number;
      readonly kind: "start";
      readonly argv: readonly string[];
      readonly env: Readonly<Record<string, string | undefined>>;
    }
  | { readonly id: number; readonly kind: "reap"; readonly pid: number }
  | {
      readonly id: number;
      readonly kind: "process";
      readonly pid: number;
      readonly method: ProcessMethod;
      readonly args: readonly unknown[];
    };

/** An error as it crosses the thread border: its class is lost, its fields are not. */
export interface PlainError {
  readonly name: string;
  readonly message: string;
  readonly code: string | undefined;
  readonly stack: string | undefined;
  readonly fields: Readonly<Record<string, unknown>>;
}

export type Response =
  | { readonly id: number; readonly kind: "ok"; readonly value: unknown }
  | { readonly id: number; readonly kind: "error"; readonly error: PlainError };

/** The process ended while something was done to it: whatever failed, failed because of that. */
class TargetGoneError extends Error {
  readonly code = "target-gone";
  constructor(pid: number) {
    super(`process ${pid} has ended`);
    this.name = "TargetGoneError";
  }
}

const processes = new Map<number, TracedProcess>();

function serve(request: Request): unknown {
  switch (request.kind) {
    case "open":
      processes.set(request.pid, TracedProcess.open(request.pid));
      return undefined;
    case "start": {
      const { pid, freeze } = startStopped(request.argv, request.env);
      processes.set(pid, TracedProcess.adopt(pid, freeze));
      return pid;
    }
    case "reap":
      return reapCommand(request.pid);
    case "process": {
      const traced = processes.get(request.pid);
      if (traced === undefined) throw new Error(`process ${request.pid} is not open`);
      if (request.method === "close") processes.delete(request.pid);
      const method = traced[request.method] as (...args: unknown[]) => unknown;
      return method.apply(traced, [...request.args]);
    }
    default:
      return request satisfies never;
  }
}

function toPlain(error: unknown): PlainError {
  if (!(error instanceof Error))
    return { name: "Error", message: String(error), code: undefined, stack: undefined, fields: {} };
  const { code } = error as { code?: string };
  return {
    name: error.name,
    message: error.message,
    code,
    stack: error.stack,
    fields: { ...error, cause: undefined },
  };
}

parentPort?.on("message", (request: Request) => {
  let response: Response;
  try {
    response = { id: request.id, kind: "ok", value: serve(request) };
  } catch (error) {
    const isGone = request.kind === "process" && isEnding(request.pid);
    response = {
      id: request.id,
      kind: "error",
      error: toPlain(isGone ? new TargetGoneError(request.pid) : error),
    };
  }
  parentPort?.postMessage(response);
});

/** What the figures were measured on. */
import { cpus, loadavg, release } from "node:os";

export interface Machine {
  readonly processor: string;
  readonly processors: number;
  readonly kernel: string;
  readonly node: string;
  /** Load of the last minute when the run began: other work on the machine shows in the figures. */
  readonly load: number;
}

export function describeMachine(): Machine {
  const all = cpus();
  return {
    processor: all[0]?.model ?? "unknown",
    processors: all.length,
    kernel: release(),
    node: process.version,
    load: loadavg()[0] ?? 0,
  };
}

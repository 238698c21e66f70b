/** Programs that run in the tracer itself, on the same maps as those in the targets: BEGIN, END and intervals. */
import { interpret } from "../bpf/index.ts";
import type { Script, ScriptProbe } from "../lang/index.ts";
import { PT_REGS_BYTES, PT_REGS_COOKIE } from "../x86/registers.ts";
import type { ProbeNames } from "./attach/probe-resolution.ts";
import type { SharedMaps } from "./attach/shared-maps.ts";
import { tracerHost } from "./program-host.ts";

interface Interval {
  readonly probe: ScriptProbe;
  readonly name: string;
  readonly periodMs: number;
  dueMs: number;
}

/** What the first argument of a program of ours points to: nothing but its name is known. */
function contextOf(cookie: bigint): Uint8Array {
  const bytes = new Uint8Array(PT_REGS_BYTES);
  new DataView(bytes.buffer).setBigUint64(PT_REGS_COOKIE, cookie, true);
  return bytes;
}

export class LocalPrograms {
  readonly #script: Script;
  readonly #maps: SharedMaps;
  readonly #names: ProbeNames;
  #intervals: Interval[] = [];

  constructor(script: Script, maps: SharedMaps, names: ProbeNames) {
    this.#script = script;
    this.#maps = maps;
    this.#names = names;
  }

  /** Runs all programs of a kind, in the order of the script. */
  run(kind: "begin" | "end"): void {
    for (const probe of this.#script.probes)
      for (const point of probe.attachPoints) if (point.kind === kind) this.#runOne(probe, point.name);
  }

  startIntervals(): void {
    const nowMs = performance.now();
    this.#intervals = this.#script.probes.flatMap((probe) =>
      probe.attachPoints.flatMap((point) => {
        if (point.kind !== "interval") return [];
        const periodMs = Number(point.periodNs) / 1e6;
        return [{ probe, name: point.name, periodMs, dueMs: nowMs + periodMs }];
      }),
    );
  }

  /** Runs what is due. An interval that was missed is run once, not as often as it was missed. */
  runDueIntervals(): void {
    const nowMs = performance.now();
    for (const interval of this.#intervals) {
      if (nowMs < interval.dueMs) continue;
      this.#runOne(interval.probe, interval.name);
      interval.dueMs +=
        interval.periodMs * Math.max(1, Math.ceil((nowMs - interval.dueMs) / interval.periodMs));
    }
  }

  /** Milliseconds until the next interval is due. */
  untilNextMs(): number {
    const nowMs = performance.now();
    return Math.max(
      0,
      Math.min(...this.#intervals.map(({ dueMs }) => dueMs - nowMs), Number.MAX_SAFE_INTEGER),
    );
  }

  stopIntervals(): void {
    this.#intervals = [];
  }

  #runOne(probe: ScriptProbe, name: string): void {
    const program = this.#script.bundle.programs[probe.programIndex]!;
    const result = interpret({
      insns: program.insns,
      maps: this.#maps.maps,
      host: tracerHost,
      entry: { kind: "context", bytes: contextOf(this.#names.cookieOf(name)) },
    });
    if (result.kind === "faulted")
      throw new Error(
        `program ${program.name} was proved and faults at instruction ${result.at}: ${result.message}`,
      );
  }
}

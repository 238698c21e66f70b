/** What `-v` says about the session itself, on standard error. */
import { hexBytes, type Refusal, refusalText } from "../../patch/index.ts";
import type { ChosenGate } from "../attach/gate-level.ts";
import { describeReturn } from "../attach/return-ways.ts";
import type { PerfMapResult } from "../names/perf-map.ts";
import type { SessionIo, TraceOptions } from "../options.ts";
import type { ArmedTarget, LeftTarget, Targets } from "../targets.ts";
import { arenaJson, describeArena } from "./arena-report.ts";

/** More sites than this are counted, not listed. */
const MOST_SITES = 50;

const levelWords = {
  none: "threads' own stacks",
  stack: "private stacks",
  strict: "private stacks, signals wait",
} as const;
const gateWords = ({ level, reason }: ChosenGate): string => `${levelWords[level]}: ${reason}`;

export class VerboseReport {
  readonly #isOn: boolean;
  readonly #isJson: boolean;
  readonly #io: SessionIo;

  constructor(options: Pick<TraceOptions, "verbose" | "format">, io: SessionIo) {
    this.#isOn = options.verbose;
    this.#isJson = options.format === "json";
    this.#io = io;
  }

  armed(armed: readonly ArmedTarget[], targets: Targets): void {
    if (!this.#isOn) return;
    for (const { pid, points, threads, stoppedNs, skipped, gates } of armed) {
      this.#say(
        `process ${pid}: ${points} sites armed, stopped ${threads} threads for ${milliseconds(stoppedNs)} ms`,
      );
      if (gates.process.level !== "none") this.#say(`  gate: ${gateWords(gates.process)}`);
      for (const { probe, gate } of gates.others) this.#say(`  gate of ${probe}: ${gateWords(gate)}`);
      for (const { probe, reason } of skipped.slice(0, MOST_SITES))
        this.#say(`  left out, by ${probe}: ${reason}`);
    }
    for (const attachment of targets.attachments) {
      const { target, key, memory } = attachment;
      const arena = { pid: target.pid, accounts: memory.accounts, key, hugeMaps: targets.hugeMaps };
      this.#say(`  ${describeArena(arena)}`);
      if (this.#isJson) this.#io.out.write(arenaJson(arena));
      this.#perfMap(attachment.naming.perfMapResult);
      if (attachment.naming.gdbRefusal !== undefined)
        this.#say(`no names for gdb: ${attachment.naming.gdbRefusal}`);
      for (const { plan, code, detour, planned } of attachment.builtPoints.slice(0, MOST_SITES)) {
        const mechanism = attachment.mechanismAt(code.at);
        const now =
          mechanism === "call" || mechanism === "jump" || mechanism === "punned"
            ? code.jumpBytes!
            : Uint8Array.of(0xcc, ...code.oldBytes.slice(1));
        this.#say(
          `  ${attachment.images.symbolize(plan.at).text} 0x${plan.at.toString(16)}: ${mechanism}, ` +
            `${hexBytes(code.oldBytes)} -> ${hexBytes(now)}, detour 0x${detour.entry.toString(16)}`,
        );
        const print = (at: bigint) => attachment.images.symbolize(at).text;
        // Most functions have none, and most sites are no function's entry: that goes without saying.
        for (const { mechanism: rung, refusal } of plan.refused)
          if (rung !== "call" || !isUsual(refusal))
            this.#say(`    not ${rung}: ${refusalText(refusal, print)}`);
        if (planned.returns !== undefined) this.#say(`    ${describeReturn(planned.returns, print)}`);
      }
    }
  }

  left(left: readonly LeftTarget[]): void {
    if (!this.#isOn) return;
    for (const { pid, report } of left) {
      if (report === undefined) {
        this.#say(`process ${pid}: ended, nothing to restore`);
        continue;
      }
      this.#say(
        `process ${pid}: ${report.sites} sites restored, ${report.returnsRestored} return addresses put back, ` +
          `threads stood for ${milliseconds(report.stoppedNs)} ms, ${report.stops} ${report.stops === 1 ? "stop" : "stops"}`,
      );
    }
  }

  #perfMap(result: PerfMapResult | undefined): void {
    if (result === undefined) return;
    const { path } = result;
    this.#say(
      result.kind === "written"
        ? `${path}: ${result.lines} names for perf`
        : `${path}: no names for perf: ${result.reason}`,
    );
  }

  #say(line: string): void {
    this.#io.err.write(`${line}\n`);
  }
}

const isUsual = ({ reason }: Refusal): boolean =>
  reason === "no-patchable-entry" || reason === "not-a-function-entry" || reason === "other-mechanism-forced";

function milliseconds(ns: bigint): string {
  return (Number(ns) / 1e6).toFixed(1);
}

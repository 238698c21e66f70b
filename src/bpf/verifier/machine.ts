/** What one verification knows besides states: the program, its maps, and what is being proved. */
import type { Insn } from "../insn.ts";
import type { MapSpec } from "../program.ts";
import { reject } from "./rejection.ts";

/** The proof while it is being made; see `Proof`. */
export interface Findings {
  stackBytes: number;
  readonly ctxReads: Set<number>;
  readonly helpers: Set<number>;
  readonly mapAtCall: Map<number, number>;
  readonly outerMapAtCall: Map<number, number>;
  readonly stringAtCall: Map<number, Uint8Array>;
  readonly callbackAtCall: Map<number, number>;
  readonly recordBytes: Map<number, number>;
}

export class Machine {
  readonly insns: readonly Insn[];
  readonly maps: readonly MapSpec[];
  readonly findings: Findings = {
    stackBytes: 0,
    ctxReads: new Set(),
    helpers: new Set(),
    mapAtCall: new Map(),
    outerMapAtCall: new Map(),
    stringAtCall: new Map(),
    callbackAtCall: new Map(),
    recordBytes: new Map(),
  };
  #lastId = 0;

  constructor(insns: readonly Insn[], maps: readonly MapSpec[]) {
    this.insns = insns;
    this.maps = maps;
  }

  /** A number that was not given out before, for copies, unchecked pointers and references. */
  newId(): number {
    return ++this.#lastId;
  }

  /** Compiled code is made for one map at each call, so all paths must agree. */
  noteMapAtCall(at: number, map: number, helper: string): void {
    const before = this.findings.mapAtCall.get(at);
    if (before !== undefined && before !== map) {
      reject(
        `call ${helper} is reached with different maps: ${this.maps[before]!.name} and ${this.maps[map]!.name}`,
      );
    }
    this.findings.mapAtCall.set(at, map);
  }
}

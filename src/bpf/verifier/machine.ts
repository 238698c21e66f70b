/** What one verification knows besides states: the program, its maps, its functions, and what is being proved. */
import type { Insn } from "../insn.ts";
import type { MapSpec } from "../program.ts";
import type { Limits } from "./limits.ts";
import { reject } from "./rejection.ts";

/** The proof while it is being made; see `Proof`. */
export interface Findings {
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
  readonly limits: Limits;
  /** Slots where functions start, in order; the first is 0. */
  readonly starts: readonly number[];
  /** Deepest use of each function's stack frame, in the order of `starts`. */
  readonly stackBytes: number[];
  /** Starts of functions that a helper calls. */
  readonly callbacks = new Set<number>();
  readonly findings: Findings = {
    ctxReads: new Set(),
    helpers: new Set(),
    mapAtCall: new Map(),
    outerMapAtCall: new Map(),
    stringAtCall: new Map(),
    callbackAtCall: new Map(),
    recordBytes: new Map(),
  };
  readonly #indexOfStart: ReadonlyMap<number, number>;
  readonly #chains = new Map<string, number>();
  #lastId = 0;

  constructor(insns: readonly Insn[], maps: readonly MapSpec[], starts: readonly number[], limits: Limits) {
    this.insns = insns;
    this.maps = maps;
    this.starts = starts;
    this.limits = limits;
    this.stackBytes = starts.map(() => 0);
    this.#indexOfStart = new Map(starts.map((start, i) => [start, i]));
  }

  /** A number that was not given out before, for copies, unchecked pointers and references. */
  newId(): number {
    return ++this.#lastId;
  }

  /** What map number `target` is like: those of the bundle, then for each of them that holds maps what these are like. */
  getMap(target: number): MapSpec {
    const { maps } = this;
    return target < maps.length ? maps[target]! : maps[target - maps.length]!.inner!;
  }

  /** The number that stands for the maps inside a map of maps. */
  innerOf(target: number): number {
    return target + this.maps.length;
  }

  /** The index in `starts` of the function that starts at a slot. */
  functionAt(start: number): number {
    return this.#indexOfStart.get(start)!;
  }

  noteStack(fn: number, bytes: number): void {
    if (bytes > this.stackBytes[fn]!) this.stackBytes[fn] = bytes;
  }

  /** The number of the chain of calls that adds a call at slot `at` to chain `parent`; 0 is the empty one. */
  chain(parent: number, at: number, start: number): number {
    const key = `${parent},${at},${start}`;
    let number = this.#chains.get(key);
    if (number === undefined) {
      number = this.#chains.size + 1;
      this.#chains.set(key, number);
    }
    return number;
  }

  /** Compiled code is made for one map at each call, so all paths must agree. */
  noteMapAtCall(at: number, target: number, helper: string): void {
    const { mapAtCall, outerMapAtCall } = this.findings;
    const isInner = target >= this.maps.length;
    const outer = outerMapAtCall.get(at);
    const before = mapAtCall.get(at) ?? (outer === undefined ? undefined : this.innerOf(outer));
    if (before !== undefined && before !== target) {
      reject(
        `call ${helper} is reached with different maps: ${this.getMap(before).name} and ${this.getMap(target).name}`,
      );
    }
    if (isInner) outerMapAtCall.set(at, target - this.maps.length);
    else mapAtCall.set(at, target);
  }

  /** Likewise for one format. */
  noteStringAtCall(at: number, text: Uint8Array, helper: string): void {
    const before = this.findings.stringAtCall.get(at);
    if (before && Buffer.compare(before, text) !== 0) {
      reject(`call ${helper} is reached with different constant strings`);
    }
    this.findings.stringAtCall.set(at, text);
  }

  /** Likewise for one function. */
  noteCallbackAtCall(at: number, start: number, helper: string): void {
    const before = this.findings.callbackAtCall.get(at);
    if (before !== undefined && before !== start) {
      reject(`call ${helper} is reached with different functions: at insn ${before} and ${start}`);
    }
    this.findings.callbackAtCall.set(at, start);
    this.callbacks.add(start);
  }

  noteRecord(target: number, bytes: number): void {
    const { recordBytes } = this.findings;
    if (bytes > (recordBytes.get(target) ?? -1)) recordBytes.set(target, bytes);
  }
}

/**
 * Walks every path of a program, one after the other, and stops early where an earlier path has shown all that can
 * come.
 *
 * The walk is a tree. A node is a stretch of steps; its children begin where a comparison can go both ways, or at a
 * checkpoint. When all children of a node are finished, what they needed is carried backwards over its steps, and a
 * checkpoint becomes usable: only then is it known what matters about it (see `Demand`). A path that a checkpoint
 * covers ends there and needs what the checkpoint needed.
 *
 * Unfinished nodes are exactly the ancestors of the current one. Meeting the same state as an ancestor means that the
 * walk will never end. Loops are not summed up: they are walked until their condition decides, within the budget.
 */
import type { Insn } from "../insn.ts";
import { OP_LDIMM64 } from "../opcodes.ts";
import { covers, isSame } from "./cover.ts";
import { Demand, newNote, type StepNote } from "./demand.ts";
import type { Machine } from "./machine.ts";
import { reject } from "./rejection.ts";
import type { State } from "./state.ts";
import { runStep, type Way } from "./step.ts";

/** Comparisons whose other way waits to be walked; each holds a state. */
const MAX_WAITING = 32_768;
/** Checkpoints that are kept per instruction; those that covered something last stay. */
const MAX_FINISHED = 48;
/** Steps between checkpoints: a copy of the state for every step of a tight loop would fill the memory. */
const MIN_STEPS_BETWEEN = 8;

class Node {
  readonly parent: Node | undefined;
  /** Set for a checkpoint: the state before its first step, and where. */
  readonly snapshot: State | undefined;
  readonly start: number;
  /** Until the node is finished, what comes after its steps; then what comes from its first step on. */
  readonly demand = new Demand();
  pendingChildren = 0;
  /** Instruction indexes of the steps; freed when finished. */
  ats: number[] = [];
  notes: (StepNote | undefined)[] = [];

  constructor(parent: Node | undefined, start: number, snapshot: State | undefined) {
    this.parent = parent;
    this.start = start;
    this.snapshot = snapshot;
  }

  record(at: number, note: StepNote): void {
    this.ats.push(at);
    this.notes.push(note);
  }
}

/** A way that waits to be walked. The comparison itself is the first step of the child. */
interface Waiting {
  readonly parent: Node;
  readonly comparedAt: number;
  readonly way: Way;
  readonly stepsSinceCheckpoint: number;
}

/** Looks on while a program is walked; for tests of the verifier itself. */
export interface Observer {
  /** The state before the instruction at `at`. */
  readonly onState: (at: number, state: State) => void;
  /** False: every path is walked to its end, whatever was shown before. */
  readonly prunes: boolean;
}

export class Explorer {
  readonly #machine: Machine;
  readonly #meets: Uint8Array;
  readonly #maxVisits: number;
  readonly #waiting: Waiting[] = [];
  readonly #finished = new Map<number, Node[]>();
  readonly #unfinished = new Map<number, Node[]>();
  /** 1 for every slot that some path reached. */
  readonly reached: Uint8Array;
  visited = 0;
  /** Where the walk is; after a rejection, where it was found, and the node and state there. */
  at = 0;
  state: State;
  node: Node;

  readonly #observer: Observer | undefined;

  constructor(machine: Machine, meets: Uint8Array, entry: State, maxVisits: number, observer?: Observer) {
    this.#observer = observer;
    this.#machine = machine;
    this.#meets = meets;
    this.#maxVisits = maxVisits;
    this.reached = new Uint8Array(machine.insns.length);
    this.state = entry;
    this.node = new Node(undefined, 0, undefined);
  }

  /** Throws Rejection. */
  exploreAll(): void {
    this.#walk(0);
    for (let next = this.#waiting.pop(); next; next = this.#waiting.pop()) {
      const { parent, comparedAt, way } = next;
      this.node = new Node(parent, way.next, undefined);
      this.node.record(comparedAt, { ...newNote(), links: way.links });
      this.state = way.state;
      this.at = way.next;
      this.#walk(next.stepsSinceCheckpoint);
    }
  }

  /** Instruction indexes from the entry to where the walk is, the last `count` of them. */
  path(count: number): number[] {
    let path: number[] = [this.at];
    for (let node: Node | undefined = this.node; node && path.length < count; node = node.parent) {
      path = [...node.ats.slice(-count), ...path];
    }
    return path.slice(-count);
  }

  /** Follows one path to its end, leaving other ways to wait. */
  #walk(stepsBefore: number): void {
    let steps = stepsBefore;
    for (;;) {
      if (this.#meets[this.at]) {
        if (this.#isCovered()) return;
        this.#refuseRepetition();
        if (steps >= MIN_STEPS_BETWEEN) {
          this.#checkpoint();
          steps = 0;
        }
      }
      if (++this.visited > this.#maxVisits) {
        reject(`BPF program is too large. Processed ${this.#maxVisits} insn`);
      }
      steps++;
      this.#observer?.onState(this.at, this.state);
      const at = this.at;
      const insn = this.#machine.insns[at]!;
      this.#markReached(insn, at);
      const note = newNote();
      const result = runStep({ machine: this.#machine, state: this.state, note, at });
      if (result.kind === "branch") {
        this.#split(at, result.ways, steps);
        return;
      }
      this.node.record(at, note);
      if (result.kind === "end") {
        this.#finish(this.node);
        return;
      }
      this.at = result.next;
    }
  }

  #markReached(insn: Insn, at: number): void {
    this.reached[at] = 1;
    if (insn.opcode === OP_LDIMM64) this.reached[at + 1] = 1;
  }

  #split(at: number, ways: readonly [Way, Way], steps: number): void {
    const parent = this.node;
    parent.pendingChildren = 2;
    // The first way is walked first.
    for (const way of [ways[1], ways[0]]) {
      this.#waiting.push({ parent, comparedAt: at, way, stepsSinceCheckpoint: steps });
    }
    if (this.#waiting.length > MAX_WAITING) {
      reject(`The sequence of ${this.#waiting.length} jumps is too complex.`);
    }
  }

  #checkpoint(): void {
    const parent = this.node;
    parent.pendingChildren = 1;
    this.node = new Node(parent, this.at, this.state.clone());
    listAt(this.#unfinished, this.at).push(this.node);
  }

  #isCovered(): boolean {
    const finished = this.#finished.get(this.at);
    if (!finished || this.#observer?.prunes === false) return false;
    for (let i = finished.length - 1; i >= 0; i--) {
      const node = finished[i]!;
      if (!covers(node.snapshot!, node.demand, this.state)) continue;
      this.node.demand.add(node.demand);
      // What covered something will do so again: last, so first to be tried and last to be dropped.
      finished.splice(i, 1);
      finished.push(node);
      this.#finish(this.node);
      return true;
    }
    return false;
  }

  /**
   * Compares with the last ancestor here and with the one at the greatest power of two: a cycle of any length is
   * found after at most twice its steps, without comparing with all.
   */
  #refuseRepetition(): void {
    const ancestors = this.#unfinished.get(this.at);
    if (!ancestors || ancestors.length === 0) return;
    const last = ancestors.length - 1;
    const far = ancestors.length < 2 ? 0 : 2 ** (31 - Math.clz32(last)) - 1;
    for (const index of last === far ? [last] : [last, far]) {
      if (isSame(ancestors[index]!.snapshot!, this.state))
        reject(`infinite loop detected at insn ${this.at}`);
    }
  }

  /** The node's children are finished: carries what they need to its start, and so on up. */
  #finish(last: Node): void {
    for (let node: Node | undefined = last; node; node = node.parent) {
      for (let i = node.ats.length - 1; i >= 0; i--) {
        node.demand.stepBack(this.#machine.insns[node.ats[i]!]!, node.notes[i]);
      }
      node.ats = [];
      node.notes = [];
      if (node.snapshot) this.#keepFinished(node);
      if (!node.parent) return;
      node.parent.demand.add(node.demand);
      if (--node.parent.pendingChildren > 0) return;
    }
  }

  #keepFinished(node: Node): void {
    const unfinished = listAt(this.#unfinished, node.start);
    const index = unfinished.lastIndexOf(node);
    if (index >= 0) unfinished.splice(index, 1);
    const finished = listAt(this.#finished, node.start);
    finished.push(node);
    if (finished.length > MAX_FINISHED) finished.shift();
  }
}

function listAt(lists: Map<number, Node[]>, at: number): Node[] {
  let list = lists.get(at);
  if (!list) {
    list = [];
    lists.set(at, list);
  }
  return list;
}

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
 *
 * Helpers that call back (functions.ts) are the exception, as they end whatever the function does. Where such a helper
 * calls back again, numbers that change and decided nothing are forgotten (widen.ts), and an ancestor from the same
 * call of the helper that fits in all places ends the path. What such a path needs is not known before the ancestor
 * is finished, so all places count as needed; and it has not shown that anything ends outside of that call, so until
 * the call is finished it covers only paths inside it (`Node.within`).
 */
import { findHelper } from "../helpers.ts";
import type { Insn } from "../insn.ts";
import { OP_LDIMM64 } from "../opcodes.ts";
import type { Step } from "./access.ts";
import { covers, isSame } from "./cover.ts";
import { Demand } from "./demand.ts";
import { mostIterations } from "./functions.ts";
import type { Machine } from "./machine.ts";
import { reject } from "./rejection.ts";
import type { State } from "./state.ts";
import { runStep } from "./step.ts";
import { isEmpty, newNote, type StepNote } from "./step-note.ts";
import type { Way } from "./step-result.ts";
import { MEETS, MEETS_CALLBACK, type Meeting } from "./structure.ts";
import { forgetLoneIds, widen } from "./widen.ts";

/** Comparisons whose other way waits to be walked; each holds a state. */
const MAX_WAITING = 32_768;
/** Checkpoints that are kept per instruction; those that covered something last stay. */
const MAX_FINISHED = 48;
/** Comparisons without success for each one with, and to begin with, after which a checkpoint is given up. */
const MAX_MISSES = 24;
/** Steps between checkpoints: a copy of the state for every step of a tight loop would fill the memory. */
const MIN_STEPS_BETWEEN = 8;
/** Likewise where no comparison went both ways since the last one: nothing waits that could come by. */
const MIN_STEPS_STRAIGHT = 64;
/** Earlier calls of a callback that a new one is compared with. */
const MAX_ITERATIONS_COMPARED = 8;

class Node {
  readonly parent: Node | undefined;
  /** Set for a checkpoint: the state before its first step, and where. */
  readonly snapshot: State | undefined;
  readonly start: number;
  /** Until the node is finished, what comes after its steps; then what comes from its first step on. */
  readonly demand = new Demand();
  /** The same without what paths need only because an unfinished ancestor ended them; undefined: no difference. */
  decided: Demand | undefined;
  pendingChildren = 0;
  /** Comparisons with new states that may still fail. */
  misses = MAX_MISSES;
  /** Instruction indexes of the steps; freed when finished. */
  ats: number[] = [];
  notes: (StepNote | undefined)[] = [];
  /** Which frame runs after the last step. */
  depth = 0;
  /** Not 0: a helper that calls back is called here for the first time, see `Activity.activation`. */
  opens = 0;
  /** Activations of helpers inside of which alone what was shown holds; undefined: none. */
  within: readonly number[] | undefined;

  constructor(parent: Node | undefined, start: number, snapshot: State | undefined) {
    this.parent = parent;
    this.start = start;
    this.snapshot = snapshot;
  }

  /** What comes after the steps also needs what `other` needs. */
  need(other: Node): void {
    if (other.decided) this.decided ??= this.demand.clone();
    this.decided?.add(other.decided ?? other.demand);
    this.demand.add(other.demand);
  }

  /** An unfinished ancestor with this snapshot ends the path. */
  needAll(snapshot: State): void {
    this.decided ??= this.demand.clone();
    this.demand.addWhole(snapshot);
  }

  record(at: number, note: StepNote | undefined): void {
    this.ats.push(at);
    this.notes.push(note);
  }
}

/** A way that waits to be walked. The step that leads there is the first one of the child. */
interface Waiting {
  readonly parent: Node;
  readonly steppedAt: number;
  readonly way: Way;
  readonly stepsSinceCheckpoint: number;
}

/** Looks on while a program is walked; for tests of the verifier itself. */
export interface Observer {
  /** The state before the instruction at `at`. */
  readonly onState?: (at: number, state: State) => void;
  /** False: every path is walked to its end, whatever was shown before. */
  readonly prunes?: boolean;
  /** Steps between checkpoints, if not as always: the more there are, the more their rules are tried. */
  readonly stepsBetween?: number;
}

export class Explorer {
  readonly #machine: Machine;
  readonly #meets: readonly Meeting[];
  readonly #maxVisits: number;
  readonly #waiting: Waiting[] = [];
  readonly #finished = new Map<number, Node[]>();
  readonly #unfinished = new Map<number, Node[]>();
  /** What holds only within other activations for one that is finished; absent: it is not. */
  readonly #closed = new Map<number, readonly number[] | undefined>();
  readonly #observer: Observer | undefined;
  readonly #stepsBetween: number;
  readonly #stepsStraight: number;
  /** The step that is being made; one object for all, as there are many. */
  readonly #step: { -readonly [Field in keyof Step]: Step[Field] };
  /** 1 for every slot that some path reached. */
  readonly reached: Uint8Array;
  visited = 0;
  /** Where the walk is; after a rejection, where it was found, and the node and state there. */
  at = 0;
  state: State;
  node: Node;

  constructor(
    machine: Machine,
    meets: readonly Meeting[],
    entry: State,
    maxVisits: number,
    observer?: Observer,
  ) {
    this.#observer = observer;
    this.#stepsBetween = observer?.stepsBetween ?? MIN_STEPS_BETWEEN;
    this.#stepsStraight = observer?.stepsBetween ?? MIN_STEPS_STRAIGHT;
    this.#machine = machine;
    this.#meets = meets;
    this.#maxVisits = maxVisits;
    this.reached = new Uint8Array(machine.insns.length);
    this.state = entry;
    this.node = new Node(undefined, 0, undefined);
    this.#step = { machine, state: entry, note: newNote(), at: 0 };
  }

  /** Throws Rejection. */
  exploreAll(): void {
    this.#walk(0);
    for (let next = this.#waiting.pop(); next; next = this.#waiting.pop()) {
      const { parent, steppedAt, way } = next;
      this.node = new Node(parent, way.next, undefined);
      this.node.record(steppedAt, way.note);
      this.node.depth = way.state.depth;
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
    let isStraight = this.visited === 0;
    for (;;) {
      const meeting = this.#meets[this.at]!;
      if (meeting === MEETS_CALLBACK) {
        if (this.#meetsCallback()) return;
        steps = 0;
      } else if (meeting === MEETS) {
        if (this.#isCovered()) return;
        this.#refuseRepetition();
        if (steps >= (isStraight ? this.#stepsStraight : this.#stepsBetween)) {
          this.#checkpoint();
          steps = 0;
          isStraight = true;
        }
      }
      if (++this.visited > this.#maxVisits) {
        reject(`BPF program is too large. Processed ${this.#maxVisits + 1} insn`);
      }
      steps++;
      this.#observer?.onState?.(this.at, this.state);
      const { at, state } = this;
      this.#markReached(this.#machine.insns[at]!, at);
      const depth = state.depth;
      const step = this.#step;
      step.state = state;
      step.at = at;
      const result = runStep(step);
      const { note } = step;
      if (result.kind === "branch") {
        step.note = newNote();
        this.node.depth = depth;
        this.#split(at, result.ways, steps);
        return;
      }
      if (isEmpty(note)) {
        this.node.record(at, undefined);
      } else {
        this.node.record(at, note);
        step.note = newNote();
      }
      this.node.depth = state.depth;
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
      this.#waiting.push({ parent, steppedAt: at, way, stepsSinceCheckpoint: steps });
    }
    if (this.#waiting.length > MAX_WAITING) {
      reject(`The sequence of ${this.#waiting.length} jumps is too complex.`);
    }
  }

  #checkpoint(): void {
    const parent = this.node;
    parent.depth = this.state.depth;
    parent.pendingChildren = 1;
    this.node = new Node(parent, this.at, this.state.clone());
    this.node.depth = parent.depth;
    listAt(this.#unfinished, this.#key(this.at, this.state)).push(this.node);
  }

  /** Checkpoints are found by the instruction and the calls that led there. */
  #key(at: number, state: State): number {
    return state.chain * this.reached.length + at;
  }

  /** Before the call of a helper that calls back; returns whether the path ends here. */
  #meetsCallback(): boolean {
    const { state } = this;
    if (state.activation === 0) {
      forgetLoneIds(state);
      state.left = mostIterations(findHelper(this.#machine.insns[this.at]!.imm)!, state.regs);
      if (this.#isCovered()) return true;
      this.#refuseRepetition();
      state.activation = this.#machine.newId();
      this.#checkpoint();
      this.node.opens = state.activation;
      return false;
    }
    const earlier = this.#lastIterations(state);
    const last = earlier.at(-1)!;
    widen(state, last.snapshot!, this.#neededSince(last));
    forgetLoneIds(state);
    if (this.#isCovered()) return true;
    const prunes = this.#observer?.prunes !== false;
    for (const { snapshot } of prunes ? earlier : [last]) {
      if (!covers(snapshot!, undefined, state)) continue;
      this.node.needAll(snapshot!);
      this.#holdWithin([state.activation]);
      this.#finish(this.node);
      return true;
    }
    this.#checkpoint();
    return false;
  }

  /** The last times that the helper, which now calls back again, was here; the path leads over them one by one. */
  #lastIterations(state: State): readonly Node[] {
    const ancestors = listAt(this.#unfinished, this.#key(this.at, state));
    return ancestors
      .slice(-MAX_ITERATIONS_COMPARED)
      .filter(({ snapshot }) => snapshot!.activation === state.activation);
  }

  /** What is known to be needed of the state at the beginning of `ancestor`. */
  #neededSince(ancestor: Node): Demand {
    const needed = new Demand();
    for (let node: Node | undefined = this.node; node && node !== ancestor; node = node.parent) {
      needed.add(node.decided ?? node.demand);
      this.#carryBack(needed, node, node === this.node ? this.state.depth : node.depth);
    }
    needed.add(ancestor.decided ?? ancestor.demand);
    return needed;
  }

  /** From what is needed after the steps of a node, where frame `after` runs, to what is needed before them. */
  #carryBack(demand: Demand, { ats, notes }: Node, after: number): void {
    let depth = after;
    for (let i = ats.length - 1; i >= 0; i--) {
      depth = demand.stepBack(this.#machine.insns[ats[i]!]!, notes[i], depth);
    }
  }

  #isCovered(): boolean {
    const finished = this.#finished.get(this.#key(this.at, this.state));
    if (!finished || this.#observer?.prunes === false) return false;
    for (let i = finished.length - 1; i >= 0; i--) {
      const node = finished[i]!;
      if (!covers(node.snapshot!, node.demand, this.state) || !this.#holdsHere(node)) {
        if (--node.misses < 0) finished.splice(i, 1);
        continue;
      }
      node.misses += MAX_MISSES;
      this.node.need(node);
      if (node.within) this.#holdWithin(node.within);
      // What covered something will do so again: last, so first to be tried and last to be dropped.
      finished.splice(i, 1);
      finished.push(node);
      this.#finish(this.node);
      return true;
    }
    return false;
  }

  /** Whether what `node` has shown holds for the current state. */
  #holdsHere(node: Node): boolean {
    if (!node.within) return true;
    node.within = this.#stillOpen(node.within);
    const { state } = this;
    return (node.within ?? []).every(
      (activation) =>
        state.activation === activation || state.callers.some((caller) => caller.activation === activation),
    );
  }

  #holdWithin(activations: readonly number[]): void {
    this.node.within = [...new Set([...(this.node.within ?? []), ...activations])];
  }

  /** Replaces activations that are finished by those inside of which that was shown. */
  #stillOpen(activations: readonly number[]): readonly number[] | undefined {
    if (!activations.some((activation) => this.#closed.has(activation))) return activations;
    const open = activations.flatMap((activation) =>
      this.#closed.has(activation)
        ? (this.#stillOpen(this.#closed.get(activation) ?? []) ?? [])
        : [activation],
    );
    return open.length === 0 ? undefined : [...new Set(open)];
  }

  /**
   * Compares with the last ancestor here and with the one at the greatest power of two: a cycle of any length is
   * found after at most twice its steps, without comparing with all. A callback that runs again is no cycle.
   */
  #refuseRepetition(): void {
    const ancestors = this.#unfinished.get(this.#key(this.at, this.state));
    if (!ancestors || ancestors.length === 0) return;
    const last = ancestors.length - 1;
    const far = ancestors.length < 2 ? 0 : 2 ** (31 - Math.clz32(last)) - 1;
    for (const index of last === far ? [last] : [last, far]) {
      const { snapshot } = ancestors[index]!;
      if (snapshot!.entry === this.state.entry && isSame(snapshot!, this.state))
        reject(`infinite loop detected at insn ${this.at}`);
    }
  }

  /** The node's children are finished: carries what they need to its start, and so on up. */
  #finish(last: Node): void {
    for (let node: Node | undefined = last; node; node = node.parent) {
      this.#carryBack(node.demand, node, node.depth);
      if (node.decided) this.#carryBack(node.decided, node, node.depth);
      node.ats = [];
      node.notes = [];
      if (node.snapshot) this.#keepFinished(node, node.snapshot);
      const { parent } = node;
      if (!parent) return;
      parent.need(node);
      if (node.within) parent.within = [...new Set([...(parent.within ?? []), ...node.within])];
      if (--parent.pendingChildren > 0) return;
    }
  }

  #keepFinished(node: Node, snapshot: State): void {
    node.demand.forgetUnknown(snapshot);
    node.decided?.forgetUnknown(snapshot);
    if (node.opens !== 0) {
      const others = node.within?.filter((activation) => activation !== node.opens);
      node.within = others?.length ? others : undefined;
      this.#closed.set(node.opens, node.within);
    }
    const key = this.#key(node.start, snapshot);
    const unfinished = listAt(this.#unfinished, key);
    const index = unfinished.lastIndexOf(node);
    if (index >= 0) unfinished.splice(index, 1);
    const finished = listAt(this.#finished, key);
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

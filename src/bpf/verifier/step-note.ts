/** What a step did beyond what its instruction says; what is needed after it is carried back over it with this. */
import type { FramePlaces, SlotSet } from "./state.ts";

/** Stack slots of one frame that a step touched. */
export interface StackNote {
  readonly frame: number;
  /** Slots that were read. */
  reads: SlotSet;
  /** Slots that were written, at least in part. */
  writes: SlotSet;
  /** Slots of which no old byte is left. */
  kills: SlotSet;
}

/** How a step changes which function runs. */
export type Flow =
  | "stays"
  /** A local function begins. */
  | "call"
  | "return"
  /** A helper calls a function; `context` is the function's register that gets the helper's third argument. */
  | { readonly context: number }
  /** A tail call from a local function: another program returns in its place. */
  | "tail-return"
  /** The function that a helper called ends, and the helper goes on. */
  | "callback-return";

export interface StepNote {
  /** Registers whose numbers decided something in this step. */
  needs: number;
  flow: Flow;
  /** One entry for each frame. */
  stack: StackNote[] | undefined;
  /** After a comparison: places that learned from it, besides its operands. */
  links: readonly FramePlaces[] | undefined;
}

const noSlots: SlotSet = { low: 0, high: 0 };

export function newNote(): StepNote {
  return { needs: 0, flow: "stays", stack: undefined, links: undefined };
}

/** Whether there is nothing in it. */
export function isEmpty(note: StepNote): boolean {
  return note.needs === 0 && note.flow === "stays" && note.stack === undefined && note.links === undefined;
}

export function noteReads(note: StepNote, frame: number, slots: SlotSet): void {
  const entry = entryOf(note, frame);
  entry.reads = union(entry.reads, slots);
}

export function noteWrites(note: StepNote, frame: number, slots: SlotSet): void {
  const entry = entryOf(note, frame);
  entry.writes = union(entry.writes, slots);
}

export function noteKills(note: StepNote, frame: number, slots: SlotSet): void {
  const entry = entryOf(note, frame);
  entry.kills = union(entry.kills, slots);
}

function entryOf(note: StepNote, frame: number): StackNote {
  note.stack ??= [];
  let entry = note.stack.find((candidate) => candidate.frame === frame);
  if (!entry) {
    entry = { frame, reads: noSlots, writes: noSlots, kills: noSlots };
    note.stack.push(entry);
  }
  return entry;
}

function union(a: SlotSet, b: SlotSet): SlotSet {
  return { low: a.low | b.low, high: a.high | b.high };
}

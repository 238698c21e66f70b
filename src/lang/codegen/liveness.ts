/**
 * Which virtual registers are live where, over the whole control flow of a program, and removal of what computes
 * a value that nobody reads.
 */
import { definitionOf, type IrInsn, type IrLabel, isPure, usesOf } from "./ir.ts";

/** A straight run of instructions: `[start, end)`. */
interface BasicBlock {
  readonly start: number;
  readonly end: number;
  readonly successors: number[];
  readonly liveOut: Set<number>;
}

/** Calls `visit` for every instruction from last to first, with the registers that are live right after it. */
export function visitLiveness(
  insns: readonly IrInsn[],
  visit: (insn: IrInsn, index: number, liveAfter: Set<number>) => void,
): void {
  const blocks = findBlocks(insns);
  solve(insns, blocks);
  for (let b = blocks.length - 1; b >= 0; b--) {
    const block = blocks[b]!;
    const live = new Set(block.liveOut);
    for (let i = block.end - 1; i >= block.start; i--) {
      const insn = insns[i]!;
      visit(insn, i, live);
      step(insn, live);
    }
  }
}

/** Leaves out code that cannot be reached and pure instructions whose result is never read. */
export function removeDeadCode(insns: readonly IrInsn[]): IrInsn[] {
  let current = removeUnreachable(insns);
  for (;;) {
    const dead = new Set<number>();
    visitLiveness(current, (insn, index, liveAfter) => {
      const definition = definitionOf(insn);
      const unread = definition !== undefined && !liveAfter.has(definition.id);
      const copiesItself = insn.op === "move" && insn.src === insn.dst;
      if ((unread && isPure(insn)) || copiesItself) dead.add(index);
    });
    if (dead.size === 0) return current;
    current = current.filter((_, index) => !dead.has(index));
  }
}

function removeUnreachable(insns: readonly IrInsn[]): IrInsn[] {
  const blocks = findBlocks(insns);
  const reached = new Set<number>();
  const pending = blocks.length > 0 ? [0] : [];
  for (let b = pending.pop(); b !== undefined; b = pending.pop()) {
    if (reached.has(b)) continue;
    reached.add(b);
    pending.push(...blocks[b]!.successors);
  }
  return blocks.flatMap((block, b) => (reached.has(b) ? insns.slice(block.start, block.end) : []));
}

function findBlocks(insns: readonly IrInsn[]): BasicBlock[] {
  const starts = new Set<number>([0]);
  for (const [i, insn] of insns.entries()) {
    if (insn.op === "label") starts.add(i);
    if (endsBlock(insn)) starts.add(i + 1);
  }
  const ordered = [...starts].filter((start) => start < insns.length).sort((a, b) => a - b);
  const blocks: BasicBlock[] = ordered.map((start, b) => ({
    start,
    end: ordered[b + 1] ?? insns.length,
    successors: [],
    liveOut: new Set(),
  }));
  const blockOfLabel = new Map<IrLabel, number>();
  for (const [b, block] of blocks.entries()) {
    const first = insns[block.start]!;
    if (first.op === "label") blockOfLabel.set(first.label, b);
  }
  for (const [b, block] of blocks.entries()) {
    const last = insns[block.end - 1]!;
    if (last.op === "jump" || last.op === "goto") {
      const target = blockOfLabel.get(last.target);
      if (target === undefined) throw new Error(`generate bpf: label ${last.target.name} is not placed`);
      block.successors.push(target);
    }
    if (last.op !== "goto" && last.op !== "exit" && b + 1 < blocks.length) block.successors.push(b + 1);
  }
  return blocks;
}

function endsBlock(insn: IrInsn): boolean {
  return insn.op === "jump" || insn.op === "goto" || insn.op === "exit";
}

/** Backwards data flow to the fixed point. */
function solve(insns: readonly IrInsn[], blocks: readonly BasicBlock[]): void {
  const liveIn = blocks.map(() => new Set<number>());
  for (let changed = true; changed; ) {
    changed = false;
    for (let b = blocks.length - 1; b >= 0; b--) {
      const block = blocks[b]!;
      for (const successor of block.successors) for (const id of liveIn[successor]!) block.liveOut.add(id);
      const live = new Set(block.liveOut);
      for (let i = block.end - 1; i >= block.start; i--) step(insns[i]!, live);
      if (live.size !== liveIn[b]!.size) {
        liveIn[b] = live;
        changed = true;
      }
    }
  }
}

function step(insn: IrInsn, live: Set<number>): void {
  const definition = definitionOf(insn);
  if (definition) live.delete(definition.id);
  for (const use of usesOf(insn)) live.add(use.id);
}

/**
 * Joins operations that one instruction can do: address arithmetic into memory operands, the mask of a processor
 * number, and the half of a pid_tgid that is wanted.
 *
 *     r0 <<= 3; r1 += r0; *(u64 *)(r1 + 8) += 1       lock inc qword ptr [r1 + r0*8 + 8]
 *     r0 = cpu; r0 &= 7                               rdpid; and 7 (instead of and 4095, and 7)
 *     r0 = pid_tgid; w0 = w0                          mov eax, fs:[tid]
 *
 * Only within a block, and only if the registers that lose their values are not needed afterwards.
 */
import type { Liveness, OpList } from "./liveness.ts";
import { definesOf, type Op, type OpMem, usesOf } from "./operations.ts";

/** Changes `list` in place; liveness must be computed again afterwards. */
export function foldOperations(list: OpList, live: Liveness, isTarget: readonly boolean[]): void {
  for (const slot of list.ops.keys()) {
    foldAddress(list, live, isTarget, slot);
    foldMask(list, isTarget, slot);
    foldPidTgid(list, isTarget, slot);
  }
}

/** Slots before `slot` in its block that still have an operation, nearest first. */
function* opsBefore(list: OpList, isTarget: readonly boolean[], slot: number): Generator<[number, Op]> {
  for (let at = slot; at > 0 && isTarget[at] !== true; ) {
    at--;
    const op = list.ops[at];
    if (op === undefined) continue;
    if (op.kind === "branch" || op.kind === "goto" || op.kind === "exit") return;
    yield [at, op];
  }
}

function foldAddress(list: OpList, live: Liveness, isTarget: readonly boolean[], slot: number): void {
  const op = list.ops[slot];
  if (op === undefined || (op.kind !== "load" && op.kind !== "store" && op.kind !== "atomic")) return;
  const { base, index } = op.mem;
  if (typeof base !== "number" || index !== undefined) return;
  // The base must be free to keep its old value: unused afterwards, and not also the operand that is stored.
  const withoutMem = { ...op, mem: { ...op.mem, base: "stack" } } as Op;
  if ((usesOf(withoutMem, list.keepsResult) & (1 << base)) !== 0) return;
  const isOverwritten = (definesOf(op) & (1 << base)) !== 0;
  if (!isOverwritten && (live.after[slot]! & (1 << base)) !== 0) return;

  let between = 0;
  for (const [at, candidate] of opsBefore(list, isTarget, slot)) {
    const isAdd =
      candidate.kind === "alu" &&
      candidate.op === "add" &&
      candidate.width === 64 &&
      candidate.dst === base &&
      candidate.src.kind === "reg" &&
      candidate.src.reg !== base;
    if (isAdd && candidate.src.kind === "reg") {
      const reg = candidate.src.reg;
      if ((between & (1 << reg)) !== 0) return;
      list.ops[at] = undefined;
      const scale = foldScale(list, live, isTarget, at, slot, reg);
      (list.ops[slot] as { mem: OpMem }).mem = { ...op.mem, index: { reg, scale } };
      return;
    }
    if (((usesOf(candidate, list.keepsResult) | definesOf(candidate)) & (1 << base)) !== 0) return;
    between |= definesOf(candidate);
  }
}

/** Takes a shift of the index right before the addition at `addSlot` into the scale. */
function foldScale(
  list: OpList,
  live: Liveness,
  isTarget: readonly boolean[],
  addSlot: number,
  memSlot: number,
  reg: number,
): 1 | 2 | 4 | 8 {
  const op = list.ops[memSlot]!;
  const isDeadAfter = (live.after[memSlot]! & ~definesOf(op) & (1 << reg)) === 0;
  const otherUses = list.ops
    .slice(addSlot, memSlot + 1)
    .some((other) => other !== undefined && (usesOf(other, list.keepsResult) & (1 << reg)) !== 0);
  if (!isDeadAfter || otherUses) return 1;
  for (const [at, candidate] of opsBefore(list, isTarget, addSlot)) {
    const isScale =
      candidate.kind === "shift" &&
      candidate.op === "shl" &&
      candidate.width === 64 &&
      candidate.dst === reg &&
      candidate.src.kind === "imm" &&
      candidate.src.value >= 1 &&
      candidate.src.value <= 3;
    if (isScale && candidate.src.kind === "imm") {
      list.ops[at] = undefined;
      return (1 << candidate.src.value) as 2 | 4 | 8;
    }
    if (((usesOf(candidate, list.keepsResult) | definesOf(candidate)) & (1 << reg)) !== 0) return 1;
  }
  return 1;
}

/** A processor number that is masked right away needs no other mask. */
function foldMask(list: OpList, isTarget: readonly boolean[], slot: number): void {
  const op = list.ops[slot];
  if (op?.kind !== "alu" || op.op !== "and" || op.src.kind !== "imm" || op.src.value < 0) return;
  for (const [at, candidate] of opsBefore(list, isTarget, slot)) {
    if (candidate.kind === "cpu" && candidate.dst === op.dst) {
      list.ops[at] = { ...candidate, mask: candidate.mask & op.src.value };
      list.ops[slot] = undefined;
      return;
    }
    if (((usesOf(candidate, list.keepsResult) | definesOf(candidate)) & (1 << op.dst)) !== 0) return;
  }
}

/** Of the two ids only one is used. */
function foldPidTgid(list: OpList, isTarget: readonly boolean[], slot: number): void {
  const op = list.ops[slot];
  const part =
    op?.kind === "move" && op.width === 32 && op.src === op.dst
      ? "tid"
      : op?.kind === "shift" &&
          op.op === "shr" &&
          op.width === 64 &&
          op.src.kind === "imm" &&
          op.src.value === 32
        ? "pid"
        : undefined;
  if (part === undefined || op === undefined || !("dst" in op)) return;
  for (const [at, candidate] of opsBefore(list, isTarget, slot)) {
    if (candidate.kind === "pid-tgid" && candidate.dst === op.dst && candidate.part === "both") {
      list.ops[at] = { ...candidate, part };
      list.ops[slot] = undefined;
      return;
    }
    if (((usesOf(candidate, list.keepsResult) | definesOf(candidate)) & (1 << op.dst)) !== 0) return;
  }
}

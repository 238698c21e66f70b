/**
 * What can be said of a program without running it: every slot is an instruction of RFC 9669 with nothing in its
 * reserved fields, functions are known, jumps land on instructions of the same function, every instruction can be
 * reached, none runs off the end of its function, and no function can call itself.
 *
 * Also finds the instructions where paths meet: only there can a path be covered by an earlier one.
 */
import { findHelper } from "../helpers.ts";
import { type Insn, jumpTarget } from "../insn.ts";
import * as op from "../opcodes.ts";
import type { MapSpec } from "../program.ts";
import { wrongInsn } from "./insn-form.ts";
import { MAX_FRAMES } from "./limits.ts";

const MAX_SLOTS = 1_000_000;

export interface BadStructure {
  readonly kind: "bad";
  readonly at: number;
  readonly message: string;
}

/** Whether paths meet at an instruction. */
export type Meeting = 0 | typeof MEETS | typeof MEETS_CALLBACK;
/** More than one instruction can come before. */
export const MEETS = 1;
/** The call of a helper that calls back, so that paths come back to it. */
export const MEETS_CALLBACK = 2;

export interface GoodStructure {
  readonly kind: "good";
  /** By slot. */
  readonly meets: readonly Meeting[];
  /** Slots where functions start, in order; the first is 0. */
  readonly starts: readonly number[];
  /** For each function those that it names in a call or as a callback, and where. */
  readonly callees: readonly (readonly Callee[])[];
  /** All functions, each before those that it names. */
  readonly order: readonly number[];
}

/** A function, by its index in `GoodStructure.starts`, named by the instruction at `at`. */
export interface Callee {
  readonly at: number;
  readonly fn: number;
}

export function checkStructure(
  insns: readonly Insn[],
  maps: readonly MapSpec[],
  unreachable: "refuse" | "allow",
): GoodStructure | BadStructure {
  if (insns.length === 0) return bad(0, "the program is empty");
  if (insns.length > MAX_SLOTS) return bad(MAX_SLOTS, `the program has more than ${MAX_SLOTS} instructions`);
  const isSecond = new Uint8Array(insns.length);
  for (let at = 0; at < insns.length; at++) {
    const insn = insns[at]!;
    const wrong = wrongInsn(insn, insns[at + 1], maps);
    if (wrong !== undefined) return bad(at, wrong);
    if (insn.opcode === op.OP_LDIMM64) isSecond[++at] = 1;
  }
  const functions = findFunctions(insns, isSecond);
  if (functions.kind === "bad") return functions;
  const { starts, callees } = functions;
  const wrong = checkJumps(insns, isSecond, starts);
  if (wrong) return wrong;
  const { meets, seen } = follow(insns);
  const unseen = seen.findIndex((reached, at) => !reached && !isSecond[at]);
  if (unseen >= 0 && unreachable === "refuse") return bad(unseen, `unreachable insn ${unseen}`);
  const order = orderFunctions(starts, callees);
  return Array.isArray(order) ? { kind: "good", meets, starts, callees, order } : order;
}

/** The slot of the function that an instruction calls, or names as a callback. */
function functionTarget(insn: Insn, at: number): number | undefined {
  const names =
    (insn.opcode === op.OP_CALL && insn.src === op.CALL_LOCAL) ||
    (insn.opcode === op.OP_LDIMM64 && insn.src === op.PSEUDO_FUNCTION);
  return names ? at + 1 + insn.imm : undefined;
}

interface Functions {
  readonly kind: "functions";
  readonly starts: readonly number[];
  readonly callees: readonly (readonly Callee[])[];
}

function findFunctions(insns: readonly Insn[], isSecond: Uint8Array): Functions | BadStructure {
  const found = new Set([0]);
  const named: { readonly at: number; readonly target: number }[] = [];
  for (let at = 0; at < insns.length; at++) {
    const target = isSecond[at] ? undefined : functionTarget(insns[at]!, at);
    if (target === undefined) continue;
    if (target < 0 || target >= insns.length) return bad(at, "call to invalid destination");
    if (isSecond[target]) return bad(at, `jump into the middle of ldimm64 insn ${target - 1}`);
    found.add(target);
    named.push({ at, target });
  }
  const starts = [...found].sort((a, b) => a - b);
  const indexOf = new Map(starts.map((start, fn) => [start, fn]));
  const callees: Callee[][] = starts.map(() => []);
  let caller = 0;
  for (const { at, target } of named) {
    while (caller + 1 < starts.length && at >= starts[caller + 1]!) caller++;
    callees[caller]!.push({ at, fn: indexOf.get(target)! });
  }
  return { kind: "functions", starts, callees };
}

/** Jumps stay in their function, and no function runs on into the next. */
function checkJumps(
  insns: readonly Insn[],
  isSecond: Uint8Array,
  starts: readonly number[],
): BadStructure | undefined {
  for (let fn = 0; fn < starts.length; fn++) {
    const start = starts[fn]!;
    const end = starts[fn + 1] ?? insns.length;
    for (let at = start; at < end; at++) {
      const target = isSecond[at] ? undefined : jumpTarget(insns[at]!, at);
      if (target === undefined) continue;
      if (target < start || target >= end) return bad(at, `jump out of range from insn ${at} to ${target}`);
      if (isSecond[target]) return bad(at, `jump into the middle of ldimm64 insn ${target - 1}`);
    }
    const { opcode } = insns[end - 1]!;
    const isEnd = opcode === op.OP_EXIT || opcode === op.OP_JA || opcode === op.OP_JA32;
    if (!isEnd || isSecond[end - 1]) return bad(end - 1, "last insn is not an exit or jmp");
  }
  return undefined;
}

/** Walks from the first instruction over all jumps and calls. */
function follow(insns: readonly Insn[]): { readonly meets: Meeting[]; readonly seen: Uint8Array } {
  const meets: Meeting[] = Array.from({ length: insns.length }, () => 0);
  const seen = new Uint8Array(insns.length);
  const work = [0];
  seen[0] = 1;
  for (let at = work.pop(); at !== undefined; at = work.pop()) {
    const insn = insns[at]!;
    const callee = functionTarget(insn, at);
    if (callee !== undefined && !seen[callee]) {
      seen[callee] = 1;
      work.push(callee);
    }
    for (const next of successors(insn, at)) {
      if (seen[next]) {
        if (meets[next] === 0) meets[next] = MEETS;
      } else {
        seen[next] = 1;
        work.push(next);
      }
    }
    if (callsBack(insn)) meets[at] = MEETS_CALLBACK;
  }
  return { meets, seen };
}

function callsBack(insn: Insn): boolean {
  if (insn.opcode !== op.OP_CALL || insn.src !== op.CALL_HELPER) return false;
  return findHelper(insn.imm)?.args.some(({ kind }) => kind === "callback") ?? false;
}

function successors(insn: Insn, at: number): number[] {
  if (insn.opcode === op.OP_EXIT) return [];
  const target = jumpTarget(insn, at);
  if (target === undefined) return [at + (insn.opcode === op.OP_LDIMM64 ? 2 : 1)];
  return op.isConditionalJump(insn.opcode) ? [at + 1, target] : [target];
}

/** All functions, each before those that it names, which is possible unless one names itself over others or at once. */
function orderFunctions(
  starts: readonly number[],
  callees: readonly (readonly Callee[])[],
): number[] | BadStructure {
  const finished: number[] = [];
  /** 1: its callees are being looked at. 2: done. */
  const state = new Uint8Array(starts.length);
  for (let root = 0; root < starts.length; root++) {
    if (state[root] !== 0) continue;
    const path = [{ fn: root, next: 0 }];
    state[root] = 1;
    for (let top = path.at(-1); top; top = path.at(-1)) {
      const callee = callees[top.fn]![top.next++];
      if (!callee) {
        state[top.fn] = 2;
        finished.push(top.fn);
        path.pop();
      } else if (state[callee.fn] === 1) {
        const what = `recursive call from ${nameOf(top.fn)} to ${nameOf(callee.fn)}`;
        return bad(callee.at, `${what}: the call stack of ${MAX_FRAMES + 1} frames is too deep`);
      } else if (state[callee.fn] === 0) {
        state[callee.fn] = 1;
        path.push({ fn: callee.fn, next: 0 });
      }
    }
  }
  return finished.reverse();
}

function nameOf(fn: number): string {
  return `func#${fn}`;
}

function bad(at: number, message: string): BadStructure {
  return { kind: "bad", at, message };
}

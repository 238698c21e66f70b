/**
 * `@x = count()` and the like: each processor adds to its own copy of the value, atomically, because a thread may
 * move to another processor, or be interrupted, between reading the processor's number and adding.
 */
import { ACCOUNT_SHARD_BYTES, ACCOUNT_SHARDS, HELPER_GET_SMP_PROCESSOR_ID } from "../../bpf/index.ts";
import type { CallExpr, MapExpr } from "../ast.ts";
import type { ShardedValue } from "../script.ts";
import { extremeMask, HIST_FIRST_POWER, linearSteps, MARK_ADDED } from "../shard-layout.ts";
import type { CodeContext } from "./context.ts";
import type { Operand, VReg } from "./ir.ts";
import { advance, type Memory } from "./ir-builder.ts";
import { withElement } from "./map-access.ts";

/** How often a minimum or maximum is tried again when another thread changes the same shard at the same time. */
const EXTREME_TRIES = 8;

/** The processor's copy of a value. */
interface Shard extends Memory {
  readonly base: VReg;
}

/** `@x[keys] = call`. */
export function assignAggregate(c: CodeContext, target: MapExpr, call: CallExpr): void {
  const map = c.plan.map(target.name);
  const { value } = map;
  if (value.kind !== "sharded") throw new Error(`generate bpf: ${map.name} does not aggregate`);
  const first = call.args[0];
  const argument = first === undefined ? 0n : c.value(first);
  // Keys are evaluated later and may change the variable that the argument is.
  const stable = target.keys.length > 0 && typeof argument !== "bigint" ? c.b.copy(argument) : argument;
  if (map.keys.length === 0) {
    // The processor first: the map's address need not be kept over that call then.
    const offset = shardOffset(c, value);
    addToShard(c, value, shardAt(c, c.b.mapValue(map.map), offset), stable);
    return;
  }
  withElement(c, map, target.keys, (element) => {
    if (element.base === "frame") throw new Error("generate bpf: a map value in the frame");
    addToShard(c, value, shardAt(c, element.base, shardOffset(c, value)), stable);
  });
}

/** Adds 1 to a word of the account of the attach point. */
export function countHit(c: CodeContext, word: number): void {
  const offset = shardOffset(c, { shards: ACCOUNT_SHARDS, strideBytes: ACCOUNT_SHARD_BYTES });
  const account = c.b.mapValue(c.plan.account, word);
  c.b.atomic("add", shardAt(c, account, offset), 1n);
}

/** Offset of the processor's copy of a value. */
function shardOffset(c: CodeContext, value: Pick<ShardedValue, "shards" | "strideBytes">): Operand {
  const compute = (): Operand => {
    const cpu = c.b.call(HELPER_GET_SMP_PROCESSOR_ID);
    const shard = c.b.alu("and", cpu, BigInt(value.shards - 1));
    return c.b.alu("mul", shard, BigInt(value.strideBytes));
  };
  // Most values are laid out like the account, whose shard is known already.
  const isAlike = value.shards === ACCOUNT_SHARDS && value.strideBytes === ACCOUNT_SHARD_BYTES;
  return c.plan.options.accounts && isAlike ? c.once("shard", () => c.b.copy(compute())) : compute();
}

function shardAt(c: CodeContext, element: VReg, offset: Operand): Shard {
  const base = c.b.copy(element);
  c.b.aluInto("add", base, offset);
  return { base, offset: 0 };
}

function addToShard(c: CodeContext, value: ShardedValue, shard: Shard, argument: Operand): void {
  const { b } = c;
  switch (value.fn) {
    case "count":
      b.atomic("add", shard, 1n);
      break;
    case "sum":
      b.atomic("add", shard, argument);
      b.store(advance(shard, 8), BigInt(MARK_ADDED));
      break;
    case "avg":
    case "stats":
      b.atomic("add", shard, argument);
      b.atomic("add", advance(shard, 8), 1n);
      break;
    case "min":
    case "max":
      raiseExtreme(c, shard, b.alu("xor", argument, extremeMask(value.fn, value.signed)));
      b.store(advance(shard, 8), BigInt(MARK_ADDED));
      break;
    case "hist":
      countBucket(c, shard, logBucket(c, argument, value.signed));
      break;
    case "lhist":
      countBucket(c, shard, linearBucket(c, argument, value));
      break;
  }
}

function countBucket(c: CodeContext, shard: Shard, bucket: VReg): void {
  const { b } = c;
  const base = b.copy(shard.base);
  b.aluInto("add", base, b.alu("lsh", bucket, 3n));
  b.atomic("add", { base, offset: shard.offset }, 1n);
}

/** Makes the word at least `wanted`, unsigned. */
function raiseExtreme(c: CodeContext, word: Memory, wanted: Operand): void {
  const { b } = c;
  const next = b.copy(wanted);
  const seen = b.copy(b.load(word));
  const done = b.label("done");
  for (let i = 0; i < EXTREME_TRIES; i++) {
    b.jump("ge", seen, next, done);
    const held = b.compareExchange(word, seen, next);
    b.jump("eq", held, seen, done);
    b.move(seen, held);
  }
  b.bind(done);
}

/**
 * Index of the bucket [2^i, 2^(i+1)) of a number. The large steps are jumps, which real data makes predictable;
 * the small ones are arithmetic.
 */
function logBucket(c: CodeContext, argument: Operand, signed: boolean): VReg {
  const { b } = c;
  const rest = b.copy(argument);
  const bucket = b.register();
  const done = b.label("done");
  if (signed) {
    b.move(bucket, 0n);
    b.jump("slt", rest, 0n, done);
  }
  b.move(bucket, 1n);
  b.jump("eq", rest, 0n, done);
  const power = b.copy(0n);
  for (const bits of [32n, 16n, 8n]) {
    const small = b.label("small");
    if (bits === 32n) {
      // 2^32 - 1 is no immediate: look at the high half itself.
      b.jump("eq", b.alu("rsh", rest, bits), 0n, small);
    } else {
      b.jump("le", rest, (1n << bits) - 1n, small);
    }
    b.aluInto("add", power, bits);
    b.aluInto("rsh", rest, bits);
    b.bind(small);
  }
  for (const shift of [2n, 1n]) {
    // 4 or 2 if the rest is at least 2^4 or 2^2, else 0: the sign of the difference.
    const bits = 1n << shift;
    const step = b.alu("lsh", b.alu("rsh", b.alu("sub", (1n << bits) - 1n, rest), 63n), shift);
    b.aluInto("rsh", rest, step);
    b.aluInto("add", power, step);
  }
  // The rest is 1, 2 or 3.
  b.aluInto("rsh", rest, 1n);
  b.aluInto("add", power, rest);
  b.aluInto("and", power, 63n);
  b.move(bucket, power);
  b.aluInto("add", bucket, BigInt(HIST_FIRST_POWER));
  b.bind(done);
  return bucket;
}

/** Index of the bucket of a linear histogram. */
function linearBucket(c: CodeContext, argument: Operand, value: ShardedValue): VReg {
  const { b } = c;
  const { min, max, step } = value.linear!;
  const last = BigInt(linearSteps({ min, max, step }) + 1);
  const number = b.copy(argument);
  const bucket = b.register();
  const done = b.label("done");
  const [below, atLeast] = value.signed ? (["slt", "sge"] as const) : (["lt", "ge"] as const);
  // Nothing unsigned is below a minimum that is not above 0, and all of it is above a maximum that is not.
  if (value.signed || min > 0n) {
    b.move(bucket, 0n);
    b.jump(below, number, min, done);
  }
  b.move(bucket, last);
  if (value.signed || max > 0n) b.jump(atLeast, number, max, done);
  else b.goto(done);
  b.move(bucket, b.alu("div", b.alu("sub", number, min), step));
  b.aluInto("add", bucket, 1n);
  // Proves the bound.
  b.jump("le", bucket, last, done);
  b.move(bucket, last);
  b.bind(done);
  return bucket;
}

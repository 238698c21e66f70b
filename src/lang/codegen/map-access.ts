/**
 * Reading and writing maps.
 *
 * A map without keys is element 0 of an array map, addressed directly; its value is followed by a word that says
 * that it was assigned. A map with keys is a hash map. `++`, `+=` and the like add atomically where BPF has the
 * operation, so no update is lost.
 */
import {
  type AluName,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
} from "../../bpf/index.ts";
import type { Expr, MapExpr } from "../ast.ts";
import type { ScriptMap } from "../script.ts";
import { type ValueType, valueTypeBytes } from "../value-type.ts";
import type { CodeContext } from "./context.ts";
import type { AtomicOp, Operand, VReg } from "./ir.ts";
import { addressArgument, advance, type Memory } from "./ir-builder.ts";
import { mapKeyBytes, mapValueBytes } from "./plan.ts";

const BPF_ANY = 0n;
const BPF_NOEXIST = 1n;

/** Which value an update of a map yields. */
type Wanted = "before" | "after" | "none";

/** Puts the keys of an access into the frame. */
export function writeKey(c: CodeContext, map: ScriptMap, keys: readonly Expr[]): Memory {
  const memory = c.b.frame(mapKeyBytes(map));
  let offset = 0;
  let next = 0;
  for (const expr of keys) {
    const written = c.analysis.typeOf(expr);
    const parts = written.kind === "tuple" ? written.elements.length : 1;
    const types = map.keys.slice(next, next + parts);
    const type: ValueType = written.kind === "tuple" ? { kind: "tuple", elements: types } : types[0]!;
    c.into(expr, advance(memory, offset), type, true);
    offset += valueTypeBytes(type);
    next += parts;
  }
  return memory;
}

/** The address of an element, or 0. */
function lookUp(c: CodeContext, map: ScriptMap, key: Memory): VReg {
  return c.b.call(HELPER_MAP_LOOKUP_ELEM, { kind: "map", map: map.map }, addressArgument(key));
}

/**
 * Runs `use` on the value of an element, which is made of zeros first if it is not there. Where the map is full
 * nothing happens.
 */
export function withElement(
  c: CodeContext,
  map: ScriptMap,
  keys: readonly Expr[],
  use: (value: Memory) => void,
): void {
  const { b } = c;
  if (map.keys.length === 0) {
    use({ base: b.mapValue(map.map), offset: 0 });
    return;
  }
  const key = writeKey(c, map, keys);
  const value = b.copy(lookUp(c, map, key));
  const found = b.label("found");
  const full = b.label("full");
  b.jump("ne", value, 0n, found);
  const bytes = mapValueBytes(map);
  b.callVoid(
    HELPER_MAP_UPDATE_ELEM,
    { kind: "map", map: map.map },
    addressArgument(key),
    { kind: "map-value", map: c.plan.zeros(bytes), offset: 0 },
    BPF_NOEXIST,
  );
  b.move(value, lookUp(c, map, key));
  b.jump("eq", value, 0n, full);
  b.bind(found);
  use({ base: value, offset: 0 });
  b.bind(full);
}

/** The value of an element that fits a register; 0 if there is none. */
export function readMap(c: CodeContext, expr: MapExpr): Operand {
  const { b } = c;
  const map = c.plan.map(expr.name);
  if (map.keys.length === 0) return b.load({ base: b.mapValue(map.map), offset: 0 });
  const key = writeKey(c, map, expr.keys);
  const element = lookUp(c, map, key);
  const result = b.register();
  const missing = b.label("missing");
  b.move(result, 0n);
  b.jump("eq", element, 0n, missing);
  b.move(result, b.load({ base: element, offset: 0 }));
  b.bind(missing);
  return result;
}

/** Copies the value of an element; zeros if there is none. `type` is as large as the map's value or larger. */
export function copyFromMap(c: CodeContext, expr: MapExpr, to: Memory, type: ValueType): void {
  const { b } = c;
  const map = c.plan.map(expr.name);
  const held = plainType(map);
  const bytes = Math.min(valueTypeBytes(held), valueTypeBytes(type));
  const rest = valueTypeBytes(type) - bytes;
  if (map.keys.length === 0) {
    b.copyMemory(to, { base: b.mapValue(map.map), offset: 0 }, bytes);
    b.clear(advance(to, bytes), rest);
    return;
  }
  const key = writeKey(c, map, expr.keys);
  const element = lookUp(c, map, key);
  const missing = b.label("missing");
  const end = b.label("end");
  b.jump("eq", element, 0n, missing);
  b.copyMemory(to, { base: element, offset: 0 }, bytes);
  b.clear(advance(to, bytes), rest);
  b.goto(end);
  b.bind(missing);
  b.clear(to, bytes + rest);
  b.bind(end);
}

/** `@x = value` or `@x[k] = value`. The value is computed before the key, as in bpftrace. */
export function assignMap(c: CodeContext, target: MapExpr, value: Expr): void {
  const { b } = c;
  const map = c.plan.map(target.name);
  const type = plainType(map);
  const bytes = valueTypeBytes(type);
  if (map.keys.length === 0 && bytes === 8 && type.kind !== "string" && type.kind !== "tuple") {
    const result = c.value(value);
    const base = b.mapValue(map.map);
    b.store({ base, offset: 0 }, result);
    b.store({ base, offset: 8 }, 1n);
    return;
  }
  const memory = b.frame(bytes);
  c.into(value, memory, type, true);
  if (map.keys.length === 0) {
    const base = b.mapValue(map.map);
    b.copyMemory({ base, offset: 0 }, memory, bytes);
    b.store({ base, offset: bytes }, 1n);
    return;
  }
  storeElement(c, map, target.keys, memory);
}

function storeElement(c: CodeContext, map: ScriptMap, keys: readonly Expr[], value: Memory): void {
  const key = writeKey(c, map, keys);
  c.b.callVoid(
    HELPER_MAP_UPDATE_ELEM,
    { kind: "map", map: map.map },
    addressArgument(key),
    addressArgument(value),
    BPF_ANY,
  );
}

/** `@x++` and the like: adds `amount`. */
export function stepMap(c: CodeContext, target: MapExpr, amount: bigint, wanted: Wanted): Operand {
  return updateMap(c, target, "add", amount, wanted);
}

/** `@x op= operand`. */
export function updateMap(
  c: CodeContext,
  target: MapExpr,
  alu: AluName,
  operand: Operand,
  wanted: Wanted,
): Operand {
  const { b } = c;
  const map = c.plan.map(target.name);
  const result = b.register();
  if (wanted !== "none") b.move(result, 0n);
  withElement(c, map, target.keys, (value) => {
    if (map.keys.length === 0) b.store(advance(value, 8), 1n);
    const atomic = findAtomic(alu);
    if (!atomic) {
      const before = b.load(value);
      const after = b.alu(alu, before, operand);
      b.store(value, after);
      if (wanted !== "none") b.move(result, wanted === "before" ? before : after);
      return;
    }
    const added = alu === "sub" ? b.negate(operand) : operand;
    if (wanted === "none") {
      b.atomic(atomic, value, added);
      return;
    }
    const before = b.fetch(atomic, value, added);
    b.move(result, wanted === "before" ? before : b.alu(atomic, before, added));
  });
  return result;
}

function findAtomic(alu: AluName): AtomicOp | undefined {
  switch (alu) {
    case "add":
    case "sub":
      return "add";
    case "or":
    case "and":
    case "xor":
      return alu;
    default:
      return undefined;
  }
}

/** `delete(@x[k])`, or `delete(@x)` of a map without keys. */
export function deleteElement(c: CodeContext, target: MapExpr): void {
  const { b } = c;
  const map = c.plan.map(target.name);
  if (map.keys.length > 0) {
    const key = writeKey(c, map, target.keys);
    b.callVoid(HELPER_MAP_DELETE_ELEM, { kind: "map", map: map.map }, addressArgument(key));
    return;
  }
  const bytes = mapValueBytes(map);
  const key = b.frame(8);
  b.store(key, 0n, 4);
  b.callVoid(
    HELPER_MAP_UPDATE_ELEM,
    { kind: "map", map: map.map },
    addressArgument(key),
    { kind: "map-value", map: c.plan.zeros(bytes), offset: 0 },
    BPF_ANY,
  );
}

function plainType(map: ScriptMap): ValueType {
  if (map.value.kind !== "plain") throw new Error(`generate bpf: ${map.name} holds an aggregate`);
  return map.value.type;
}

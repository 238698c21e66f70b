/**
 * What a register or a spilled stack slot may hold: nothing yet, a number, or a pointer of a known kind.
 *
 * A pointer is base + `off` + `variable`: `off` collects constants, `variable` what is only known by range. Nothing
 * is promised about the sum until an access is checked against the size of what is pointed to.
 */
import { isConstant, type Scalar, zero } from "./scalar.ts";

export type PointerKind =
  | "ctx"
  | "stack"
  | "map"
  | "map-key"
  | "map-value"
  | "record"
  | "memory"
  /** A function of the program, for helpers that call it. */
  | "function";

export interface Pointer {
  readonly kind: "pointer";
  readonly to: PointerKind;
  /**
   * For `map`, `map-key` and `map-value` the number of the map (`Machine.getMap`), for `stack` that of the frame (0 is
   * the main function's), for `function` the slot where it starts; -1 for the others.
   */
  readonly target: number;
  /** Size of what is pointed to; 0 where no access is allowed or other rules hold (map, stack, ctx). */
  readonly lenBytes: number;
  readonly off: number;
  readonly variable: Scalar;
  /** Not 0: may be null; all copies of one unchecked pointer have the same number. */
  readonly nullId: number;
  /** Not 0: the reference that must be released, for records. */
  readonly ref: number;
}

export interface Uninit {
  readonly kind: "uninit";
}

export type Value = Uninit | Scalar | Pointer;

export const uninit: Uninit = { kind: "uninit" };

/** A pointer to the start of something that is not null. */
export function pointerTo(to: PointerKind, lenBytes = 0, target = -1): Pointer {
  return { kind: "pointer", to, target, lenBytes, off: 0, variable: zero, nullId: 0, ref: 0 };
}

/** Whether the pointer is exactly base + `off`. */
export function isFixed(pointer: Pointer): boolean {
  return isConstant(pointer.variable) && pointer.variable.value === 0n;
}

/** The kernel's name of the kind of a value, as in its messages. */
export function typeName(value: Value): string {
  if (value.kind === "uninit") return "?";
  if (value.kind === "scalar") return "scalar";
  const orNull = value.nullId === 0 ? "" : "_or_null";
  switch (value.to) {
    case "ctx":
      return "ctx";
    case "stack":
      return "fp";
    case "map":
      // What a lookup in a map of maps gives.
      return value.nullId === 0 ? "map_ptr" : "map_value_or_null";
    case "map-key":
      return "map_key";
    case "map-value":
      return `map_value${orNull}`;
    case "record":
      return `ringbuf_mem${orNull}`;
    case "memory":
      return "mem";
    case "function":
      return "func";
  }
}

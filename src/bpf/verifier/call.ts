/** Calls of helpers: the arguments, what the helper does to the state, and its result. */

import { CTX_COOKIE, CTX_IP, CTX_OVERRIDE_VALUE, CTX_OVERRIDES, CTX_SITE } from "../context.ts";
import {
  findHelper,
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_FUNC_ARG,
  HELPER_GET_FUNC_IP,
  HELPER_GET_FUNC_RET,
  HELPER_GET_STACK,
  HELPER_GET_STACKID,
  HELPER_OVERRIDE_RETURN,
  HELPER_TAIL_CALL,
  type HelperSpec,
  MIN_ERRNO,
} from "../helpers.ts";
import type { Step } from "./access.ts";
import { type Arguments, checkArguments, nameOf } from "./arguments.ts";
import { callBack, tailCall } from "./functions.ts";
import { reject } from "./rejection.ts";
import { S64_MAX, S64_MIN, type Scalar, signedRange, unknownScalar } from "./scalar.ts";
import type { StepResult } from "./step-result.ts";
import { pointerTo, uninit, type Value } from "./value.ts";

/** Far more than a program can use; without a limit a loop that leaks would fill the memory of the verifier. */
const MAX_REFERENCES = 64;

/** Offsets in the context, see context.ts, of what unwinding a stack begins with: rbp, rip, rsp, the kind of place. */
const unwindReads: readonly number[] = [32, CTX_IP, 152, CTX_SITE];

/** What helpers read through the context that they are passed. */
const contextReads: ReadonlyMap<number, readonly number[]> = new Map([
  [HELPER_GET_ATTACH_COOKIE, [CTX_COOKIE]],
  [HELPER_GET_FUNC_IP, [CTX_IP]],
  [HELPER_GET_STACKID, unwindReads],
  [HELPER_GET_STACK, unwindReads],
  // rdi, rsi, rdx, rcx, r8, r9
  [HELPER_GET_FUNC_ARG, [112, 104, 96, 88, 72, 64]],
  // rax
  [HELPER_GET_FUNC_RET, [80]],
  [HELPER_OVERRIDE_RETURN, [CTX_OVERRIDES, CTX_OVERRIDE_VALUE]],
]);

export function callHelper(step: Step, helperNumber: number): StepResult {
  const helper = findHelper(helperNumber);
  if (!helper) reject(`invalid func unknown#${helperNumber}`);
  const found = checkArguments(step, helper);
  const { machine, at } = step;
  machine.findings.helpers.add(helperNumber);
  if (found.map >= 0) machine.noteMapAtCall(at, found.map, nameOf(helper));
  for (const off of contextReads.get(helperNumber) ?? []) machine.findings.ctxReads.add(off);
  const goesOn = () => finishCall(step, helper, found);
  if (helperNumber === HELPER_TAIL_CALL) return tailCall(step, goesOn);
  if (found.callback >= 0) {
    machine.noteCallbackAtCall(at, found.callback, nameOf(helper));
    return callBack(step, helper, found.callback, found.map, goesOn);
  }
  goesOn();
  return { kind: "next", next: at + 1 };
}

/** The state after the helper returned. */
function finishCall(step: Step, helper: HelperSpec, found: Arguments): void {
  const { state } = step;
  if (found.releases !== 0) state.release(found.releases, unknownScalar);
  for (let reg = 1; reg <= 5; reg++) state.regs[reg] = uninit;
  state.regs[0] = result(step, helper, found);
}

function result(step: Step, helper: HelperSpec, found: Arguments): Value {
  const { machine, state, at } = step;
  const { returns } = helper;
  switch (returns.kind) {
    case "integer":
      return integer(returns.min, returns.max);
    case "length-or-error":
      return signedRange(BigInt(MIN_ERRNO), found.size);
    case "void":
      return uninit;
    case "map-value-or-null": {
      const { valueBytes, inner } = machine.getMap(found.map);
      const nullId = machine.newId();
      if (inner) return { ...pointerTo("map", 0, machine.innerOf(found.map)), nullId };
      return { ...pointerTo("map-value", valueBytes, found.map), nullId };
    }
    case "record-or-null": {
      if (state.refs.length >= MAX_REFERENCES)
        reject(`more than ${MAX_REFERENCES} records are reserved at once`);
      const ref = machine.newId();
      state.refs = [...state.refs, { id: ref, at }];
      return { ...pointerTo("record", found.recordBytes), nullId: machine.newId(), ref };
    }
  }
}

function integer(low: bigint = S64_MIN, high: bigint = S64_MAX): Scalar {
  return signedRange(low, high);
}

export { type CodeNote, CodeWriter, type WrittenCode } from "./code-writer.ts";
export { DEFERRED_SIGNALS } from "./deferred-signals.ts";
export { emitEnter, emitLeave, emitOverride, emitPrograms, type GatePlace } from "./gate.ts";
export {
  GATE_OVERRIDE_VALUE,
  GATE_OVERRIDES,
  GATE_SITE,
  type GateFrame,
  type GateProgram,
  type GateSpec,
  planFrame,
  RED_ZONE_BYTES,
  type SavedReg,
} from "./gate-frame.ts";
export { closedBit, type GateKey, keyBits } from "./gate-key.ts";
export {
  emitStackRoutines,
  type GateStacks,
  guardPages,
  HEAD_RECOVER,
  HEAD_SP,
  PRIVATE_STACKS_BYTES,
  type PrivateStacks,
  STACK_HEAD,
  STACK_STRIDE,
  type StackRoutines,
  type ThreadSource,
} from "./private-stacks.ts";
export { DEFERS_BEFORE_RECOVERY, FRAME_SIZE_BEFORE_RECOVERY } from "./stack-switch.ts";

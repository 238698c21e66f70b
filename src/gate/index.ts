export { type CodeNote, CodeWriter, type WrittenCode } from "./code-writer.ts";
export { emitEnter, emitLeave, emitPrograms, type GatePlace } from "./gate.ts";
export {
  type GateFrame,
  type GateProgram,
  type GateSpec,
  planFrame,
  RED_ZONE_BYTES,
  type SavedReg,
} from "./gate-frame.ts";

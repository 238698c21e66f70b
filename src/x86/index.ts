export {
  Assembler,
  AssemblerError,
  type CodeTarget,
  type Condition,
  type Label,
  type Mem,
  type RegMem,
} from "./assembler.ts";
export { type BranchInto, findBranchesInto } from "./branch-scan.ts";
export { type CodeImage, type CodeRange, type FunctionRange, inText, textBytes } from "./code-image.ts";
export {
  type Boundary,
  boundaryAt,
  CodeBlock,
  decodeBlock,
  effectsOf,
  type FlowKind,
  type Insn,
  type InsnEffects,
  ripTargetOf,
  STATUS_FLAGS,
  textOf,
} from "./decode.ts";
export { analyseFunction, type EntrySource, type FunctionCode } from "./function-code.ts";
export { ALL_REGS, everythingLive, type Liveness, liveAt } from "./liveness.ts";
export { ImageCode, JUMP_BYTES, type Region, type RegionRefusal, type RegionResult } from "./regions.ts";
export * from "./registers.ts";
export {
  type CopyPart,
  findUnrelocatable,
  type Relocated,
  type RelocateResult,
  type RelocationRefusal,
  relocate,
  type Twin,
} from "./relocate.ts";

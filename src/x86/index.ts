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
export { type ExitRefusal, type FunctionExit, type FunctionExits, findExits } from "./function-exits.ts";
export { ALL_REGS, everythingLive, type Liveness, liveAt } from "./liveness.ts";
export {
  CALL_BYTES,
  findPatchableEntries,
  type PatchableEntryRefusal,
  type PatchableEntryResult,
} from "./patchable-entry.ts";
export { ImageCode, JUMP_BYTES, type Region, type RegionRefusal, type RegionResult } from "./regions.ts";
export {
  hasReg,
  PT_REGS_BYTES,
  PT_REGS_COOKIE,
  PT_REGS_CS,
  PT_REGS_FLAGS,
  PT_REGS_IP,
  PT_REGS_SP,
  PT_REGS_SS,
  ptRegsOffset,
  R8,
  R9,
  R10,
  R11,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  type Reg,
  type RegSet,
  RSI,
  RSP,
  regNames,
  regSet,
  regsOf,
} from "./registers.ts";
export {
  type CopyPart,
  findUnrelocatable,
  type Relocated,
  type RelocateResult,
  type RelocationRefusal,
  relocate,
  type Twin,
} from "./relocate.ts";

/**
 * Unwind information for replaced return addresses: so that C++ exceptions, forced unwinding (pthread_cancel, pthread_exit) and
 * backtraces pass through a trampoline as if the return address were still there.
 *
 * The compiler's unwinder (libgcc's unwind-dw2.c) asks `_Unwind_Find_FDE(pc, bases)` for the description of each frame. A
 * program of the engine at its entry answers for return addresses that are stubs of ours, by leaving the function with a
 * description from this table. Nothing is registered with the program, nothing locked, and nothing on any stack changes
 * until a frame is really unwound.
 *
 *     CIE         personality: below
 *     FDE 0..7    for each depth of a chain: rsp is as behind the return, and the return address is what this computes
 *
 *         slot = rsp - 8;  is a stub of this depth in it, or of a larger one?
 *                          yes: look up slot | depth in the table of return addresses
 *                          no: it has been put back, and is the return address
 *
 * In the second phase, when a frame is left for good, the unwinder calls the personality routine: it puts the return address
 * back into the slot, frees the entry, and counts the call as unwound. So entries = returns + unwound, and a caller that catches
 * the exception itself returns through its trampoline as ever. In the first phase, and for a backtrace, nothing changes.
 *
 * Not handled: unwinders that do not ask this function (LLVM's libunwind, nongnu libunwind), and programs whose copy of it has
 * no symbol. longjmp asks nobody; its dead entries are counted when their slots are used again (return-table.ts).
 *
 * Facts: DWARF 5, 6.4 and 7.7.1; LSB Core, Exception Frames (zPR); psABI 6.2 (register 7 is rsp, 16 the return address);
 * Itanium C++ ABI, Exception Handling, 1.6.1 (_UA_CLEANUP_PHASE is 2, _URC_CONTINUE_UNWIND 8).
 */
import { CodeWriter, type WrittenCode } from "../gate/code-writer.ts";
import { GATE_OVERRIDE_VALUE, GATE_OVERRIDES } from "../gate/gate-frame.ts";
import {
  ptRegsOffset,
  R8,
  R10,
  R11,
  RAX,
  RCX,
  RDI,
  RDX,
  type RegSet,
  RSI,
  RSP,
  regSet,
} from "../x86/registers.ts";
import {
  emitCount,
  emitSearch,
  HASH_FACTOR,
  MAX_RETURN_DEPTH,
  RETURN_ADDRESS_OFFSET,
  RETURN_ENTRY_BYTES,
  type ReturnTableSpec,
  STUBS_BYTES,
  UNWOUND_BEHIND_MISSED,
} from "./return-table.ts";

/** What the compiler's unwinder calls to find the description of a frame. */
export const FIND_FDE_FUNCTION = "_Unwind_Find_FDE";

/** Distance of the CIE and the FDEs from each other. */
const ROW_BYTES = 256;
const ROW_SHIFT = 8;
const BUCKET_BYTES = 128;
const CLEANUP_PHASE = 2;
const CONTINUE_UNWIND = 8;
const PUSH_IMM8 = 0x6a;

const PT_REGS_DI = ptRegsOffset[RDI]!;
const PT_REGS_SI = ptRegsOffset[RSI]!;

/** What the hook changes; to be saved around it like around any program. */
export const unwindHookClobbers: RegSet = regSet(RAX, RCX, RDX);
/** The context that it reads. */
export const unwindHookReads: ReadonlySet<number> = new Set([
  PT_REGS_DI,
  PT_REGS_SI,
  GATE_OVERRIDES,
  GATE_OVERRIDE_VALUE,
]);

export interface UnwindHook extends WrittenCode {
  /** To be called from a detour at the entry of `_Unwind_Find_FDE`. */
  readonly entry: bigint;
  /** The table: what an unwinder at work may point to. */
  readonly frames: { readonly start: bigint; readonly end: bigint };
}

export interface UnwindHookSpec {
  readonly at: bigint;
  readonly table: ReturnTableSpec;
  /** Where the unwinder's context has its CFA (`cfaOffsetOf`); undefined: frames are passed through, but not counted. */
  readonly cfaOffset: number | undefined;
}

export function emitUnwindHook({ at, table, cfaOffset }: UnwindHookSpec): UnwindHook {
  const writer = new CodeWriter(at);
  const { asm } = writer;
  const { start, end } = table.own ?? table.trampolines;
  const frames = asm.label("frames");
  const done = asm.label("done");

  const entry = asm.here("find");
  // The context lies behind the return address of this call.
  const context = (slot: number) => ({ base: RSP, disp: 8 + slot });
  writer.note("what was asked for, one less than the return address");
  asm.mov(RAX, context(PT_REGS_DI));
  asm.inc(RAX);
  asm.mov(RCX, RAX);
  asm.sub(RCX, { ripTo: writer.literal(start) });
  asm.cmp(RCX, { ripTo: writer.literal(end - start) });
  asm.jcc("ae", done);
  writer.note("is it the beginning of a stub?");
  asm.testImm(RAX, 15, 8);
  asm.jcc("ne", done);
  asm.mov(RCX, { base: RAX }, 32);
  asm.cmpImm(RCX, PUSH_IMM8, 8);
  asm.jcc("ne", done);
  writer.note("the description for its depth");
  asm.shr(RAX, 4, 32);
  asm.andImm(RAX, MAX_RETURN_DEPTH, 32);
  asm.inc(RAX, 32);
  asm.shl(RAX, ROW_SHIFT);
  asm.lea(RCX, { ripTo: frames });
  asm.add(RAX, RCX);
  asm.mov(context(GATE_OVERRIDE_VALUE), RAX);
  asm.movImm(context(GATE_OVERRIDES), 1);
  writer.note("struct dwarf_eh_bases: no bases, and where the function begins");
  asm.mov(RDX, context(PT_REGS_SI));
  asm.zero(RCX);
  asm.mov({ base: RDX }, RCX);
  asm.mov({ base: RDX, disp: 8 }, RCX);
  asm.mov(RCX, { ripTo: writer.literal(start) });
  asm.mov({ base: RDX, disp: 16 }, RCX);
  asm.bind(done);
  asm.ret();

  asm.align(16, "int3");
  const personality = asm.here("personality");
  if (cfaOffset !== undefined) emitPersonality(writer, table, cfaOffset);
  asm.align(ROW_BYTES, "int3");
  asm.bind(frames);
  writer.note("unwind information", true);
  asm.bytes(framesBytes(table, undefined));
  const written = writer.finish();
  // It has the address of the personality routine in it, which is known only now.
  const bytes = written.bytes.slice();
  const rows = framesBytes(table, cfaOffset === undefined ? undefined : asm.addressOf(personality));
  bytes.set(rows, asm.offsetOf(frames));
  const framesAt = asm.addressOf(frames);
  return {
    ...written,
    bytes,
    entry: asm.addressOf(entry),
    frames: { start: framesAt, end: framesAt + BigInt(rows.length) },
  };
}

/** esi = actions, r8 = context. */
function emitPersonality(writer: CodeWriter, table: ReturnTableSpec, cfaOffset: number): void {
  const { asm } = writer;
  const { start, end } = table.own ?? table.trampolines;
  const hit = asm.label("hit");
  const out = asm.label("out");
  writer.note("is the frame left for good?");
  asm.testImm(RSI, CLEANUP_PHASE, 8);
  asm.jcc("e", out);
  writer.note("slot and stub");
  asm.mov(R10, { base: R8, disp: cfaOffset });
  // The frame called is the probed function, or a stub of a larger depth, whose CFA is up to 7 above that.
  asm.lea(R10, { base: R10, disp: -8 });
  asm.andImm(R10, -8);
  asm.mov(R8, { base: R10 });
  asm.mov(RCX, R8);
  asm.sub(RCX, { ripTo: writer.literal(start) });
  asm.cmp(RCX, { ripTo: writer.literal(end - start) });
  asm.jcc("ae", out);
  asm.mov(RAX, R8, 32);
  asm.shr(RAX, 4, 32);
  asm.andImm(RAX, MAX_RETURN_DEPTH, 32);
  asm.or(R10, RAX);
  writer.note("its entry");
  emitSearch(writer, table, hit);
  asm.jmp(out);
  asm.bind(hit);
  writer.note("put the return address back, free the entry, count");
  asm.mov(R11, { base: RDX, disp: RETURN_ADDRESS_OFFSET });
  asm.andImm(R10, -8);
  asm.mov({ base: R10 }, R11);
  asm.movImm({ base: RDX }, 0);
  asm.andImm(R8, -STUBS_BYTES);
  asm.mov(R8, { base: R8, disp: -8 });
  emitCount(writer, table, { base: R8, disp: UNWOUND_BEHIND_MISSED });
  asm.bind(out);
  asm.movImm(RAX, CONTINUE_UNWIND, 32);
  asm.ret();
}

const RSP_COLUMN = 7;
const RA_COLUMN = 16;

/** One CIE, and an FDE for each depth, at their distances. */
export function framesBytes(table: ReturnTableSpec, personality: bigint | undefined): Uint8Array {
  const bytes = new Uint8Array(ROW_BYTES * (MAX_RETURN_DEPTH + 2));
  const { start, end } = table.own ?? table.trampolines;
  const augmentation = personality === undefined ? [0x00] : [0x00, ...le64(personality), 0x00];
  const cie = [
    ...le32(0),
    1, // version
    ...[...(personality === undefined ? "zR" : "zPR")].map((char) => char.charCodeAt(0)),
    0,
    1, // code alignment
    0x78, // data alignment: -8
    RA_COLUMN,
    augmentation.length,
    ...augmentation, // encodings: absolute pointers
    ...seq(0x0c, RSP_COLUMN, 0), // DW_CFA_def_cfa rsp, 0: each FDE has its own
  ];
  putRow(bytes, 0, cie);
  for (let depth = 0; depth <= MAX_RETURN_DEPTH; depth++) {
    const above = aboveSlotEnd(depth);
    const expression = returnAddressExpression(table, depth);
    const stackPointer = [op.lit(above), op.minus];
    const row = ROW_BYTES * (depth + 1);
    putRow(bytes, row, [
      ...le32(row + 4), // back to the CIE
      ...le64(start),
      ...le64(end - start),
      0, // no augmentation data
      ...seq(0x0c, RSP_COLUMN, above), // DW_CFA_def_cfa
      ...seq(0x16, RSP_COLUMN, stackPointer.length, ...stackPointer), // DW_CFA_val_expression
      ...seq(0x16, RA_COLUMN, ...uleb(expression.length), ...expression), // DW_CFA_val_expression
    ]);
  }
  return bytes;
}

/**
 * How far the CFA of a stub lies above the stack pointer behind its return. The unwinder knows a frame by the CFA of the frame
 * that it has called, so no two frames of a chain, and not the frame behind it, may have the same.
 */
const aboveSlotEnd = (depth: number): number => MAX_RETURN_DEPTH + 1 - depth;

/** With its length in front; what is left are DW_CFA_nop. */
function putRow(bytes: Uint8Array, at: number, content: readonly number[]): void {
  const padded = Math.ceil(content.length / 8) * 8 + 4;
  if (padded + 4 > ROW_BYTES) throw new Error("emit unwind table: a row is too long");
  bytes.set(le32(padded), at);
  bytes.set(content, at + 4);
}

const op = {
  deref: 0x06,
  const1u: 0x08,
  const4u: 0x0c,
  const8u: 0x0e,
  dup: 0x12,
  drop: 0x13,
  over: 0x14,
  swap: 0x16,
  and: 0x1a,
  minus: 0x1c,
  mul: 0x1e,
  or: 0x21,
  plus: 0x22,
  plusUconst: 0x23,
  shl: 0x24,
  shr: 0x25,
  bra: 0x28,
  eq: 0x29,
  ge: 0x2a,
  lt: 0x2d,
  skip: 0x2f,
  lit: (value: number) => 0x30 + value,
} as const;

/** The CFA is on the stack when it begins; the return address when it ends. */
function returnAddressExpression(table: ReturnTableSpec, depth: number): number[] {
  const { start, end } = table.trampolines;
  const buckets = table.entries / (BUCKET_BYTES / RETURN_ENTRY_BYTES);
  const bucket =
    buckets === 1
      ? [op.const8u, ...le64(table.at)]
      : [
          ...seq(op.dup, op.const8u, ...le64(HASH_FACTOR), op.mul),
          ...seq(op.const1u, 64 - Math.log2(buckets), op.shr, op.const1u, Math.log2(BUCKET_BYTES), op.shl),
          ...seq(op.const8u, ...le64(table.at), op.plus),
        ];
  const found = [op.plusUconst, RETURN_ADDRESS_OFFSET, op.deref];
  const missing = [op.lit(0), op.skip, ...le16(found.length)];
  const next = [op.plusUconst, RETURN_ENTRY_BYTES, op.dup, op.const1u, BUCKET_BYTES - 1, op.and];
  // Not by DW_OP_pick: libgcc aborts when it is to take the lowest element.
  const compare = [op.over, op.over, op.deref, op.eq];
  const loop = [...compare, op.bra, ...le16(next.length + 3 + missing.length), ...next];
  const lookUp = [
    ...seq(op.drop, op.lit(depth), op.or),
    ...bucket,
    ...loop,
    ...seq(op.bra, ...le16(-(loop.length + 3))),
    ...missing,
    ...found,
  ];
  return [
    ...seq(op.lit(8 + aboveSlotEnd(depth)), op.minus, op.dup, op.deref),
    ...seq(op.dup, op.const8u, ...le64(start), op.minus),
    ...seq(op.dup, op.lit(0), op.ge, op.swap, op.const4u, ...le32(Number(end - start)), op.lt, op.and),
    ...seq(op.over, op.lit(4), op.shr, op.lit(7), op.and, op.lit(depth), op.ge, op.and),
    ...seq(op.bra, ...le16(3), op.skip, ...le16(lookUp.length)),
    ...lookUp,
  ];
}

function uleb(value: number): number[] {
  const bytes: number[] = [];
  for (let left = value; ; left >>>= 7) {
    if (left < 0x80) return [...bytes, left];
    bytes.push((left & 0x7f) | 0x80);
  }
}

/** Bytes that belong together. */
const seq = (...bytes: readonly number[]): readonly number[] => bytes;

const le16 = (value: number): number[] => [value & 0xff, (value >> 8) & 0xff];
const le32 = (value: number): number[] => [...le16(value & 0xffff), ...le16(value >>> 16)];
const le64 = (value: bigint): number[] => [
  ...le32(Number(BigInt.asUintN(32, value))),
  ...le32(Number(BigInt.asUintN(32, value >> 32n))),
];

/** From the code of `_Unwind_GetCFA`: where the unwinder's context has the CFA. `f3 0f 1e fa` may precede `48 8b 87 disp32 c3`. */
export function cfaOffsetOf(code: Uint8Array): number | undefined {
  const at = code[0] === 0xf3 && code[1] === 0x0f && code[2] === 0x1e && code[3] === 0xfa ? 4 : 0;
  if (code[at] !== 0x48 || code[at + 1] !== 0x8b || code[at + 2] !== 0x87 || code[at + 7] !== 0xc3)
    return undefined;
  return new DataView(code.buffer, code.byteOffset).getInt32(at + 3, true);
}

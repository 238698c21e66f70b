/**
 * Hijacked return addresses: the table that remembers the originals, and the routines that use it.
 *
 * At a function's entry the return address lies at [rsp], in its *slot*. The claim routine stores it in the table
 * under the slot's address and puts the address of a trampoline in its place; the trampoline looks it up, gives the
 * entry back and returns there.
 *
 *     table: buckets of 8 entries (128 bytes, aligned), each entry
 *
 *         +0  key    address of the slot | depth, or 0: free
 *         +8  original return address
 *
 * Slots are 8-byte aligned, so the three low bits hold the depth of a chain: a probed function that tail-calls
 * another probed function leaves a trampoline in the slot, and the second one is claimed with depth 1, and so on to 7.
 * The depth of a trampoline address is in its bits 4 to 6: every point has eight stubs of 16 bytes.
 *
 * A slot belongs to one thread while it is in use, so a key is written by one thread at a time, and no lock is needed: an
 * entry is taken by cmpxchg on its key. Entries that nobody will give back (longjmp, exceptions, exited
 * threads) are taken over when their slot is claimed again. Therefore, and because a claim takes the first entry of its
 * bucket that is free or has its key, the entry that is valid for a key is always the first with that key.
 * A signal handler's own probed calls use other slots.
 *
 * A full bucket or a chain deeper than 8 is counted in the point's `nmissed`; the function then returns unprobed. What is
 * taken over is counted in the word behind it, as unwound.
 *
 * The table must be private memory of the process: a forked child returns through its copy.
 *
 * Unwinders (exceptions, backtraces) find a trampoline where they expect a function: unwind-table.ts has what they need.
 *
 * Not handled: code that copies stacks to other addresses or runs several stacks at the same addresses in turn.
 */
import { CodeWriter, type WrittenCode } from "../gate/code-writer.ts";
import { emitKeyClose, emitKeyOpen, type GateKey } from "../gate/gate-key.ts";
import type { Assembler, Label, Mem } from "../x86/assembler.ts";
import { R10, R11, RAX, RCX, RDX, type RegSet, regSet } from "../x86/registers.ts";

export const RETURN_ENTRY_BYTES = 16;
export const RETURN_KEY_OFFSET = 0;
export const RETURN_ADDRESS_OFFSET = 8;
const BUCKET_BYTES = 128;
const ENTRIES_PER_BUCKET = BUCKET_BYTES / RETURN_ENTRY_BYTES;

/** Deepest chain of tail calls that can be told apart. */
export const MAX_RETURN_DEPTH = 7;

/** The counter of returns that a point has missed is followed by that of calls that were unwound instead of returning. */
export const UNWOUND_BEHIND_MISSED = 8;

/** Stubs of one point: eight of 16 bytes. */
export const STUBS_BYTES = 128;

export interface ReturnTableSpec {
  /** 128-byte aligned private memory of `returnTableBytes(entries)` bytes, zeroed. */
  readonly at: bigint;
  /** A power of two, at least 8: how many functions may be entered and not yet left, at most. */
  readonly entries: number;
  /** Every stub of every point lies in this range, of all sessions that share a process; nothing else is returned to there. */
  readonly trampolines: { readonly start: bigint; readonly end: bigint };
  /** The part of it that has the stubs of this table; undefined: all of it. */
  readonly own?: { readonly start: bigint; readonly end: bigint };
  /** The counters are under this key. The table itself is not: unwinders of the application read it. */
  readonly key?: GateKey | undefined;
}

export function returnTableBytes(entries: number): number {
  return entries * RETURN_ENTRY_BYTES;
}

/** Smallest table that holds `maxActive` returns with room to spare against uneven buckets. */
export function returnTableEntries(maxActive: number): number {
  let entries = ENTRIES_PER_BUCKET;
  while (entries < maxActive * 2) entries *= 2;
  return entries;
}

/** Registers that the claim routine changes; it takes the slot in r10 and the point's stubs in r11. */
export const CLAIM_CLOBBERS: RegSet = regSet(RAX, RCX, RDX, R10, R11);
/** Registers that the find routine changes; it takes the key in r10 and gives the return address in r11. */
export const FIND_CLOBBERS: RegSet = regSet(RDX, R10, R11);
/** Return address of the call of either routine. */
export const CLAIM_STACK_BYTES = 8;

/** 2^64 divided by the golden ratio, odd: spreads equal distances (Knuth, volume 3, 6.4). */
export const HASH_FACTOR = 0x9e37_79b9_7f4a_7c15n;

/** The routines of one table. */
export interface ReturnRuntime extends WrittenCode {
  readonly claim: bigint;
  readonly find: bigint;
  /** For a walk of the stack: takes the key in r10 and gives the return address or 0 in r11; changes FIND_CLOBBERS. */
  readonly peek: bigint;
  readonly table: ReturnTableSpec;
}

export function emitReturnRuntime(at: bigint, table: ReturnTableSpec): ReturnRuntime {
  if (table.entries < ENTRIES_PER_BUCKET || (table.entries & (table.entries - 1)) !== 0)
    throw new Error(`emit return table: ${table.entries} entries are no power of two`);
  if (table.at % BigInt(BUCKET_BYTES) !== 0n)
    throw new Error(`emit return table: 0x${table.at.toString(16)} is not aligned`);
  const writer = new CodeWriter(at);
  const { asm } = writer;
  const claim = asm.here("claim");
  emitClaimRoutine(writer, table);
  asm.align(16, "int3");
  const find = asm.here("find");
  emitFindRoutine(writer, table);
  asm.align(16, "int3");
  const peek = asm.here("peek");
  emitPeekRoutine(writer, table);
  const written = writer.finish();
  return {
    ...written,
    claim: asm.addressOf(claim),
    find: asm.addressOf(find),
    peek: asm.addressOf(peek),
    table,
  };
}

/** rdx = the bucket of the key in r10. */
function emitBucket(writer: CodeWriter, table: ReturnTableSpec): void {
  const { asm } = writer;
  const buckets = table.entries / ENTRIES_PER_BUCKET;
  asm.mov(RDX, R10);
  asm.imul(RDX, { ripTo: writer.literal(HASH_FACTOR) });
  if (buckets > 1) {
    asm.shr(RDX, 64 - Math.log2(buckets));
    asm.shl(RDX, Math.log2(BUCKET_BYTES));
    asm.add(RDX, { ripTo: writer.literal(table.at) });
  } else {
    asm.mov(RDX, { ripTo: writer.literal(table.at) });
  }
}

/** r10 = key; goes to `hit` with rdx = its entry, and on behind this if there is none. */
export function emitSearch(writer: CodeWriter, table: ReturnTableSpec, hit: Label): void {
  const { asm } = writer;
  const look = asm.label("look");
  emitBucket(writer, table);
  asm.bind(look);
  asm.cmp({ base: RDX }, R10);
  asm.jcc("e", hit);
  asm.addImm(RDX, RETURN_ENTRY_BYTES);
  asm.testImm(RDX, BUCKET_BYTES - 1, 8);
  asm.jcc("ne", look);
}

/** r10 = slot, r11 = stubs of the point. */
function emitClaimRoutine(writer: CodeWriter, table: ReturnTableSpec): void {
  const { asm } = writer;
  const place = asm.label("place");
  const look = asm.label("look");
  const take = asm.label("take");
  const missed = asm.label("missed");
  const leftover = asm.label("leftover");
  const { start, end } = table.trampolines;

  writer.note("is there a trampoline in the slot already?");
  asm.mov(RCX, { base: R10 });
  asm.mov(RAX, RCX);
  asm.sub(RAX, { ripTo: writer.literal(start) });
  asm.cmp(RAX, { ripTo: writer.literal(end - start) });
  asm.jcc("ae", place);
  writer.note("yes: one deeper than that");
  asm.mov(RAX, RCX, 32);
  asm.shr(RAX, 4, 32);
  asm.andImm(RAX, MAX_RETURN_DEPTH, 32);
  asm.inc(RAX, 32);
  asm.cmpImm(RAX, MAX_RETURN_DEPTH, 32);
  asm.jcc("a", missed);
  asm.or(R10, RAX);
  asm.shl(RAX, 4, 32);
  asm.add(R11, RAX);
  asm.bind(place);
  writer.note("first entry of the bucket that is free or has this key");
  emitBucket(writer, table);
  asm.bind(look);
  asm.mov(RAX, { base: RDX });
  asm.cmp(RAX, R10);
  asm.jcc("e", leftover);
  asm.test(RAX, RAX);
  asm.jcc("e", take);
  asm.addImm(RDX, RETURN_ENTRY_BYTES);
  asm.testImm(RDX, BUCKET_BYTES - 1, 8);
  asm.jcc("ne", look);
  asm.bind(missed);
  writer.note("no room: count it and leave the return address alone");
  asm.andImm(R11, -STUBS_BYTES);
  asm.mov(R11, { base: R11, disp: -8 });
  emitCount(writer, table, { base: R11 });
  asm.ret();
  asm.bind(leftover);
  writer.note(
    "whoever had it will not return, by longjmp, or its thread has ended: it is taken over and counted",
  );
  emitReplace(asm);
  asm.andImm(R11, -STUBS_BYTES);
  asm.mov(R11, { base: R11, disp: -8 });
  emitCount(writer, table, { base: R11, disp: UNWOUND_BEHIND_MISSED });
  asm.ret();
  asm.bind(take);
  writer.note("free: take it, unless another thread was faster");
  asm.lock().cmpxchg({ base: RDX }, R10);
  asm.jcc("ne", look);
  writer.note("keep the return address, put the trampoline in its place");
  emitReplace(asm);
  asm.ret();
}

/** rdx = the entry, which is ours, rcx = return address, r10 = slot and depth, r11 = what to return to instead. */
function emitReplace(asm: Assembler): void {
  asm.mov({ base: RDX, disp: RETURN_ADDRESS_OFFSET }, RCX);
  asm.andImm(R10, -8);
  asm.mov({ base: R10 }, R11);
}

/** Adds one to a counter. Changes rax, rcx, rdx and flags. */
export function emitCount(writer: CodeWriter, { key }: ReturnTableSpec, counter: Mem): void {
  if (key !== undefined) emitKeyOpen(writer, key);
  writer.asm.lock().inc(counter);
  if (key !== undefined) emitKeyClose(writer, key);
}

/** r10 = key; r11 = the original return address; the entry becomes free. */
function emitFindRoutine(writer: CodeWriter, table: ReturnTableSpec): void {
  const { asm } = writer;
  const hit = asm.label("hit");
  writer.note("find the entry of this slot and depth");
  emitSearch(writer, table, hit);
  writer.note("nobody knows where to return to: stop here rather than anywhere");
  asm.ud2();
  asm.bind(hit);
  writer.note("take the return address, free the entry");
  asm.mov(R11, { base: RDX, disp: RETURN_ADDRESS_OFFSET });
  asm.movImm({ base: RDX, disp: RETURN_KEY_OFFSET }, 0);
  asm.ret();
}

/** r10 = key; r11 = the original return address, or 0 if there is none. */
function emitPeekRoutine(writer: CodeWriter, table: ReturnTableSpec): void {
  const { asm } = writer;
  const hit = asm.label("hit");
  writer.note("find the entry of this slot and depth, and leave it there");
  emitSearch(writer, table, hit);
  asm.zero(R11);
  asm.ret();
  asm.bind(hit);
  asm.mov(R11, { base: RDX, disp: RETURN_ADDRESS_OFFSET });
  asm.ret();
}

/** One entry in use. */
export interface ReturnEntry {
  readonly slot: bigint;
  readonly depth: number;
  readonly returnAddress: bigint;
}

/** Entries in use, in table order. Some may be stale: only a slot that holds a trampoline is hijacked. */
export function readReturnTable(bytes: Uint8Array): ReturnEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries: ReturnEntry[] = [];
  for (let at = 0; at + RETURN_ENTRY_BYTES <= bytes.length; at += RETURN_ENTRY_BYTES) {
    const key = view.getBigUint64(at + RETURN_KEY_OFFSET, true);
    if (key === 0n) continue;
    entries.push({
      slot: key & ~7n,
      depth: Number(key & 7n),
      returnAddress: view.getBigUint64(at + RETURN_ADDRESS_OFFSET, true),
    });
  }
  return entries;
}

/**
 * What belongs into each hijacked slot: the return address that was there before the first trampoline. `readWord` reads
 * the target's stack. A thread that is on its way through a trampoline needs its entry, so entries stay.
 */
export function returnsToRestore(
  entries: readonly ReturnEntry[],
  trampolines: ReturnTableSpec["trampolines"],
  readWord: (addr: bigint) => bigint | undefined,
): { readonly slot: bigint; readonly returnAddress: bigint }[] {
  const restores: { slot: bigint; returnAddress: bigint }[] = [];
  const seen = new Set<bigint>();
  for (const { slot, depth, returnAddress } of entries) {
    // Of several entries with one key the first is the valid one.
    if (depth !== 0 || seen.has(slot)) continue;
    seen.add(slot);
    const word = readWord(slot);
    if (word !== undefined && word >= trampolines.start && word < trampolines.end)
      restores.push({ slot, returnAddress });
  }
  return restores;
}

/**
 * Protection keys of a process (pkeys(7)): a number that its pages carry, and two bits in a register of each thread, PKRU, that
 * say whether the thread may touch such pages.
 *
 *     PKRU, 32 bits:  bit 2k      AD: no access to pages with key k
 *                     bit 2k + 1  WD: no writes (Intel SDM 3A, 4.6.2)
 *
 * What decides here: a key is allocated for the whole process, but the kernel sets only the bits of the thread that asks. The
 * others keep theirs: those of the initial value, 0x55555554 (all keys but 0 closed), unless the application has opened everything,
 * or used the key before and given it back. So every thread is looked at in the same stop, and who has the key open is closed. New
 * threads begin with what their parents have.
 *
 * PKRU is read and written as part of a thread's extended state (PTRACE_GETREGSET, NT_X86_XSTATE): component 9 of XSAVE's standard
 * format, whose place CPUID(0xd, 9).ebx says, and which counts only if bit 9 of XSTATE_BV is set (SDM 1, 13.4.2, 13.8.1). The
 * kernel does not take the write from Linux 5.14 up to 6.1, unless a stable update has brought the repair of 6.2 ("x86/fpu: Allow PKRU to
 * be (once again) written by ptrace"). So what was written is read back, and where it was not taken, the key is given back.
 *
 * Not handled: a signal handler that is at work while its thread is closed gives the interrupted code its old PKRU back when it
 * returns; and an application may open all keys at any later time.
 */
import { readFileSync } from "node:fs";
import type { RemoteCall } from "../target.ts";
import type { BorrowedThread } from "./borrowed-thread.ts";
import { errnoOfResult, SystemError } from "./libc.ts";
import { callNativeCode, NativeMemory } from "./native-code.ts";
import { readExtendedState, writeExtendedState } from "./ptrace.ts";

const SYS_PKEY_MPROTECT = 329;
const SYS_PKEY_ALLOC = 330;
const SYS_PKEY_FREE = 331;
const PKEY_DISABLE_ACCESS = 1n;

const PKRU_COMPONENT = 9;
/** Where XSAVE's header says which components are not in their initial state. */
const XSTATE_BV_OFFSET = 512;

/** Why there is no key. */
export type KeyRefusal =
  | { readonly kind: "no-hardware" }
  | { readonly kind: "not-switched-on" }
  /** The process has allocated all of its keys. */
  | { readonly kind: "none-left" }
  /** The kernel does not know the call, or a filter forbids it. `code` is the errno's name. */
  | { readonly kind: "call-failed"; readonly code: string }
  /** PKRU cannot be looked at. */
  | { readonly kind: "no-layout"; readonly why: string }
  | { readonly kind: "thread-open"; readonly tid: number };

export type KeyGrant =
  | { readonly kind: "granted"; readonly number: number }
  | { readonly kind: "refused"; readonly refusal: KeyRefusal };

export function describeKeyRefusal(refusal: KeyRefusal): string {
  switch (refusal.kind) {
    case "no-hardware":
      return "the processor has no protection keys";
    case "not-switched-on":
      return "the kernel has not switched protection keys on (nopku, or built without them)";
    case "none-left":
      return "the process has no protection key left (ENOSPC)";
    case "call-failed":
      return `the kernel gives the process no protection key: ${refusal.code}`;
    case "no-layout":
      return `the protection keys of its threads cannot be looked at: ${refusal.why}`;
    case "thread-open":
      return (
        `thread ${refusal.tid} has all protection keys open, and this kernel does not let a tracer close them ` +
        "(Linux 5.14 to 6.1 without later repairs)"
      );
    default:
      return refusal satisfies never;
  }
}

/** Whether processes of this machine can have keys: `flags` of /proc/cpuinfo has `pku` and, where the kernel uses it, `ospke`. */
export function findKeyObstacle(cpuInfo = readFileSync("/proc/cpuinfo", "latin1")): KeyRefusal | undefined {
  const flags = /^flags\s*:(.*)$/m.exec(cpuInfo)?.[1]?.trim().split(/\s+/) ?? [];
  if (flags.includes("ospke")) return undefined;
  return { kind: flags.includes("pku") ? "not-switched-on" : "no-hardware" };
}

/** Closed for reads and writes. */
export const isClosedIn = (pkru: number, key: number): boolean => ((pkru >>> (2 * key)) & 1) !== 0;

/** The same PKRU with one key closed as the kernel closes it at first: no access. */
export const withClosed = (pkru: number, key: number): number => (pkru | (1 << (2 * key))) >>> 0;

/** The state of one thread, as far as PKRU goes. `offset` as CPUID says. */
export function readPkruIn(state: Uint8Array, offset: number): number {
  return new DataView(state.buffer, state.byteOffset, state.byteLength).getUint32(offset, true);
}

/** Where XSTATE_BV's bit is not set, the kernel takes the initial state instead of what stands in the component: everything open. */
export function writePkruIn(state: Uint8Array, offset: number, pkru: number): void {
  const view = new DataView(state.buffer, state.byteOffset, state.byteLength);
  view.setUint32(offset, pkru, true);
  const inUse = view.getBigUint64(XSTATE_BV_OFFSET, true);
  view.setBigUint64(XSTATE_BV_OFFSET, inUse | (1n << BigInt(PKRU_COMPONENT)), true);
}

/**
 *     53                push rbx
 *     b8 0d 00 00 00    mov eax, 0xd
 *     b9 09 00 00 00    mov ecx, 9
 *     0f a2             cpuid
 *     89 d8             mov eax, ebx
 *     5b                pop rbx
 *     c3                ret
 */
const askOffset = Buffer.concat([
  Uint8Array.of(0x53, 0xb8, 0x0d, 0, 0, 0, 0xb9, PKRU_COMPONENT, 0, 0, 0),
  Uint8Array.of(0x0f, 0xa2, 0x89, 0xd8, 0x5b, 0xc3),
]);

let knownOffset: number | undefined;

/** Where PKRU lies in a thread's extended state. The processor must have it. */
export function pkruOffset(): number {
  if (knownOffset !== undefined) return knownOffset;
  using code = new NativeMemory(4096);
  code.bytes.set(askOffset);
  code.makeExecutable();
  knownOffset = Number(callNativeCode(code.at, 0n, 0n));
  return knownOffset;
}

/** PKRU of a stopped thread; undefined if its state has none. */
export function readPkru(tid: number): number | undefined {
  const offset = pkruOffset();
  const state = readExtendedState(tid);
  return offset === 0 || state.length < offset + 4 ? undefined : readPkruIn(state, offset);
}

/** Closes a key for a stopped thread, and says whether it is closed now. */
export function closeKey(tid: number, key: number): boolean {
  const offset = pkruOffset();
  const state = readExtendedState(tid);
  if (offset === 0 || state.length < offset + 4) return false;
  const pkru = readPkruIn(state, offset);
  if (isClosedIn(pkru, key)) return true;
  writePkruIn(state, offset, withClosed(pkru, key));
  writeExtendedState(tid, state);
  const now = readPkru(tid);
  return now !== undefined && isClosedIn(now, key);
}

/**
 * Allocates a key that all of these threads have closed; they stand. `record` learns its number before anything is done with it, and
 * 0 when it was given back.
 */
export function grantKey(
  borrow: <Result>(use: (thread: BorrowedThread) => Result) => Result,
  tids: readonly number[],
  record: (number: number) => void,
): KeyGrant {
  const grant = borrow((thread) => {
    const granted = allocateKeyBy(thread);
    if (granted.kind === "granted") record(granted.number);
    return granted;
  });
  if (grant.kind === "refused") return grant;
  const refusal = closeKeyOfAll(tids, grant.number);
  if (refusal === undefined) return grant;
  borrow((thread) => thread.call(freeKeyCall(grant.number)));
  record(0);
  return { kind: "refused", refusal };
}

/** Allocates a key, closed for the thread that is borrowed. */
function allocateKeyBy(thread: BorrowedThread): KeyGrant {
  const result = thread.call({
    name: "pkey_alloc",
    number: SYS_PKEY_ALLOC,
    args: [0n, PKEY_DISABLE_ACCESS],
  });
  const code = errnoOfResult(result);
  if (code === undefined) return { kind: "granted", number: Number(result) };
  return {
    kind: "refused",
    refusal: code === "ENOSPC" ? { kind: "none-left" } : { kind: "call-failed", code },
  };
}

/** Closes a key for all of these threads. Returns why that cannot be done for one of them. */
function closeKeyOfAll(tids: readonly number[], key: number): KeyRefusal | undefined {
  try {
    for (const tid of tids) if (!closeKey(tid, key)) return { kind: "thread-open", tid };
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return { kind: "no-layout", why: error.message };
  }
  return undefined;
}

export function freeKeyCall(key: number): RemoteCall {
  return { name: "pkey_free", number: SYS_PKEY_FREE, args: [BigInt(key)] };
}

/** `prot` as mprotect(2) takes it. Both ends of the range are borders of pages. */
export function protectWithKeyCall(
  { start, end }: { readonly start: bigint; readonly end: bigint },
  prot: number,
  key: number,
): RemoteCall {
  return {
    name: "pkey_mprotect",
    number: SYS_PKEY_MPROTECT,
    args: [start, end - start, BigInt(prot), BigInt(key)],
  };
}

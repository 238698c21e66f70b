/**
 * Code that runs while its own library blocks all signals: there an `int3` kills the process, since the kernel cannot
 * deliver the SIGTRAP to a handler.
 *
 * A C library blocks signals around the start and the end of a thread, fork and posix_spawn. It does so by the system call
 * itself, with constants: so those places are found in its code, and from each the control flow is followed to where the
 * signals are let in again. What is called on the way runs with blocked signals, too, and so does all that it calls. A new
 * thread begins with blocked signals: its function lets them in before it ever blocks any.
 *
 * What blocks SIGTRAP for longer is seen in the threads when probes are armed, and not meant here. Not followed: calls through
 * memory, masks that are no constants. Facts: rt_sigprocmask is system call 14, SIG_BLOCK 0, SIG_SETMASK 2.
 */
import type { FunctionCode } from "../x86/function-code.ts";
import type { ImageCode } from "../x86/regions.ts";

/** `mov eax, 14`. */
const NUMBER = Uint8Array.of(0xb8, 14, 0, 0, 0);
const SYSCALL = [0x0f, 0x05] as const;
/** Instructions before a system call among which its number and its first argument are looked for. */
const SETUP_INSNS = 16;

/**
 * So many calls are followed from where signals are blocked. Libraries do little there: threads come by in functions that are
 * three calls away, and what lies further is what they call when something is wrong.
 */
const MOST_DEPTH = 3;

type MaskChange = "block" | "let-in";

export class MaskedCode {
  readonly #code: ImageCode;
  /** Addresses of single instructions. */
  readonly #insns = new Set<bigint>();
  /** Starts of functions all of which is meant. */
  readonly #functions = new Set<bigint>();

  constructor(code: ImageCode) {
    this.#code = code;
    let called: bigint[] = [];
    for (const fn of functionsThatMask(code)) this.#follow(fn, called);
    for (let depth = 0; depth < MOST_DEPTH; depth++) {
      const next: bigint[] = [];
      for (const start of called) {
        const fn = code.functionAt(start);
        if (fn === undefined || this.#functions.has(fn.start) || neverReturns(fn)) continue;
        this.#functions.add(fn.start);
        for (let i = 0; i < fn.code.count; i++) {
          const to = leavesTo(fn, i);
          if (to !== undefined) next.push(to);
        }
      }
      called = next;
    }
  }

  has(at: bigint): boolean {
    if (this.#insns.has(at)) return true;
    const fn = this.#functions.size === 0 ? undefined : this.#code.functionAt(at);
    return fn !== undefined && this.#functions.has(fn.start);
  }

  #follow(fn: FunctionCode, called: bigint[]): void {
    const { code } = fn;
    const changes = new Map<number, MaskChange>();
    for (let i = 0; i < code.count; i++) {
      const change = maskChange(fn, i);
      if (change !== undefined) changes.set(i, change);
    }
    const mark = (indices: Iterable<number>) => {
      for (const i of indices) {
        this.#insns.add(fn.start + BigInt(code.offsets[i]!));
        const to = leavesTo(fn, i);
        if (to !== undefined) called.push(to);
      }
    };
    for (const [i, change] of changes) if (change === "block") mark(walk(fn, i + 1, changes).passed);
    const fromStart = walk(fn, 0, changes);
    if (fromStart.met.has("let-in")) mark(fromStart.passed);
  }
}

const known = new WeakMap<ImageCode, MaskedCode>();

/** Looked for once for an image, when its first `int3` is planned. */
export function maskedCodeOf(code: ImageCode): MaskedCode {
  let masked = known.get(code);
  if (masked === undefined) {
    masked = new MaskedCode(code);
    known.set(code, masked);
  }
  return masked;
}

function functionsThatMask(code: ImageCode): FunctionCode[] {
  const found = new Map<bigint, FunctionCode>();
  for (const { start, bytes } of code.image.text) {
    for (let at = bytes.indexOf(NUMBER[0]!); at >= 0; at = bytes.indexOf(NUMBER[0]!, at + 1)) {
      if (!NUMBER.every((byte, i) => bytes[at + i] === byte)) continue;
      const fn = code.functionAt(start + BigInt(at));
      if (fn !== undefined) found.set(fn.start, fn);
    }
  }
  return [...found.values()];
}

/** What a system call does to the mask; undefined for every other instruction. */
function maskChange({ code }: FunctionCode, index: number): MaskChange | undefined {
  if (code.flowAt(index) !== "syscall") return undefined;
  const own = code.bytesAt(index);
  if (own.length !== 2 || own.some((byte, i) => byte !== SYSCALL[i])) return undefined;
  let isMask: boolean | undefined;
  let how: number | undefined;
  for (let i = index - 1; i >= Math.max(0, index - SETUP_INSNS); i--) {
    const bytes = code.bytesAt(i);
    if (isMask === undefined && bytes[0] === 0xb8 && bytes.length === 5)
      isMask = bytes[1] === NUMBER[1] && bytes[2] === 0;
    if (how === undefined && bytes[0] === 0xbf && bytes.length === 5) how = bytes[1]!;
    if (
      how === undefined &&
      bytes.length === 2 &&
      (bytes[0] === 0x31 || bytes[0] === 0x33) &&
      bytes[1] === 0xff
    )
      how = 0;
    if (code.flowAt(i) === "syscall") break;
  }
  if (isMask !== true) return undefined;
  return how === 0 ? "block" : how === 2 ? "let-in" : undefined;
}

/** Instructions that can be reached without a change of the mask, and the changes that are met. */
function walk(
  fn: FunctionCode,
  from: number,
  changes: ReadonlyMap<number, MaskChange>,
): { readonly passed: ReadonlySet<number>; readonly met: ReadonlySet<MaskChange> } {
  const { code } = fn;
  const passed = new Set<number>();
  const met = new Set<MaskChange>();
  const left = [from];
  for (let i = left.pop(); i !== undefined; i = left.pop()) {
    if (i >= code.count || passed.has(i)) continue;
    passed.add(i);
    const change = changes.get(i);
    if (change !== undefined) {
      met.add(change);
      if (change === "let-in") continue;
      // Blocked already: the walk from there is another one.
      if (i !== from) continue;
    }
    if (code.fallsThrough(i)) left.push(i + 1);
    if (code.hasTarget(i) && code.flowAt(i) !== "call") {
      const target = code.indexAt(code.targets[i]!);
      if (target >= 0) left.push(target);
    }
  }
  return { passed, met };
}

/** The way to abort is taken by a process that ends anyway; much of a library lies on it. */
function neverReturns({ code }: FunctionCode): boolean {
  for (let i = 0; i < code.count; i++) {
    const flow = code.flowAt(i);
    if (flow === "return" || flow === "jump-indirect" || flow === "syscall") return false;
    if (
      (flow === "jump" || flow === "branch") &&
      (code.targets[i]! < 0 || code.targets[i]! >= code.bytes.length)
    )
      return false;
  }
  return true;
}

/** Where a call or a jump leads that leaves the function. */
function leavesTo({ code }: FunctionCode, index: number): bigint | undefined {
  if (!code.hasTarget(index)) return undefined;
  const to = code.targets[index]!;
  if (to >= 0 && to < code.bytes.length) return undefined;
  return code.start + BigInt(to);
}

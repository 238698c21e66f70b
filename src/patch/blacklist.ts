/**
 * Where no probe may be, and why: as kprobes has a blacklist, but for reasons of user space.
 *
 * Our programs call nothing of the target and take no lock of anybody, so what the kernel has to forbid for fear of
 * recursion (locks, allocation, the probe's own way) is harmless here: the loader's locks, too. What is left:
 *
 *   - code whose bytes are read by others. Unwinders know the return from a signal by its instructions (libgcc and
 *     libunwind compare them), and the kernel compares the four bytes before the abort handler of a restartable
 *     sequence;
 *   - restartable sequences: a thread that leaves [start, start + post_commit_offset) is no longer restarted when it is
 *     preempted (rseq(2)), so a detour would take the sequence's atomicity away;
 *   - code that is entered with a convention of its own. What is live at a function's entry is found by the psABI:
 *     registers that no argument is passed in are free. Lazy binding, TLS descriptors, retpolines, mcount and the growing of
 *     split stacks run between the caller and its callee, where all of them are in use, and partly without a return
 *     address on top of the stack;
 *   - code that our own code uses: ours, and the vDSO, whose clock programs ask. A probe of the clock would run in
 *     every program that is probed with it. The vsyscall page is the kernel's, and cannot be written at all.
 *
 * Facts: psABI 3.2.3; `struct rseq_cs` in include/uapi/linux/rseq.h; sigreturn is system call 15.
 */
import { type CodeImage, textBytes } from "../x86/code-image.ts";

export type BlacklistReason =
  | "signal-return"
  | "restartable-sequence"
  | "rseq-signature"
  | "own-convention"
  | "own-code"
  | "vdso"
  | "vsyscall";

export interface BlacklistEntry {
  readonly reason: BlacklistReason;
  /** What it is about: a function, or where a sequence begins. */
  readonly what: string;
}

interface Range {
  readonly start: bigint;
  readonly end: bigint;
}

/** What is to be known of an image. All addresses are run-time addresses. */
export interface BlacklistFacts {
  readonly image: CodeImage;
  /** The table of restartable sequences (section `__rseq_cs`), if the image has one. */
  readonly rseqTable: Range | undefined;
}

/** Functions by name; a trailing `*` stands for any rest. Versions (`@...`) are no part of the name. */
const ownConventions: readonly string[] = [
  // The loader's, between a call through the procedure linkage table and its function.
  "_dl_runtime_resolve*",
  "_dl_runtime_profile*",
  "_dl_tlsdesc_*",
  // Called before a function's own code, by compilers' instrumentation.
  "mcount",
  "_mcount",
  "__fentry__",
  "__morestack*",
  // In place of an indirect jump or a return.
  "__x86_indirect_thunk*",
  "__x86_return_thunk*",
  "__llvm_retpoline*",
];

/** `mov rax, 15; syscall`, `mov eax, 15; syscall`: what a handler returns to. */
const signalReturns: readonly Uint8Array[] = [
  Uint8Array.of(0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05),
  Uint8Array.of(0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05),
];
const LONGEST_SIGNAL_RETURN = 9;

/** `struct rseq_cs`: version u32, flags u32, start u64, length u64, abort handler u64. */
const RSEQ_CS_BYTES = 32;
const RSEQ_START = 8;
const RSEQ_LENGTH = 16;
const RSEQ_ABORT = 24;
/** x86-64 places its signature as the operand of `ud1 edi, [rip + signature]`: 3 bytes of instruction before it. */
const RSEQ_SIGNATURE_BYTES = 7n;

export class Blacklist {
  readonly #image: CodeImage;
  readonly #facts: BlacklistFacts;
  #sequences: readonly (Range & { readonly entry: BlacklistEntry })[] | undefined;

  constructor(facts: BlacklistFacts) {
    this.#image = facts.image;
    this.#facts = facts;
  }

  /** Why the bytes at `at` may not be changed. */
  find(at: bigint, lenBytes: number): BlacklistEntry | undefined {
    const end = at + BigInt(lenBytes);
    return this.#findConvention(at) ?? this.#findSignalReturn(at, end) ?? this.#findSequence(at, end);
  }

  #findConvention(at: bigint): BlacklistEntry | undefined {
    const name = this.#image.findFunction(at)?.name?.replace(/@.*/, "");
    if (name === undefined || !isOwnConvention(name)) return undefined;
    return { reason: "own-convention", what: name };
  }

  #findSignalReturn(at: bigint, end: bigint): BlacklistEntry | undefined {
    // Byte by byte: near the edge of the text less is readable.
    for (let start = at - BigInt(LONGEST_SIGNAL_RETURN - 1); start < end; start++)
      for (const code of signalReturns) {
        const codeEnd = start + BigInt(code.length);
        if (codeEnd <= at) continue;
        const found = textBytes(this.#image, start, codeEnd);
        if (found?.every((byte, i) => byte === code[i]) === true)
          return { reason: "signal-return", what: `0x${start.toString(16)}` };
      }
    return undefined;
  }

  #findSequence(at: bigint, end: bigint): BlacklistEntry | undefined {
    this.#sequences ??= readSequences(this.#facts);
    return this.#sequences.find((range) => at < range.end && end > range.start)?.entry;
  }
}

/** Whether a function of this name is entered otherwise than the psABI says. */
export function isOwnConvention(name: string): boolean {
  return ownConventions.some((pattern) =>
    pattern.endsWith("*") ? name.startsWith(pattern.slice(0, -1)) : name === pattern,
  );
}

function readSequences({ image, rseqTable }: BlacklistFacts): (Range & { readonly entry: BlacklistEntry })[] {
  const ranges: (Range & { readonly entry: BlacklistEntry })[] = [];
  if (rseqTable === undefined) return ranges;
  for (let at = rseqTable.start; at + BigInt(RSEQ_CS_BYTES) <= rseqTable.end; at += BigInt(RSEQ_CS_BYTES)) {
    const bytes = image.readData(at, RSEQ_CS_BYTES);
    if (bytes === undefined) continue;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const start = view.getBigUint64(RSEQ_START, true);
    const length = view.getBigUint64(RSEQ_LENGTH, true);
    const abort = view.getBigUint64(RSEQ_ABORT, true);
    if (start === 0n || length === 0n) continue;
    const what = `0x${start.toString(16)}`;
    ranges.push(
      { start, end: start + length, entry: { reason: "restartable-sequence", what } },
      { start: abort - RSEQ_SIGNATURE_BYTES, end: abort, entry: { reason: "rseq-signature", what } },
    );
  }
  return ranges;
}

/** Images that a process has without a file, as the list of mappings and debuggers call them. */
export function findBlacklistedImage(name: string): BlacklistEntry | undefined {
  if (name === "[vdso]" || /^linux-(vdso|gate)\.so\.\d+$/.test(name)) return { reason: "vdso", what: name };
  if (name === "[vsyscall]") return { reason: "vsyscall", what: name };
  return undefined;
}

/** Why an address is none to be probed though it is in no image's text: what `mappings` say of it. */
export function findBlacklistedMapping(
  at: bigint,
  mappings: readonly (Range & { readonly path: string })[],
  ownCode: readonly Range[],
): BlacklistEntry | undefined {
  const holds = (range: Range) => at >= range.start && at < range.end;
  if (ownCode.some(holds)) return { reason: "own-code", what: `0x${at.toString(16)}` };
  const mapping = mappings.find(holds);
  return mapping === undefined ? undefined : findBlacklistedImage(mapping.path);
}

/** One line, lower case, without the site. */
export function blacklistText({ reason, what }: BlacklistEntry): string {
  switch (reason) {
    case "signal-return":
      return `the code at ${what} returns from signal handlers, and unwinders know it by its bytes`;
    case "restartable-sequence":
      return `it is in the restartable sequence at ${what}, which a detour would leave before its end`;
    case "rseq-signature":
      return `the kernel compares the bytes before the abort handler of the restartable sequence at ${what}`;
    case "own-convention":
      return `${what} is entered between a call and its function, where registers are in use that a function's entry may change`;
    case "own-code":
      return `${what} is code of a tracer`;
    case "vdso":
      return `programs themselves call the clock of ${what}`;
    case "vsyscall":
      return `${what} is a page of the kernel`;
    default:
      return reason satisfies never;
  }
}

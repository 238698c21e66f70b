/**
 * Where the fault handler of a target tells the tracer what has happened, and is told what to do: memory that both sides share.
 *
 *     head, 64 bytes    0  posts u32: counted up with every event
 *                       4  lost u32: events for which no entry was left
 *                       8  waits u32: 1 while the tracer gives answers; else nobody waits for one
 *                      12  heartbeat u32: the tracer counts it up
 *                      16  process id u32: whom the answer `report` is for
 *                      20  copies u32: 1 once an answer was `report`
 *                      32  by signal - 4, u32 each: whether the application's handler for one time has had its call
 *     entry, 64 bytes    0  state u32: 0 free, 1 being filled, 2 posted
 *                        4  answer u32: 0 none yet, 1 kill, 2 skip, 3 report
 *                        8  rip        16  return address of the program's call; 0: no program
 *                       24  where the main function of the program was, if not at rip
 *                       32  address    40  thread id u32    44  process id u32    48  argument of the answer
 *                       56  count u32  60  signal u8   61  error code of the page fault u8   62  si_code s16
 *
 * An entry stands for all events of one instruction (and one call, and one way to it); it is never free again. It is taken by one
 * exchange, so nobody waits for anybody: two threads that are quick may take two for the same instruction.
 *
 * The memory belongs to the target. The tracer reads nothing from it that it relies on.
 */
import type { CodeWriter } from "../gate/code-writer.ts";
import type { Label } from "../x86/assembler.ts";
import { R11, R12, R13, R14, RAX, RBX, RCX, RDI, RDX, RSI } from "../x86/registers.ts";
import { SI_CODE, UC_ERR } from "./signal-action.ts";

export const MAILBOX_ENTRIES = 127;
export const ENTRY_BYTES = 64;
export const MAILBOX_BYTES = (1 + MAILBOX_ENTRIES) * ENTRY_BYTES;

/** Offsets in the head. */
export const mailboxHead = {
  posts: 0,
  lost: 4,
  waits: 8,
  heartbeat: 12,
  pid: 16,
  copies: 20,
  resets: 32,
} as const;
/** Offsets in an entry. */
export const mailboxEntry = {
  state: 0,
  answer: 4,
  rip: 8,
  call: 16,
  main: 24,
  address: 32,
  tid: 40,
  pid: 44,
  argument: 48,
  count: 56,
  signal: 60,
  error: 61,
  code: 62,
} as const;

export const answers = { kill: 1, skip: 2, report: 3 } as const;
export type Answer = keyof typeof answers;

const CLAIMED = 1;
const POSTED = 2;
const SI_ADDR = 16;
const SYS_GETPID = 39;
const SYS_GETTID = 186;

/**
 * A routine. In: rsi, rdx = siginfo and ucontext, r12 = rip, r13 = return address of the program's call, r14 = place in the
 * main function. Out: rbx = the entry that stands for it; 0: none is left. Changes rax, rcx, r11.
 */
export function emitPost(writer: CodeWriter, mailbox: bigint): Label {
  const { asm } = writer;
  const [look, compare] = [asm.label("look"), asm.label("compare")];
  const [next, found] = [asm.label("next"), asm.label("found")];
  const entry = (disp: number) => ({ base: RBX, disp });
  writer.note("post an event");
  const post = asm.here("post");
  asm.movabs(RBX, mailbox + BigInt(ENTRY_BYTES));
  asm.movImm(RCX, MAILBOX_ENTRIES, 32);
  asm.bind(look);
  asm.mov(RAX, entry(mailboxEntry.state), 32);
  asm.cmpImm(RAX, POSTED, 32);
  asm.jcc("e", compare);
  asm.test(RAX, RAX, 32);
  asm.jcc("ne", next);
  asm.movImm(R11, CLAIMED, 32);
  asm.lock().cmpxchg(entry(mailboxEntry.state), R11, 32);
  asm.jcc("ne", next);
  asm.mov(entry(mailboxEntry.rip), R12);
  asm.mov(entry(mailboxEntry.call), R13);
  asm.mov(entry(mailboxEntry.main), R14);
  asm.mov(RAX, { base: RSI, disp: SI_ADDR });
  asm.mov(entry(mailboxEntry.address), RAX);
  asm.mov(entry(mailboxEntry.signal), RDI, 8);
  asm.mov(RAX, { base: RDX, disp: UC_ERR });
  asm.mov(entry(mailboxEntry.error), RAX, 8);
  asm.mov(RAX, { base: RSI, disp: SI_CODE }, 32);
  asm.mov(entry(mailboxEntry.code), RAX, 16);
  for (const [number, word] of [
    [SYS_GETTID, mailboxEntry.tid],
    [SYS_GETPID, mailboxEntry.pid],
  ] as const) {
    asm.movImm(RAX, number, 32);
    asm.syscall();
    asm.mov(entry(word), RAX, 32);
  }
  asm.movImm(entry(mailboxEntry.state), POSTED, 32);
  asm.jmp(found);
  asm.bind(compare);
  asm.cmp(entry(mailboxEntry.rip), R12);
  asm.jcc("ne", next);
  asm.cmp(entry(mailboxEntry.call), R13);
  asm.jcc("ne", next);
  asm.cmp(entry(mailboxEntry.main), R14);
  asm.jcc("e", found);
  asm.bind(next);
  asm.addImm(RBX, ENTRY_BYTES);
  asm.dec(RCX, 32);
  asm.jcc("ne", look);
  asm.zero(RBX);
  asm.movabs(RCX, mailbox);
  asm.lock().inc({ base: RCX, disp: mailboxHead.lost }, 32);
  asm.ret();
  asm.bind(found);
  asm.lock().inc(entry(mailboxEntry.count), 32);
  asm.movabs(RCX, mailbox);
  asm.lock().inc({ base: RCX, disp: mailboxHead.posts }, 32);
  asm.ret();
  return post;
}

/** What the tracer has found in an entry. Nothing of it is believed to be true. */
export interface Posted {
  readonly index: number;
  readonly rip: bigint;
  readonly call: bigint;
  readonly main: bigint;
  readonly address: bigint;
  readonly tid: number;
  readonly pid: number;
  readonly count: number;
  readonly signal: number;
  readonly error: number;
  readonly code: number;
  readonly isAnswered: boolean;
}

/** The tracer's side. */
export class Mailbox {
  readonly #words: Uint32Array;
  readonly #bytes: Uint8Array;

  /** `memory`: `MAILBOX_BYTES` of zeroes. */
  constructor(memory: Uint8Array) {
    this.#bytes = memory.subarray(0, MAILBOX_BYTES);
    this.#words = new Uint32Array(memory.buffer, memory.byteOffset, MAILBOX_BYTES / 4);
  }

  get posts(): number {
    return Atomics.load(this.#words, mailboxHead.posts / 4);
  }

  get lost(): number {
    return Atomics.load(this.#words, mailboxHead.lost / 4);
  }

  /** Whether threads wait for answers, and for which process, by its own number, `report` is. */
  setAnswering(answers: boolean, pid: number): void {
    Atomics.store(this.#words, mailboxHead.pid / 4, pid);
    Atomics.store(this.#words, mailboxHead.waits / 4, answers ? 1 : 0);
  }

  beat(): void {
    Atomics.add(this.#words, mailboxHead.heartbeat / 4, 1);
  }

  read(): Posted[] {
    const posted: Posted[] = [];
    for (let index = 0; index < MAILBOX_ENTRIES; index++) {
      const base = this.#base(index);
      if (Atomics.load(this.#words, base / 4) !== POSTED) continue;
      const view = new DataView(this.#bytes.slice(base, base + ENTRY_BYTES).buffer);
      posted.push({
        index,
        rip: view.getBigUint64(mailboxEntry.rip, true),
        call: view.getBigUint64(mailboxEntry.call, true),
        main: view.getBigUint64(mailboxEntry.main, true),
        address: view.getBigUint64(mailboxEntry.address, true),
        tid: view.getUint32(mailboxEntry.tid, true),
        pid: view.getUint32(mailboxEntry.pid, true),
        count: view.getUint32(mailboxEntry.count, true),
        signal: view.getUint8(mailboxEntry.signal),
        error: view.getUint8(mailboxEntry.error),
        code: view.getInt16(mailboxEntry.code, true),
        isAnswered: view.getUint32(mailboxEntry.answer, true) !== 0,
      });
    }
    return posted;
  }

  /** Lets the threads go on that wait at an entry. Returns the word that they sleep on, as bytes. */
  answer(index: number, answer: Answer, argument: bigint): Uint8Array {
    const base = this.#base(index);
    new DataView(this.#bytes.buffer, this.#bytes.byteOffset).setBigUint64(
      base + mailboxEntry.argument,
      argument,
      true,
    );
    if (answer === "report") Atomics.store(this.#words, mailboxHead.copies / 4, 1);
    Atomics.store(this.#words, (base + mailboxEntry.answer) / 4, answers[answer]);
    return this.#answerWord(index);
  }

  /** Nobody waits any more. Returns the words that threads sleep on. */
  release(): Uint8Array[] {
    Atomics.store(this.#words, mailboxHead.waits / 4, 0);
    return this.read()
      .filter(({ isAnswered }) => !isAnswered)
      .map(({ index }) => this.#answerWord(index));
  }

  #answerWord(index: number): Uint8Array {
    const at = this.#base(index) + mailboxEntry.answer;
    return this.#bytes.subarray(at, at + 4);
  }

  #base(index: number): number {
    return (1 + index) * ENTRY_BYTES;
  }
}

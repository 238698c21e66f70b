/**
 * What the fault handler of a target has posted: which probe a fault belongs to, which hits were lost by it, and that the probe is
 * disarmed. What the mailbox says is looked up in what the session knows; nothing else in it is relied on.
 *
 * A program that has raised a fault is wrong wherever it runs, so its probe is disarmed at all its places; other probes there
 * stay. Hits that are on their way when it is disarmed may fault as well, and are counted.
 */

import type { Answer, Mailbox, Posted } from "../../patch/mailbox.ts";
import { ArmError } from "../../probe/probe-set.ts";
import { SessionError } from "../session-error.ts";
import type { AccessAnswers } from "./access-answers.ts";
import type { AttachedProbe, BuiltPoint } from "./point-builder.ts";
import type { PlacedProgram, Runnable } from "./program-compiler.ts";

/** A program of the session was abandoned, since it has raised a fault. The first time at an instruction. */
export interface ProgramFault {
  readonly kind: "fault";
  readonly pid: number;
  /** As the process itself numbers it. */
  readonly tid: number;
  readonly signal: number;
  /** si_code of the signal. */
  readonly code: number;
  /** Where the fault was: of a SIGSEGV or SIGBUS what was accessed. */
  readonly address: bigint;
  readonly ip: bigint;
  /** Undefined: it is not known which one it was. */
  readonly program: string | undefined;
  /** The account of the probe. */
  readonly account: number | undefined;
  /** The point whose detour has called the program; where a call leads to a trampoline, one of those that it serves. */
  readonly point: bigint | undefined;
  /** Why the probe could not be disarmed everywhere. */
  readonly stays: string | undefined;
}

/** The application has touched memory under our key. The first time at an instruction. */
export interface StrayAccess {
  readonly kind: "access";
  readonly pid: number;
  readonly tid: number;
  readonly signal: number;
  readonly code: number;
  readonly address: bigint;
  readonly ip: bigint;
  readonly access: "read" | "write" | "execute";
  readonly key: number;
  /** What lies there. */
  readonly memory: string | undefined;
  readonly outcome: Answer;
  /** Why it is not what was asked for. */
  readonly why: string | undefined;
}

export type Violation = ProgramFault | StrayAccess;

/** How often it has come to each access, and what there was no room to tell. */
export interface ViolationTotals {
  readonly pid: number;
  readonly accesses: readonly { readonly ip: bigint; readonly count: number }[];
  /** Faults and accesses of which nothing else is known. */
  readonly unknown: number;
}

/** An abandoned hit of a probe. */
export interface LostHits {
  readonly account: number;
  readonly hits: bigint;
  /** They were counted neither as passed nor as filtered before. */
  readonly isEarly: boolean;
}

export interface ViolationsPort {
  readonly mailbox: Mailbox;
  readonly pid: number;
  builtPoints(): readonly BuiltPoint[];
  findProgram(entry: bigint): PlacedProgram | undefined;
  programs(): Iterable<PlacedProgram>;
  /** Undefined: no memory is under a key. */
  readonly accesses: AccessAnswers | undefined;
  /** What of ours lies at an address. */
  memoryAt(address: bigint): string | undefined;
  /** Wakes the threads that sleep on a word. */
  wake(word: Uint8Array): void;
  disable(matches: (probe: AttachedProbe) => boolean): Promise<void>;
}

/** Bits of a page fault's error code (Intel SDM 3A, 4.7). */
const WRITES = 2;
const FETCHES = 16;

/** What the tracer has made of an entry. */
interface Known {
  readonly lost: readonly Omit<LostHits, "hits">[];
  count: number;
}

/** Counters of the mailbox wrap around; more events than this at once are nonsense of the target's. */
const MOST_AT_ONCE = 1 << 30;

export class Violations {
  readonly #port: ViolationsPort;
  readonly #known = new Map<number, Known>();
  readonly #lost: LostHits[] = [];
  readonly #fresh: Violation[] = [];
  readonly #announced = new Set<string>();
  #posts = 0;

  constructor(port: ViolationsPort) {
    this.#port = port;
  }

  /** From now on threads wait for what is to become of their accesses. `ownPid`: as the process itself numbers it. */
  begin(ownPid: number): void {
    const { accesses, mailbox } = this.#port;
    if (accesses !== undefined) mailbox.setAnswering(accesses.choice !== "kill", ownPid);
  }

  /** Nobody waits for a tracer that is leaving. */
  end(): void {
    for (const word of this.#port.mailbox.release()) this.#port.wake(word);
  }

  /** Whether there is something new. To be asked often: it is also the sign of life. */
  get isPending(): boolean {
    const { mailbox } = this.#port;
    mailbox.beat();
    return mailbox.posts !== this.#posts;
  }

  /** Hits that were abandoned since the last time. */
  takeLost(): readonly LostHits[] {
    return this.#lost.splice(0);
  }

  /** What is to be reported since the last time. */
  takeFresh(): readonly Violation[] {
    return this.#fresh.splice(0);
  }

  /** All there was. As numbers they are the process's word. */
  get totals(): ViolationTotals {
    const { mailbox, pid } = this.#port;
    const counts = new Map<bigint, number>();
    for (const { rip, call, count } of mailbox.read())
      if (call === 0n) counts.set(rip, (counts.get(rip) ?? 0) + count);
    return { pid, accesses: [...counts].map(([ip, count]) => ({ ip, count })), unknown: mailbox.lost };
  }

  /** Deals with what is new. `disarms`: the probes are still there. */
  async look(disarms: boolean): Promise<void> {
    const { mailbox } = this.#port;
    this.#posts = mailbox.posts;
    // First what needs no waiting: somebody else may look meanwhile.
    const due: (() => Promise<void>)[] = [];
    for (const posted of mailbox.read()) {
      const { accesses } = this.#port;
      if (posted.call === 0n && accesses !== undefined) {
        if (this.#known.has(posted.index)) continue;
        this.#known.set(posted.index, { lost: [], count: 0 });
        due.push(() => this.#answer(posted, accesses));
        continue;
      }
      let known = this.#known.get(posted.index);
      if (known === undefined) {
        const point = this.#pointAt(posted.call);
        const culprit = this.#findCulprit(posted, point);
        known = { lost: culprit === undefined ? [] : lostBy(posted, culprit, point), count: 0 };
        this.#known.set(posted.index, known);
        due.push(() => this.#announce(posted, culprit, point, disarms));
      }
      const hits = (posted.count - known.count) >>> 0;
      known.count = posted.count;
      if (hits === 0 || hits > MOST_AT_ONCE) continue;
      for (const lost of known.lost) this.#lost.push({ ...lost, hits: BigInt(hits) });
    }
    for (const act of due) await act();
  }

  async #answer(posted: Posted, accesses: AccessAnswers): Promise<void> {
    const { index, rip, tid, signal, code, address, error } = posted;
    const { answer, argument, why } = await accesses.answerTo(rip);
    this.#port.wake(this.#port.mailbox.answer(index, answer, argument));
    if (this.#announced.has(`${rip}`)) return;
    this.#announced.add(`${rip}`);
    this.#fresh.push({
      kind: "access",
      pid: this.#port.pid,
      tid,
      signal,
      code,
      address,
      ip: rip,
      access: (error & FETCHES) !== 0 ? "execute" : (error & WRITES) !== 0 ? "write" : "read",
      key: accesses.key.number,
      memory: this.#port.memoryAt(address),
      outcome: answer,
      why,
    });
  }

  /** Disarms the probe and keeps what is to be said of it. Two threads that were quick have an entry each: once is enough. */
  async #announce(
    posted: Posted,
    culprit: PlacedProgram | undefined,
    point: BuiltPoint | undefined,
    disarms: boolean,
  ): Promise<void> {
    const key = `${posted.rip} ${posted.call} ${posted.main}`;
    if (this.#announced.has(key)) return;
    this.#announced.add(key);
    const run = culprit?.run;
    const stays = run === undefined || !disarms ? undefined : await this.#disarm(run);
    this.#fresh.push({ ...factsOf(posted, culprit, point), pid: this.#port.pid, stays });
  }

  /** What the call before the return address has called; else whose code the fault was in. */
  #findCulprit({ call, rip }: Posted, point: BuiltPoint | undefined): PlacedProgram | undefined {
    const isIn = ({ unit }: PlacedProgram) => rip >= unit.at && rip < unit.at + BigInt(unit.bytes.length);
    const code = point && codeWith(point, call);
    const entry = code && calledBy(code, Number(call - code.at));
    const called = entry === undefined ? undefined : this.#port.findProgram(entry);
    return called ?? [...this.#port.programs()].find(isIn);
  }

  #pointAt(call: bigint): BuiltPoint | undefined {
    return this.#port.builtPoints().find((point) => codeWith(point, call) !== undefined);
  }

  async #disarm(run: Runnable): Promise<string | undefined> {
    if (run.kind !== "program") return "it belongs to the session itself";
    try {
      await this.#port.disable(
        (probe) =>
          probe.run.kind === "program" &&
          probe.run.bundle === run.bundle &&
          probe.run.index === run.index &&
          probe.run.account === run.account,
      );
      return undefined;
    } catch (error) {
      // Another tracer's probes are at the same place, or the process is ending.
      if (error instanceof ArmError || error instanceof SessionError) return error.message;
      throw error;
    }
  }
}

type Code = Pick<BuiltPoint["detour"], "at" | "bytes">;

/** The code of a point that an address is in, or right behind. */
function codeWith({ detour, trampoline }: BuiltPoint, at: bigint): Code | undefined {
  const all: Code[] = trampoline === undefined ? [detour] : [detour, trampoline];
  return all.find((code) => at > code.at && at <= code.at + BigInt(code.bytes.length));
}

/** Where a call leads that ends at this offset: `call rel32`, e8, or `call [rip + disp32]`, ff 15. */
function calledBy({ at, bytes }: Code, behind: number): bigint | undefined {
  if (behind < 6) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const to = behind + view.getInt32(behind - 4, true);
  if (bytes[behind - 6] === 0xff && bytes[behind - 5] === 0x15)
    return to >= 0 && to + 8 <= bytes.length ? view.getBigUint64(to, true) : undefined;
  return bytes[behind - 5] === 0xe8 ? at + BigInt(to) : undefined;
}

/** The hit of the program itself, and those of the programs that would have run behind it. */
function lostBy(
  { rip, main }: Posted,
  culprit: PlacedProgram,
  point: BuiltPoint | undefined,
): Omit<LostHits, "hits">[] {
  const accountOf = (run: Runnable) => (run.kind === "program" ? run.account : undefined);
  const isInMain = rip >= culprit.entry && rip < culprit.unit.at + BigInt(culprit.bytes.length);
  const isEarly = !culprit.isCounted(isInMain || main === 0n ? rip : main);
  const runs = (point?.programs ?? []).map(({ run }) => run);
  const first = runs.indexOf(culprit.run);
  const skipped = first < 0 ? [] : runs.slice(first + 1);
  return [
    { account: accountOf(culprit.run), isEarly },
    ...skipped.map((run) => ({ account: accountOf(run), isEarly: true })),
  ].flatMap(({ account, isEarly }) => (account === undefined ? [] : [{ account, isEarly }]));
}

function factsOf(
  { tid, signal, code, address, rip }: Posted,
  culprit: PlacedProgram | undefined,
  point: BuiltPoint | undefined,
): Omit<ProgramFault, "pid" | "stays"> {
  const run = culprit?.run;
  return {
    kind: "fault",
    tid,
    signal,
    code,
    address,
    ip: rip,
    program: culprit?.name,
    account: run?.kind === "program" ? run.account : undefined,
    point: point?.planned.plan.at,
  };
}

/**
 * What happens in a target when a program raises a fault: the handler of SIGSEGV, SIGBUS, SIGILL and SIGFPE, which knows the code
 * of all programs before anything leads to them.
 *
 * When its table is full a handler with a larger one is installed in front of it, and the old one stays until the session
 * leaves: threads may be in it. As with SIGTRAP a session that came later keeps our handler as the one before its own; then it
 * is told there, not by the kernel.
 *
 * Limit: a handler that the application installs after ours takes the place of ours, as the kernel has it. Whenever programs are
 * added that is noticed, and a new handler of ours gets in front of it. Our old one stays where it is, since the
 * application may have kept its address and hand on to it what is not its own.
 */
import type { PrivateStacks } from "../../gate/index.ts";
import {
  type CodeRange,
  decodeSignalAction,
  emitFaultHandler,
  encodeRanges,
  encodeSignalAction,
  FAULT_SIGNALS,
  RANGE_BYTES,
  SIGNAL_ACTION_BYTES,
} from "../../patch/index.ts";
import { changedSignals, type Journal } from "../../probe/journal.ts";
import { setSignalAction } from "../../probe/restoration.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange, RemoteCall } from "../../target/target.ts";
import { askSignalActions, findChained, readOtherJournals } from "../leave/restore-process.ts";
import { CODE_NAME_PREFIX, type CodeNames } from "../names/code-names.ts";
import type { CodeSpaces } from "./code-space.ts";
import type { PlacedProgram } from "./program-compiler.ts";
import { PAGE } from "./session-memory.ts";

export interface FaultHandlingInput {
  readonly target: ProcessTarget;
  readonly journal: Journal;
  readonly journalMemory: AddrRange;
  /** Memory that system calls of the target may answer to. */
  readonly scratch: bigint;
  readonly spaces: CodeSpaces;
  /** Memory that is shared with the tracer (patch/mailbox.ts). */
  readonly mailbox: bigint;
  readonly names: CodeNames;
}

interface Installed {
  readonly handler: bigint;
  readonly tableAt: bigint;
  readonly capacity: number;
  /** Where the handler keeps the action of each signal that was there before. */
  readonly previousAt: ReadonlyMap<number, bigint>;
}

/** Room for programs in a table: at least, and times as many as there are. */
const LEAST_PROGRAMS = 64;
const GROWTH = 2;

export class FaultHandling {
  readonly #input: FaultHandlingInput;
  readonly #known = new Set<bigint>();
  #ranges: CodeRange[] = [];
  #installed: Installed | undefined;

  constructor(input: FaultHandlingInput) {
    this.#input = input;
  }

  /** Makes the handler know all programs, before anything leads to one that is new. `near`: an image that has code near it. */
  async follow(
    programs: Iterable<PlacedProgram>,
    stacks: PrivateStacks,
    near: { readonly name: string; readonly range: AddrRange },
  ): Promise<void> {
    const fresh: CodeRange[] = [];
    for (const { unit } of programs) {
      if (this.#known.has(unit.at)) continue;
      this.#known.add(unit.at);
      fresh.push({ start: unit.at, end: unit.at + BigInt(unit.bytes.length) });
    }
    if (fresh.length === 0) return;
    const first = this.#ranges.length;
    this.#ranges = [...this.#ranges, ...fresh];
    const known = this.#installed;
    if (known === undefined || this.#ranges.length > known.capacity || (await this.#isReplaced(known)))
      await this.#install(stacks, near);
    else await this.#input.target.write(known.tableAt + BigInt(first * RANGE_BYTES), encodeRanges(fresh));
  }

  /** Whether the application has installed a handler of its own since. */
  async #isReplaced({ handler }: Installed): Promise<boolean> {
    const { target, scratch } = this.#input;
    const current = await askSignalActions(target, FAULT_SIGNALS, scratch);
    const others = await this.#others();
    const ours = new Set([handler, ...others.flatMap(changedSignals).map((action) => action.handler)]);
    return current.some((action) => !ours.has(decodeSignalAction(action).handler));
  }

  async #install(
    stacks: PrivateStacks,
    near: { readonly name: string; readonly range: AddrRange },
  ): Promise<void> {
    const { target, spaces, journal, names, mailbox, scratch } = this.#input;
    const capacity = Math.max(LEAST_PROGRAMS, this.#ranges.length * GROWTH);
    const [space] = await spaces.provide([
      { name: near.name, image: near.range, lenBytes: capacity * RANGE_BYTES + PAGE },
    ]);
    const old = this.#installed;
    const current = await askSignalActions(target, FAULT_SIGNALS, scratch);
    const others = old === undefined ? [] : await this.#others();
    const places: { readonly signal: number; readonly chained: bigint | undefined }[] = [];
    const previous = new Map<number, Uint8Array>();
    for (const [index, signal] of FAULT_SIGNALS.entries()) {
      const now = current[index]!;
      const chained = old && (await findChained(target, signal, old.handler, others));
      places.push({ signal, chained: chained?.at });
      // In the place of the old one, unless the application has put something before it.
      const isBefore = decodeSignalAction(now).handler === old?.handler || chained !== undefined;
      previous.set(
        signal,
        isBefore ? await target.read(old!.previousAt.get(signal)!, SIGNAL_ACTION_BYTES) : now,
      );
    }
    const handler = emitFaultHandler({
      at: space!.next,
      stacks,
      mailbox,
      previous: new Map([...previous].map(([signal, bytes]) => [signal, decodeSignalAction(bytes)])),
      programs: this.#ranges,
      capacity,
    });
    space!.take(handler.bytes.length);
    await target.write(handler.at, handler.bytes);
    const entry = handler.actions.get(FAULT_SIGNALS[0]!)!.handler;
    const previousAt = new Map(
      FAULT_SIGNALS.map((signal) => [signal, handler.at + BigInt(handler.previousOffset(signal))]),
    );
    for (const [signal, bytes] of previous)
      journal.addSignal({
        signal,
        previous: bytes,
        handler: entry,
        previousAt: previousAt.get(signal)!,
      });
    this.#installed = {
      handler: entry,
      tableAt: handler.at + BigInt(handler.tableOffset),
      capacity,
      previousAt,
    };
    const calls: RemoteCall[] = [];
    for (const { signal, chained } of places) {
      const action = encodeSignalAction(handler.actions.get(signal)!);
      if (chained === undefined) calls.push(setSignalAction(signal, action));
      else await target.write(chained, action);
    }
    const failed = (await target.call(calls)).find((result) => result !== 0n);
    if (failed !== undefined)
      throw new Error(`install the fault handler in process ${target.pid}: error ${failed}`);
    names.add({ ...handler, name: `${CODE_NAME_PREFIX}fault-handler` });
  }

  async #others() {
    const { target, journalMemory } = this.#input;
    return await readOtherJournals(target, journalMemory);
  }
}

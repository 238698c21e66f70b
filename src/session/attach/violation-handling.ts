/**
 * What a target needs so that faults of programs, and accesses to memory under our key, end neither the process nor the session:
 * the handler in the target, the memory that both sides share, and the tracer's side of it.
 */
import type { PrivateStacks, StackRoutines } from "../../gate/index.ts";
import { MAILBOX_BYTES, Mailbox } from "../../patch/mailbox.ts";
import type { Journal } from "../../probe/journal.ts";
import { futexWakeAll } from "../../target/process/libc.ts";
import { findMapping, readMaps, readStatus } from "../../target/process/proc-fs.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import type { CodeNames } from "../names/code-names.ts";
import type { ViolationChoice } from "../options.ts";
import { AccessAnswers } from "./access-answers.ts";
import type { CodeSpaces } from "./code-space.ts";
import { FaultHandling } from "./fault-handling.ts";
import type { LivePoints } from "./live-points.ts";
import type { BuiltPoint, PlannedPoint, PointBuilder } from "./point-builder.ts";
import { Violations } from "./violations.ts";

export interface ViolationHandlingInput {
  readonly target: ProcessTarget;
  readonly journal: Journal;
  readonly journalMemory: AddrRange;
  /** Where the mailbox lies in the target, and the same memory in the tracer; undefined: nobody writes into it. */
  readonly mailbox: { readonly at: bigint; readonly memory: Uint8Array } | undefined;
  /** Memory that system calls of the target may answer to. */
  readonly scratch: bigint;
  readonly spaces: CodeSpaces;
  readonly names: CodeNames;
  readonly choice: ViolationChoice;
  /** The private stacks; undefined: a fault of a program is the application's. */
  readonly stacks: Omit<PrivateStacks, "routines"> | undefined;
  /** What of ours lies at an address, for people. */
  readonly memoryAt: (address: bigint) => string | undefined;
  readonly builtPoints: () => readonly BuiltPoint[];
  readonly builder: () => Pick<PointBuilder, "programs" | "findProgram">;
  readonly livePoints: () => Pick<LivePoints, "disableWhere">;
}

export class ViolationHandling {
  readonly violations: Violations;
  readonly #input: ViolationHandlingInput;
  readonly #faults: FaultHandling | undefined;
  /** Once something is armed that uses them. */
  #stacks: PrivateStacks | undefined;

  constructor(input: ViolationHandlingInput) {
    this.#input = input;
    const { target, mailbox, stacks, spaces, names, choice } = input;
    const key = stacks?.key;
    if (stacks !== undefined && mailbox !== undefined)
      this.#faults = new FaultHandling({ ...input, mailbox: mailbox.at });
    const accesses =
      key === undefined
        ? undefined
        : new AccessAnswers({
            choice,
            key,
            target,
            spaces,
            names,
            stacks: () => this.#stacks,
            mappingAt: (ip) => {
              const map = findMapping(readMaps(target.pid), ip);
              return map && { name: map.path, range: { start: map.start, end: map.end } };
            },
          });
    this.violations = new Violations({
      mailbox: new Mailbox(mailbox?.memory ?? new Uint8Array(MAILBOX_BYTES)),
      pid: target.pid,
      accesses,
      builtPoints: input.builtPoints,
      findProgram: (entry) => input.builder().findProgram(entry),
      programs: () => input.builder().programs,
      memoryAt: input.memoryAt,
      wake: futexWakeAll,
      disable: (matches) => input.livePoints().disableWhere(matches),
    });
    this.violations.begin(readStatus(target.pid).nsPids.at(-1) ?? target.pid);
  }

  /** All that points need is in place, and nothing leads to it yet. */
  async placed(near: PlannedPoint["image"], routines: StackRoutines | undefined): Promise<void> {
    const { stacks, builder } = this.#input;
    if (stacks === undefined || routines === undefined) return;
    this.#stacks = { ...stacks, routines };
    await this.#faults?.follow(builder().programs, this.#stacks, near);
  }
}

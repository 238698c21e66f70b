/** One process of a session, and what is done to it in the face of its ending at any moment. */
import { isEnding } from "../target/process/address-space.ts";
import { readProcLink } from "../target/process/proc-fs.ts";
import type { ProcessTarget } from "../target/process/tracer.ts";
import type { Attachment } from "./attach/attachment.ts";
import type { AttachRequest, ResolvedProbes } from "./attach/probe-resolution.ts";
import { changeSemaphores } from "./attach/semaphores.ts";
import type { Witness } from "./leave/proof.ts";
import { SessionError } from "./session-error.ts";

export interface Member {
  readonly target: ProcessTarget;
  readonly resolved: ResolvedProbes;
  readonly attachment: Attachment;
  /** Attach points whose images were not mapped when the process was attached to. */
  readonly pending: readonly AttachRequest[];
  /** Of those, the ones whose images have come since. */
  readonly met: Set<AttachRequest>;
  /** Whether what it loads and unloads matters. */
  readonly followsLoads: boolean;
  /** When to look at what it has loaded, if it cannot say. */
  nextLookMs: number | undefined;
  /** Counters of static probes that have been raised. */
  readonly raised: Set<bigint>;
  /** Whether other tracers are kept away since it was attached to. */
  isLocked: boolean;
  /** What there was before the first change, where that is to be proved in the end. */
  readonly witness: Witness | undefined;
}

/** The file of the program that it runs, for people. */
export function programOf(pid: number): string {
  try {
    return readProcLink(pid, "exe");
  } catch {
    return "another program";
  }
}

/** Lets other tracers at the process again. */
export async function unlock(member: Member): Promise<void> {
  if (!member.isLocked) return;
  member.isLocked = false;
  await member.target.unlock();
}

export async function raise({ target, raised }: Member, semaphores: readonly bigint[]): Promise<void> {
  const fresh = semaphores.filter((at) => !raised.has(at));
  await changeSemaphores(target, fresh, 1);
  for (const at of fresh) raised.add(at);
}

/** What fails because the process ends fails with a message that says so. */
export async function orEnded<Result>(
  operation: string,
  pid: number,
  act: () => Promise<Result>,
): Promise<Result> {
  try {
    return await act();
  } catch (error) {
    throw isEnding(pid) ? endedMeanwhile(operation, pid) : error;
  }
}

/** What fails because the process ends, or has become another program, needs not be done. */
export async function unlessGone(
  { target, attachment }: Pick<Member, "target" | "attachment">,
  act: () => Promise<void>,
): Promise<void> {
  try {
    await act();
  } catch (error) {
    if (!attachment.isReplaced() && !isEnding(target.pid)) throw error;
  }
}

export function endedMeanwhile(operation: string, pid: number): SessionError {
  return new SessionError("target-gone", {
    operation,
    object: `process ${pid}`,
    reason: "it has ended meanwhile",
  });
}

/** How many points that programs run at are armed in which way. */
export function countMechanisms(attachment: Attachment): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { mechanism, isIdle } of attachment.probes.points)
    if (!isIdle) counts.set(mechanism, (counts.get(mechanism) ?? 0) + 1);
  return counts;
}

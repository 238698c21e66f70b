/**
 * Children that a target has forked since it was attached to: they carry copies of the probes, go on counting into the maps
 * that they share with their parent, and are put back after it.
 */
import type { ProcessTarget, Tracer } from "../../target/process/tracer.ts";
import type { Attachment } from "../attach/attachment.ts";
import { changeSemaphores } from "../attach/semaphores.ts";
import type { DetachProof, ProveTarget } from "./proof.ts";
import type { RestoreReport } from "./restore-process.ts";

/** A process that a session has left. */
export interface LeftTarget {
  readonly pid: number;
  /** Undefined: the process had ended, or runs another program now. */
  readonly report: RestoreReport | undefined;
  readonly mechanisms: ReadonlyMap<string, number>;
  /** Why it could not be put back. */
  readonly failure?: string;
  /** Present if it was asked for, and the process was put back. */
  readonly proof?: DetachProof | undefined;
}

/**
 * Puts back all children of a target, those of children too. The target must be back already: then every child that is forked
 * from now on comes from a child that is found here, and looking again until there are no more finds them all.
 */
export async function leaveHeirs(
  tracer: Tracer,
  attachment: Attachment,
  raised: ReadonlySet<bigint>,
  prove: ProveTarget | undefined,
): Promise<LeftTarget[]> {
  const left = new Map<number, LeftTarget>();
  for (;;) {
    const heirs = attachment.findHeirs().filter((pid) => !left.has(pid));
    if (heirs.length === 0) return [...left.values()];
    for (const pid of heirs) left.set(pid, await leaveHeir(tracer, attachment, pid, raised, prove));
  }
}

async function leaveHeir(
  tracer: Tracer,
  attachment: Attachment,
  pid: number,
  raised: ReadonlySet<bigint>,
  prove: ProveTarget | undefined,
): Promise<LeftTarget> {
  const mechanisms = new Map<string, number>();
  let heir: ProcessTarget | undefined;
  try {
    heir = await tracer.open(pid);
    await changeSemaphores(heir, raised, -1);
    const report = await attachment.restoreHeir(heir, prove !== undefined);
    return { pid, report, mechanisms, proof: await prove?.(heir, report) };
  } catch (error) {
    // It has ended, or become another program, while it was being asked.
    const isGone = !attachment.findHeirs().includes(pid);
    const failure = error instanceof Error ? error.message : String(error);
    return { pid, report: undefined, mechanisms, ...(isGone ? {} : { failure }) };
  } finally {
    await heir?.close();
  }
}

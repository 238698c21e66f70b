/** Proofs at the end of a run: where the results go, with the reasons of those that do not hold on standard error. */

import type { OutputFormat, SessionIo } from "../options.ts";
import type { Targets } from "../targets.ts";
import type { LeftTarget } from "./heirs.ts";
import type { DescribeAddress, DetachProof } from "./proof.ts";
import { printNoProof, printProof } from "./proof-print.ts";

/** Returns whether all proofs hold. */
export function reportProofs(
  left: readonly LeftTarget[],
  targets: Pick<Targets, "describe">,
  format: OutputFormat,
  io: SessionIo,
): boolean {
  const describe = (at: bigint) => targets.describe(at);
  let holds = true;
  for (const { pid, proof, failure } of left) {
    if (failure !== undefined) holds = false;
    else if (proof === undefined) io.out.write(printNoProof(pid, format));
    else if (!reportProof(proof, format, describe, io)) holds = false;
  }
  return holds;
}

/** Returns whether the proof holds. */
export function reportProof(
  proof: DetachProof,
  format: OutputFormat,
  describe: DescribeAddress,
  io: SessionIo,
): boolean {
  io.out.write(printProof(proof, format, describe));
  for (const reason of proof.reasons)
    io.err.write(`trapline: process ${proof.pid} is not as before: ${reason}\n`);
  return proof.holds;
}

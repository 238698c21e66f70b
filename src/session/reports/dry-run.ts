/** `--dry-run`: everything up to the plan, printed; nothing is touched. */
import { printProgram } from "../../bpf/text.ts";
import { explainSite } from "../../patch/index.ts";
import { checkAttachable } from "../../target/process/attach-check.ts";
import { ProcessImages } from "../../target/process/images.ts";
import { CodeCache, findOverriders, ProbeNames, resolveProbes } from "../attach/probe-resolution.ts";
import { describeReturn, findReturnObstacle } from "../attach/return-ways.ts";
import { lookAtHeldPlaces } from "../leave/other-sessions.ts";
import type { SessionIo, TraceOptions } from "../options.ts";
import type { RunPrograms } from "../run.ts";

/** Prints programs and, for each process, the plan of every site. Returns 1 if something could not be probed. */
export async function printPlan(
  options: Pick<TraceOptions, "pids" | "mechanism" | "returns">,
  io: SessionIo,
  { bundle, proofs, requests }: RunPrograms,
): Promise<number> {
  bundle.programs.forEach((program, index) => {
    const proof = proofs[index]!;
    io.out.write(
      `program ${program.name}: ${program.insns.length} instructions, proved in ${proof.visited} steps\n`,
    );
    for (const line of printProgram(program.insns).trimEnd().split("\n")) io.out.write(`  ${line}\n`);
  });
  let code = 0;
  for (const pid of options.pids) {
    checkAttachable(pid);
    using images = ProcessImages.open(pid);
    const { points, problems, skipped } = resolveProbes(images, requests, {
      mechanism: options.mechanism,
      names: new ProbeNames(),
      codes: new CodeCache(),
      armed: [],
      others: await lookAtHeldPlaces(pid),
      returns: options.returns,
      returnObstacle: findReturnObstacle(pid),
      overriders: findOverriders(proofs),
    });
    io.out.write(`process ${pid}: ${points.length} sites\n`);
    const print = (at: bigint) => images.symbolize(at).text;
    for (const { plan, probes, returns } of points) {
      const lines = explainSite(plan, undefined, undefined, print);
      for (const line of lines) io.out.write(`  ${line}\n`);
      if (returns !== undefined) io.out.write(`    ${describeReturn(returns, print)}\n`);
      for (const { when, run } of probes)
        if (run.kind === "program") io.out.write(`    ${when}: ${bundle.programs[run.index]!.name}\n`);
    }
    for (const { probe, reason } of skipped) io.out.write(`  left out, by ${probe}: ${reason}\n`);
    for (const { probe, reason, hint } of problems) {
      code = 1;
      io.err.write(`trapline: probe: ${probe}: ${reason}\n${hint === undefined ? "" : `hint: ${hint}\n`}`);
    }
  }
  return code;
}

/** The cost of a hit is measured, on the machine that the test runs on. */
import { expect, it } from "vitest";
import { verifyProgram } from "../../bpf/index.ts";
import { compileScript } from "../../lang/index.ts";
import { measureHitCosts } from "./hit-cost.ts";

it("a trap costs more than a program, and a program that sends more than one that counts", () => {
  const text = 'uprobe:a:f { @ = count(); } uprobe:a:f { printf("%d %s\\n", pid, comm); }';
  const result = compileScript(text, { accounts: true });
  if (result.kind === "errors") throw new Error(result.diagnostics[0]?.message);
  const { bundle } = result.script;
  const proofs = bundle.programs.map((program) => {
    const verdict = verifyProgram(program, bundle.maps);
    if (verdict.kind === "rejected") throw new Error(verdict.message);
    return verdict.proof;
  });
  const { trapNs, programNs } = measureHitCosts(bundle, proofs);
  if (process.env.TRAPLINE_SHOW === "1") console.log(trapNs, programNs);
  expect(programNs).toHaveLength(bundle.programs.length);
  for (const ns of programNs) expect(ns).toBeGreaterThan(0);
  expect(programNs[1]).toBeGreaterThan(programNs[0]!);
  expect(trapNs).toBeGreaterThan(programNs[0]! * 10);
});

/**
 * `trapline explain`: what would be done to a site and why, with the code that would be put there. The same planning and
 * the same emission as for a trace, into memory that does not exist: nothing is touched.
 */
import { verifyProgram } from "../../bpf/verifier/index.ts";
import { compileScript, printDiagnostics } from "../../lang/index.ts";
import {
  codeLines,
  evictedBy,
  explainSite,
  hexBytes,
  patchOf,
  printCodeLines,
  type Route,
  type RoutePatch,
  refusalText,
  type SitePlan,
} from "../../patch/index.ts";
import type { HeldSite } from "../../patch/plan.ts";
import { Journal, journalBytes } from "../../probe/journal.ts";
import type { PointHook } from "../../probe/probe-set.ts";
import { checkAttachable } from "../../target/process/attach-check.ts";
import { ProcessImages } from "../../target/process/images.ts";
import { readMaps } from "../../target/process/proc-fs.ts";
import { findKeyObstacle } from "../../target/process/protection-keys.ts";
import { decodeBlock, textOf } from "../../x86/decode.ts";
import { CodeSpaces } from "../attach/code-space.ts";
import { type GateImage, mayFindAlternate } from "../attach/gate-level.ts";
import { gatesIn } from "../attach/obstacles.ts";
import { type BuiltPoint, PointBuilder, type PointMemory } from "../attach/point-builder.ts";
import { CodeCache, ProbeNames, resolveProbes } from "../attach/probe-resolution.ts";
import { ProgramCompiler } from "../attach/program-compiler.ts";
import { describeReturn, findReturnObstacle, type ReturnRole } from "../attach/return-ways.ts";
import { lookAtHeldPlaces } from "../leave/other-sessions.ts";
import type { ExplainOptions, GateLevel, SessionIo } from "../options.ts";
import { SessionError } from "../session-error.ts";
import { userRequests } from "../trace.ts";

/** Where the shared memory would be: any address serves to show the code. */
const EXAMPLE_MAPS_AT = 0x7e00_0000_0000n;
const EXAMPLE_PRIVATE_AT = 0x7e00_1000_0000n;
const EXAMPLE_STACKS_AT = 0x7e00_2000_0000n;
const EXAMPLE_KEY = 1;
const MOST_POINTS = 64;

export async function explain(options: ExplainOptions, io: SessionIo): Promise<number> {
  checkAttachable(options.pid);
  const compiled = compileScript(`${options.probe} { @ = count(); }`, { fileName: "probe" });
  if (compiled.kind === "errors") {
    io.err.write(printDiagnostics(compiled.diagnostics));
    return 1;
  }
  const { script } = compiled;
  const proofs = script.bundle.programs.map((program) => {
    const verdict = verifyProgram(program, script.bundle.maps);
    if (verdict.kind === "rejected") throw new Error(`the counting program is rejected: ${verdict.message}`);
    return verdict.proof;
  });
  using images = ProcessImages.open(options.pid);
  const requests = userRequests(script);
  const { points, problems, skipped } = resolveProbes(images, requests, {
    mechanism: options.mechanism,
    names: new ProbeNames(),
    codes: new CodeCache(),
    armed: [],
    others: await lookAtHeldPlaces(options.pid),
    returns: options.returns,
    returnObstacle: findReturnObstacle(options.pid),
  });
  const [problem] = problems;
  if (problem !== undefined)
    throw new SessionError(
      "cannot-probe",
      { operation: "explain", object: problem.probe, reason: problem.reason },
      problem.hint,
    );

  if (points.length === 0 && skipped.length === 0)
    io.err.write(`${options.probe}: it never returns, so there is nothing to change\n`);
  const gates = gatesIn(images, { gate: options.gate, requests, proofs });
  const { level } = gates.others[0]?.gate ?? gates.process;
  const journal = new Journal(new Uint8Array(journalBytes(MOST_POINTS)), MOST_POINTS, {
    tracerPid: 0,
    tracerStart: 0n,
    targetPid: options.pid,
    sharedBytes: 0,
  });
  const compiler = new ProgramCompiler({
    bundle: script.bundle,
    proofs,
    env: {
      mapAddr: (index) => EXAMPLE_MAPS_AT + BigInt(index) * 4096n,
      cpu: "rdpid",
      clockGettime: images.findVdsoFunction("__vdso_clock_gettime"),
      tidOffset: undefined,
      pidCache: EXAMPLE_PRIVATE_AT,
    },
    mayAbandon: false,
  });
  const nowhere = {
    write: async () => {},
    createCodeWhereFree: async (ranges: readonly unknown[]) => ranges.map(() => true),
  };
  const spaces = new CodeSpaces(nowhere, journal, () => readMaps(options.pid));
  const builder = new PointBuilder(nowhere, spaces, compiler, {
    tableAt: EXAMPLE_PRIVATE_AT + 4096n,
    entries: 8192,
    missedAt: () => EXAMPLE_MAPS_AT,
    stacks: level === "none" ? undefined : exampleStacks(level, images.program),
    key: level === "strict" && findKeyObstacle() === undefined ? { number: EXAMPLE_KEY } : undefined,
  });
  const { built, refused } = await builder.build(points.slice(0, MOST_POINTS));
  const print = (at: bigint) => images.symbolize(at).text;
  for (const point of built) writePoint(point, options, io, print);
  for (const { planned, refusal } of refused)
    io.out.write(`site 0x${planned.plan.at.toString(16)}: refused: ${refusalText(refusal, print)}\n`);
  for (const { probe, reason } of skipped) io.out.write(`left out, by ${probe}: ${reason}\n`);
  if (points.length > MOST_POINTS) io.out.write(`and ${points.length - MOST_POINTS} more sites\n`);
  return 0;
}

/** Private stacks as they would be in a process that runs. */
const exampleStacks = (level: GateLevel, program: GateImage | undefined): PointMemory["stacks"] => ({
  base: EXAMPLE_STACKS_AT,
  levelOf: () => level,
  findsAlternate: (of) => mayFindAlternate(of, program),
  threadIn: () => "fs:0",
  recursedAt: () => EXAMPLE_MAPS_AT,
});

const hex = (at: bigint): string => `0x${at.toString(16)}`;

function routeData(route: Route, patch: RoutePatch): object {
  return {
    tactic: route.tactic,
    leads_to: hex(patch.leadsTo),
    landings: patch.landings.map(({ at }) => hex(at)),
    kept: route.tactic === "pun" ? hexBytes(route.kept) : "",
    evicted: (evictedBy(route)?.insns ?? []).map((insn) => textOf(insn)),
    beside: patch.sides.map(({ kind, at, oldBytes, newBytes }) => ({
      kind,
      at: hex(at),
      before: hexBytes(oldBytes),
      after: hexBytes(newBytes),
    })),
  };
}

function returnData(returns: ReturnRole, print: (addr: bigint) => string): object {
  if (returns.kind === "stack")
    return { by: "stack", reason: returns.refusal.reason, text: refusalText(returns.refusal, print) };
  return { by: "exit", of: print(returns.of), exit: returns.exit };
}

function heldData({ tracer, mechanism }: HeldSite, { slot, oldBytes, newBytes }: PointHook): object {
  return { tracer, mechanism, at: hex(slot), before: hexBytes(oldBytes), after: hexBytes(newBytes) };
}

/** What comes behind the programs of a detour. */
function onward({ held }: SitePlan): string {
  if (held === undefined) return " -> displaced instructions";
  return held.mechanism === "call"
    ? ` -> trampoline of process ${held.tracer} ${hex(held.call!.trampoline)}`
    : ` -> detour of process ${held.tracer} ${hex(held.slot)}, displaced instructions`;
}

function writePoint(
  point: BuiltPoint,
  options: ExplainOptions,
  io: SessionIo,
  print: (at: bigint) => string,
): void {
  const { plan, detour, trampoline, route } = point;
  const { returns } = point.planned;
  const { hook } = point.code;
  const patch = route?.patch ?? patchOf(plan, plan.mechanism, detour.entry);
  if (options.format === "json") {
    const data = {
      site: `0x${plan.at.toString(16)}`,
      place: print(plan.at),
      mechanism: plan.mechanism,
      before: hexBytes(plan.oldBytes),
      // Where another tracer's jump or trap is, the text stays, and its detour's slot is written.
      ...(hook === undefined || hook.slot === plan.region.start
        ? { after: hexBytes(patch instanceof Uint8Array ? patch : patch.siteBytes) }
        : {}),
      ...(plan.held === undefined || hook === undefined ? {} : { held: heldData(plan.held, hook) }),
      ...(plan.route === undefined || route === undefined
        ? {}
        : { route: routeData(plan.route, route.patch) }),
      refused: plan.refused.map(({ mechanism, refusal }) => ({
        mechanism,
        reason: refusal.reason,
        text: refusalText(refusal, print),
      })),
      ...(returns === undefined ? {} : { returns: returnData(returns, print) }),
      displaced: plan.region.insns.map((insn) => textOf(insn)),
      detour: codeLines(detour).map(({ addr, bytes, text, note }) => ({
        at: `0x${addr.toString(16)}`,
        bytes: hexBytes(bytes),
        text,
        note,
      })),
    };
    io.out.write(`${JSON.stringify({ type: "site", data })}\n`);
    return;
  }
  for (const line of explainSite(plan, detour, patch, print)) io.out.write(`${line}\n`);
  if (returns !== undefined) io.out.write(`  ${describeReturn(returns, print)}\n`);
  for (const program of point.programs) {
    io.out.write(`  program ${program.name} at 0x${program.entry.toString(16)}\n`);
    for (const insn of decodeBlock(program.entry, program.bytes).insns())
      io.out.write(`    ${insn.addr.toString(16)}  ${hexBytes(insn.bytes).padEnd(29)}  ${textOf(insn)}\n`);
  }
  if (trampoline !== undefined) {
    io.out.write("  the function returns through\n");
    for (const line of printCodeLines(codeLines(trampoline))) io.out.write(`    ${line}\n`);
  }
  if (route?.evicted !== undefined) {
    const { at, bytes, parts } = route.evicted;
    const notes = parts.map((part) => ({ offset: part.offset, isData: part.kind === "constant", text: "" }));
    io.out.write("  what made way runs at\n");
    for (const line of printCodeLines(codeLines({ at, bytes, notes }))) io.out.write(`    ${line}\n`);
  }
  const ways = route === undefined ? [] : [route.patch.leadsTo];
  const steps = ways.filter((at) => at !== detour.entry).map((at) => ` -> ${hex(at)}`);
  const code = plan.mechanism === "call" ? "trampoline" : "detour";
  io.out.write(`  chain: ${print(plan.at)}${steps.join("")} -> ${code} 0x${detour.entry.toString(16)}`);
  for (const program of point.programs) io.out.write(` -> ${program.name} 0x${program.entry.toString(16)}`);
  const next = plan.region.start + BigInt(plan.region.lenBytes);
  const displaced = plan.mechanism === "call" ? "" : onward(plan);
  io.out.write(`${displaced} -> 0x${next.toString(16)}\n`);
}

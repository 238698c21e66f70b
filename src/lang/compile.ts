/** Text to programs: reads, analyses and generates; errors are collected on the way. */
import type { ProgramSpec } from "../bpf/index.ts";
import { analyseScript } from "./analyser.ts";
import type { ProbeNode } from "./ast.ts";
import { CountedHits } from "./codegen/counted-hits.ts";
import { ScriptPlan } from "./codegen/plan.ts";
import { generateProgram } from "./codegen/program-generator.ts";
import { type Diagnostic, DiagnosticList } from "./diagnostics.ts";
import { messages } from "./messages.ts";
import { parseScript } from "./parser.ts";
import type { Script, ScriptProbe } from "./script.ts";
import { SourceText } from "./source.ts";

/** BPF_MAXINSNS of a privileged program. */
const MAX_INSNS = 1_000_000;
/** MAX_BPF_STACK. */
const MAX_STACK_BYTES = 512;

export interface CompileOptions {
  /** Shown in diagnostics; "stdin" as in bpftrace by default. */
  readonly fileName?: string;
  /** The values of `$1`, `$2`, .... */
  readonly params?: readonly string[];
  /** What `elapsed` counts from, in the clock of `nsecs`. */
  readonly startNs?: bigint;
  /** Copies of an aggregated value, a power of two; 8 by default. */
  readonly shards?: number;
  /** Most bytes of a string with its end mark; 64 by default. */
  readonly strLen?: number;
  /** Entries of a map with keys; 4096 by default. */
  readonly maxMapKeys?: number;
  /** Memory for the records of the ring buffer; 4 MiB by default. */
  readonly ringBytes?: number;
  /** Most bytes of one string of join(); 128 by default. */
  readonly joinArgBytes?: number;
  /**
   * Programs of probes count what becomes of their hits (bpf/accounts.ts), in the map `Script.accountMap`, which is to be
   * another one for each attach point; false by default.
   */
  readonly accounts?: boolean;
}

export type CompileResult =
  /** `warnings` do not keep the script from running. */
  | { readonly kind: "ok"; readonly script: Script; readonly warnings: readonly Diagnostic[] }
  | { readonly kind: "errors"; readonly diagnostics: readonly Diagnostic[] };

/** Compiles a script. */
export function compileScript(text: string, options: CompileOptions = {}): CompileResult {
  const source = new SourceText(options.fileName ?? "stdin", text);
  const diagnostics = new DiagnosticList(source);
  const params = options.params ?? [];
  const script = parseScript(source, params, diagnostics);
  if (diagnostics.hasErrors) return { kind: "errors", diagnostics: diagnostics.sorted() };
  const analysis = analyseScript(script, { params, strLen: options.strLen ?? 64 }, diagnostics);
  if (diagnostics.hasErrors) return { kind: "errors", diagnostics: diagnostics.sorted() };
  const plan = new ScriptPlan(analysis, {
    shards: options.shards ?? 8,
    maxMapKeys: options.maxMapKeys ?? 4096,
    ringBytes: options.ringBytes ?? 4 << 20,
    startNs: options.startNs ?? 0n,
    joinArgBytes: options.joinArgBytes ?? 128,
    accounts: options.accounts ?? false,
  });
  const counting = new CountedHits(script, plan);
  const programs: ProgramSpec[] = [];
  const probes: ScriptProbe[] = [];
  for (const probe of script.probes) {
    const generated = generateProgram(plan, probe, source, counting);
    checkLimits(probe, generated.insns.length, generated.stackBytes, diagnostics);
    const spec = probe.attachPoints.map((point) => point.name).join(",");
    probes.push({ attachPoints: probe.attachPoints, spec, programIndex: programs.length });
    programs.push({ name: spec, insns: generated.insns, places: generated.places });
  }
  if (diagnostics.hasErrors) return { kind: "errors", diagnostics: diagnostics.sorted() };
  return {
    kind: "ok",
    script: {
      bundle: { maps: plan.mapSpecs(), programs },
      maps: plan.maps.map((map) => ({ ...map, countedBy: counting.programsOf(map.name) })),
      probes,
      events: plan.events,
      ringMap: plan.findOwnMap("ring"),
      exitMap: plan.findOwnMap("exit"),
      accountMap: plan.findOwnMap("account"),
    },
    warnings: diagnostics.sorted(),
  };
}

function checkLimits(probe: ProbeNode, insns: number, stackBytes: number, diagnostics: DiagnosticList): void {
  if (stackBytes > MAX_STACK_BYTES) {
    diagnostics.error(probe.span, messages.stackTooLarge(stackBytes, MAX_STACK_BYTES));
  }
  if (insns > MAX_INSNS) diagnostics.error(probe.span, messages.programTooLarge(insns, MAX_INSNS));
}

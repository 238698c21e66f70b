/** Sessions: one tracing run from options to exit code, and the reports around it. */

export { type ChangedSite, readChangedSites } from "./attach/changed-sites.ts";
export { detach } from "./leave/detach.ts";
export { compareText, readTextFingerprint, type TextFingerprint } from "./leave/fingerprint.ts";
export { disassembleObject } from "./objects/bpf-disasm.ts";
export { executeBpf } from "./objects/bpf-exec.ts";
export { verifyObject } from "./objects/bpf-verify.ts";
export { runObject } from "./objects/run-object.ts";
export type {
  ArenaChoice,
  BpfDisasmOptions,
  BpfExecOptions,
  BpfVerifyOptions,
  CoverageOptions,
  DetachOptions,
  ExplainOptions,
  GateChoice,
  ListOptions,
  MechanismChoice,
  OutputFormat,
  ProbeGate,
  ReportOptions,
  ReturnChoice,
  RunObjectOptions,
  SessionIo,
  SessionVerbs,
  TextSink,
  TraceOptions,
  ViolationChoice,
} from "./options.ts";
export { coverage } from "./reports/coverage.ts";
export { doctor } from "./reports/doctor.ts";
export { explain } from "./reports/explain.ts";
export { listProbes } from "./reports/listing.ts";
export { findTracedProcesses, listTracedProcesses, type TracedProcessReport } from "./reports/processes.ts";
export { SessionError } from "./session-error.ts";
export { trace } from "./trace.ts";

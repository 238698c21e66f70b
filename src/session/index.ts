/** Sessions: one tracing run from options to exit code, and the reports around it. */
export { disassembleObject } from "./bpf-disasm.ts";
export { executeBpf } from "./bpf-exec.ts";
export { verifyObject } from "./bpf-verify.ts";
export { type ChangedSite, readChangedSites } from "./changed-sites.ts";
export { coverage } from "./coverage.ts";
export { detach } from "./detach.ts";
export { doctor } from "./doctor.ts";
export { explain } from "./explain.ts";
export { compareText, readTextFingerprint, type TextFingerprint } from "./fingerprint.ts";
export { listProbes } from "./listing.ts";
export type {
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
  ReportOptions,
  ReturnChoice,
  RunObjectOptions,
  SessionIo,
  SessionVerbs,
  TextSink,
  TraceOptions,
} from "./options.ts";
export { findTracedProcesses, listTracedProcesses, type TracedProcessReport } from "./processes.ts";
export { runObject } from "./run-object.ts";
export { SessionError } from "./session-error.ts";
export { trace } from "./trace.ts";

/** Sessions: one tracing run from options to exit code, and the reports around it. */
export { type ChangedSite, readChangedSites } from "./changed-sites.ts";
export { doctor } from "./doctor.ts";
export { compareText, readTextFingerprint, type TextFingerprint } from "./fingerprint.ts";
export type {
  DetachOptions,
  ExplainOptions,
  ListOptions,
  MechanismChoice,
  OutputFormat,
  ReportOptions,
  SessionIo,
  SessionVerbs,
  TextSink,
  TraceOptions,
} from "./options.ts";
export { findTracedProcesses, listTracedProcesses, type TracedProcessReport } from "./processes.ts";
export { SessionError } from "./session-error.ts";

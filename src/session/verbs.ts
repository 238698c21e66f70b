/**
 * What the command line can ask for, each loaded when it is asked for: the time from the command to the first event is
 * mostly the time that it takes to load code.
 */
import type { SessionVerbs } from "./options.ts";

export const sessionVerbs: SessionVerbs = {
  trace: async (options, io) => (await import("./trace.ts")).trace(options, io),
  explain: async (options, io) => (await import("./reports/explain.ts")).explain(options, io),
  coverage: async (options, io) => (await import("./reports/coverage.ts")).coverage(options, io),
  detach: async (options, io) => (await import("./leave/detach.ts")).detach(options, io),
  listProbes: async (options, io) => (await import("./reports/listing.ts")).listProbes(options, io),
  listTracedProcesses: async (options, io) =>
    (await import("./reports/processes.ts")).listTracedProcesses(options, io),
  doctor: async (options, io) => (await import("./reports/doctor.ts")).doctor(options, io),
  runObject: async (options, io) => (await import("./objects/run-object.ts")).runObject(options, io),
  verifyObject: async (options, io) => (await import("./objects/bpf-verify.ts")).verifyObject(options, io),
  disassembleObject: async (options, io) =>
    (await import("./objects/bpf-disasm.ts")).disassembleObject(options, io),
  executeBpf: async (options, io) => (await import("./objects/bpf-exec.ts")).executeBpf(options, io),
};

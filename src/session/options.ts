/**
 * What a session is asked to do, and what it may write to: the interface between the command line (or any other
 * caller) and the sessions. Everything here is plain data but for the sinks.
 */

/** How a site may be changed: the best mechanism that is safe there, or one that is forced. */
export type MechanismChoice = "auto" | "call" | "jump" | "punned" | "int3";

/** Where returns are probed: at the function's exits, by a replaced return address, or what is best. */
export type ReturnChoice = "auto" | "sites" | "stack";

/** What programs run behind, from the lowest on: nothing, a private stack of the thread, that with signals deferred and a protection key. */
export type GateLevel = "none" | "stack" | "strict";
/** `auto`: what the process, or the probe, needs of the first two. */
export type GateChoice = "auto" | GateLevel;

/** What single probes run behind, whatever the session's are. */
export interface ProbeGate {
  /** Attach points as they are written; `*`, `?` and sets stand for what they do in those. */
  readonly probes: string;
  readonly level: GateLevel;
}

/** `kill`: a fault as if nothing were mapped there. `skip`: the instruction is left out. `report`: it is executed. */
export type ViolationChoice = "kill" | "skip" | "report";

/** Pages in which maps lie: 1 GiB, 2 MiB, transparent huge ones, 4 KiB, or what suits their size and the machine grants. */
export type ArenaChoice = "auto" | "1g" | "2m" | "thp" | "4k";

/** `text` for people, `json` for programs: one JSON object a line. */
export type OutputFormat = "text" | "json";

export interface TraceOptions {
  /** The script; `fileName` is the name under which diagnostics show it. */
  readonly program: { readonly text: string; readonly fileName: string };
  /** Positional parameters of the script: `$1` is the first. */
  readonly params: readonly string[];
  /** Processes to attach to. */
  readonly pids: readonly number[];
  /** A command to start and trace from its first instruction on. */
  readonly command: readonly string[] | undefined;
  readonly mechanism: MechanismChoice;
  readonly format: OutputFormat;
  /** Nothing but what the script prints. */
  readonly quiet: boolean;
  /** Says what is done to which site, and what it cost. */
  readonly verbose: boolean;
  /** Shows the bytecode, the proofs and the emitted code. */
  readonly debug: boolean;
  /** Compile, verify, plan and print; touch nothing. */
  readonly dryRun: boolean;
  /** Calls of one function whose returns may be awaited at the same time; undefined: the session chooses. */
  readonly maxActive: number | undefined;
  /** Which part of the target's processor time probes may cost, of 1; undefined: any. */
  readonly budget?: number | undefined;
  /** `auto` unless told. */
  readonly returns?: ReturnChoice | undefined;
  /** Prove at the end that each process is as it was before. */
  readonly verify?: boolean | undefined;
  /** Write names of our code where perf looks for them; true unless told. */
  readonly perfMap?: boolean | undefined;
  /** A file that gets a line for everything that is written to program text. */
  readonly pokeLog?: string | undefined;
  /** A file that gets our code's symbols and frame descriptions, for gdb. */
  readonly symbols?: string | undefined;
  /** `auto` unless told. */
  readonly gate?: GateChoice | undefined;
  /** Of those that a probe matches the last one is taken. */
  readonly probeGates?: readonly ProbeGate[] | undefined;
  /** What becomes of an access of the application to memory under our key; `kill` unless told. */
  readonly onViolation?: ViolationChoice | undefined;
  /** `auto` unless told. */
  readonly arena?: ArenaChoice | undefined;
}

export interface ExplainOptions {
  /** An attach point as a script spells it: `uprobe:libc:malloc`. */
  readonly probe: string;
  readonly pid: number;
  readonly mechanism: MechanismChoice;
  readonly format: OutputFormat;
  readonly returns?: ReturnChoice | undefined;
  readonly gate?: GateChoice | undefined;
}

export interface CoverageOptions {
  /** An image of the process, named as in a probe; without a process a file. */
  readonly image: string;
  readonly pid: number | undefined;
  readonly candidates: "functions" | "instructions";
  /** Which part of the candidates is looked at: above 0, 1 is all. */
  readonly sample: number;
  /** A line for every candidate. */
  readonly verbose: boolean;
  readonly format: OutputFormat;
}

export interface DetachOptions {
  readonly pids: readonly number[];
  readonly quiet: boolean;
  /** Prove that each process is as it was before. */
  readonly verify?: boolean | undefined;
  readonly format: OutputFormat;
}

export interface ListOptions {
  /** An attach point with wildcards; undefined: everything. */
  readonly pattern: string | undefined;
  readonly pids: readonly number[];
  readonly format: OutputFormat;
}

export interface ReportOptions {
  readonly format: OutputFormat;
}

export interface BpfExecOptions {
  /** Instructions of 8 bytes, little endian, as hex digits; white space may stand anywhere between them. */
  readonly bytecode: string;
  /** What r1 points to, in the same form; empty: no byte. */
  readonly memory: string;
  /** Do not compile. */
  readonly interpret: boolean;
  /** Interpret what the verifier refuses. */
  readonly unverified: boolean;
}

/** What a run is asked for, whoever wrote its programs. */
export type RunOptions = Pick<
  TraceOptions,
  | "pids"
  | "command"
  | "mechanism"
  | "format"
  | "quiet"
  | "verbose"
  | "maxActive"
  | "budget"
  | "returns"
  | "verify"
  | "perfMap"
  | "pokeLog"
  | "symbols"
  | "gate"
  | "probeGates"
  | "onViolation"
  | "arena"
>;

export interface RunObjectOptions extends RunOptions, Pick<TraceOptions, "dryRun"> {
  /** An object file. */
  readonly path: string;
  /** `PROGRAM=IMAGE:SYMBOL`: goes before what the program's section says. */
  readonly attach: readonly string[];
}

export interface BpfVerifyOptions {
  /** An object file. */
  readonly path: string;
  /** A section, or a program; undefined: all. */
  readonly section: string | undefined;
}

export interface BpfDisasmOptions extends BpfVerifyOptions {
  /** Show the machine code, too. */
  readonly jit: boolean;
}

/** Somewhere that text goes. Writing returns when the text has been handed over. */
export interface TextSink {
  write(text: string): void;
}

/** What a session writes to. */
export interface SessionIo {
  /** Results: standard output, or the file that was asked for. */
  readonly out: TextSink;
  /** Messages to the person. */
  readonly err: TextSink;
  /** Width of the terminal behind `err`; undefined when it is none: then no progress is shown. */
  readonly terminalColumns: number | undefined;
  /** Aborted when nobody reads `out` any more; a run then ends as by Ctrl-C. */
  readonly outClosed: AbortSignal;
}

/**
 * What a session offers. Each returns the exit code: 0 when all was done, 1 when not; what was wrong has then been
 * written to `io.err`. Failures of the environment may also be thrown, as errors with a literal `code` and perhaps a
 * `hint`.
 */
export interface SessionVerbs {
  trace(options: TraceOptions, io: SessionIo): Promise<number>;
  explain(options: ExplainOptions, io: SessionIo): Promise<number>;
  coverage(options: CoverageOptions, io: SessionIo): Promise<number>;
  detach(options: DetachOptions, io: SessionIo): Promise<number>;
  listProbes(options: ListOptions, io: SessionIo): Promise<number>;
  listTracedProcesses(options: ReportOptions, io: SessionIo): Promise<number>;
  doctor(options: ReportOptions, io: SessionIo): Promise<number>;
  runObject(options: RunObjectOptions, io: SessionIo): Promise<number>;
  executeBpf(options: BpfExecOptions, io: SessionIo): Promise<number>;
  verifyObject(options: BpfVerifyOptions, io: SessionIo): Promise<number>;
  disassembleObject(options: BpfDisasmOptions, io: SessionIo): Promise<number>;
}

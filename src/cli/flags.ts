/**
 * The flags, in one table that the parser and the help text read. Letters and meanings are bpftrace's where it has
 * them.
 */

export type VerbName =
  | "trace"
  | "list"
  | "explain"
  | "coverage"
  | "ps"
  | "detach"
  | "doctor"
  | "run"
  | "bpf verify"
  | "bpf disasm"
  | "bpf exec";

export interface Flag {
  readonly name: FlagName;
  readonly letter: string | undefined;
  readonly word: string | undefined;
  /** How the help text calls the flag's value; undefined: the flag has none. */
  readonly value: string | undefined;
  readonly mayRepeat: boolean;
  readonly verbs: readonly VerbName[];
  readonly help: string;
}

export type FlagName =
  | "program"
  | "pid"
  | "command"
  | "list"
  | "format"
  | "output"
  | "quiet"
  | "verbose"
  | "debug"
  | "dryRun"
  | "mechanism"
  | "maxActive"
  | "budget"
  | "verify"
  | "noPerfMap"
  | "pokeLog"
  | "symbols"
  | "returns"
  | "gate"
  | "onViolation"
  | "arena"
  | "functions"
  | "instructions"
  | "sample"
  | "attach"
  | "jit"
  | "interpret"
  | "unverified"
  | "help"
  | "version";

const reports: readonly VerbName[] = [
  "trace",
  "list",
  "explain",
  "coverage",
  "ps",
  "detach",
  "doctor",
  "run",
];
const everywhere: readonly VerbName[] = [...reports, "bpf verify", "bpf disasm", "bpf exec"];

const define = (
  name: FlagName,
  spelling: string,
  value: string | undefined,
  verbs: readonly VerbName[],
  help: string,
  mayRepeat = false,
): Flag => ({
  name,
  letter: /(?:^|\s)-(\w)/.exec(spelling)?.[1],
  word: /--([\w-]+)/.exec(spelling)?.[1],
  value,
  mayRepeat,
  verbs,
  help,
});

// biome-ignore format: one line a flag
export const flags: readonly Flag[] = [
  define("program", "-e", "PROGRAM", ["trace"], "run this program"),
  define("pid", "-p", "PID", ["trace", "run", "list", "explain", "coverage", "detach"], "attach to this process; several times for several", true),
  define("command", "-c", "COMMAND", ["trace", "run"], "start this command and trace it from its first instruction"),
  define("list", "-l", undefined, ["list"], "list the probes that match PATTERN"),
  define("format", "-f", "FORMAT", reports, "text (default) or json"),
  define("output", "-o", "FILE", everywhere, "write results to FILE"),
  define("quiet", "-q", undefined, ["trace", "run", "detach"], "print only what the program prints"),
  define("verbose", "-v", undefined, ["trace", "run", "coverage"], "say what was done to which site, and why"),
  define("debug", "-d", undefined, everywhere, "show bytecode and machine code; stacks of internal errors"),
  define("dryRun", "--dry-run", undefined, ["trace", "run"], "compile, verify, plan and print; touch nothing"),
  define("mechanism", "--mechanism", "KIND", ["trace", "run", "explain"], "auto (default), jump, punned or int3"),
  define("returns", "--return", "WAY", ["trace", "run", "explain"], "probe returns by auto (default), sites (exits) or stack"),
  define("gate", "--gate", "[PROBE=]LEVEL", ["trace", "run", "explain"], "what programs run behind: auto (default), none, stack (private), strict", true),
  define("onViolation", "--on-violation", "WHAT", ["trace", "run"], "accesses to our memory: kill (default, a fault), skip or report"),
  define("arena", "--arena", "PAGES", ["trace", "run"], "pages of maps: auto (default), 1g, 2m, thp (transparent) or 4k"),
  define("maxActive", "--maxactive", "N", ["trace", "run"], "calls of one function whose returns are awaited at once"),
  define("budget", "--budget", "PERCENT", ["trace", "run"], "disarm the hottest sites when all cost more: 2%"),
  define("verify", "--verify", undefined, ["trace", "run", "detach"], "prove at the end that each process is as before"),
  define("noPerfMap", "--no-perf-map", undefined, ["trace", "run"], "do not name our code in /tmp/perf-PID.map"),
  define("pokeLog", "--poke-log", "FILE", ["trace", "run"], "log each write to program text as JSON"),
  define("symbols", "--symbols", "FILE", ["trace", "run"], "write symbols of our code for gdb: add-symbol-file FILE"),
  define("functions", "--functions", undefined, ["coverage"], "look at every function's entry (default)"),
  define("instructions", "--instructions", undefined, ["coverage"], "look at every instruction"),
  define("sample", "--sample", "PERCENT", ["coverage"], "look at a part of them: 1%"),
  define("attach", "--attach", "PROG=IMAGE:SYM", ["run"], "where a program of the object goes, instead of its section", true),
  define("jit", "--jit", undefined, ["bpf disasm"], "show the machine code beside the bytecode"),
  define("interpret", "--interpret", undefined, ["bpf exec"], "interpret the program instead of compiling it"),
  define("unverified", "--unverified", undefined, ["bpf exec"], "interpret even what the verifier refuses"),
  define("help", "-h --help", undefined, everywhere, "show this help"),
  define("version", "-V --version", undefined, everywhere, "show the version"),
];

/** The flag as the person spells it. */
export const spell = (flag: Flag): string =>
  flag.letter === undefined ? `--${flag.word}` : `-${flag.letter}`;

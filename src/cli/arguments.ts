/**
 * From the words of the command line to what is to be done. Pure: reads no file and looks at no process.
 *
 * Options may stand anywhere before `--`, letters may be joined (`-qv`) and take their value with or without a space
 * (`-p4242`). The first word that is no option is the verb, the script or the pattern; what follows are parameters.
 */
import type {
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
  TraceOptions,
  ViolationChoice,
} from "../session/index.ts";
import { type Flag, type FlagName, flags, spell, type VerbName } from "./flags.ts";
import { UsageError } from "./usage-error.ts";
import { splitWords } from "./words.ts";

/** Where the script comes from; `-` as a file is standard input. */
export type ProgramSource =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "file"; readonly path: string };

export type Action =
  | { readonly verb: "help" }
  | { readonly verb: "version" }
  | {
      readonly verb: "trace";
      readonly source: ProgramSource;
      readonly options: Omit<TraceOptions, "program">;
    }
  | { readonly verb: "list"; readonly options: ListOptions }
  | { readonly verb: "explain"; readonly options: ExplainOptions }
  | { readonly verb: "coverage"; readonly options: CoverageOptions }
  | { readonly verb: "ps"; readonly options: ReportOptions }
  | { readonly verb: "detach"; readonly options: DetachOptions }
  | { readonly verb: "doctor"; readonly options: ReportOptions }
  | { readonly verb: "run"; readonly options: RunObjectOptions }
  | { readonly verb: "bpf verify"; readonly options: BpfVerifyOptions }
  | { readonly verb: "bpf disasm"; readonly options: BpfDisasmOptions }
  | { readonly verb: "bpf exec"; readonly options: Omit<BpfExecOptions, "bytecode"> };

export interface CommandLine {
  readonly action: Action;
  readonly debug: boolean;
  /** The file of `-o`. */
  readonly outputFile: string | undefined;
}

/** Highest number that the kernel gives a process (PID_MAX_LIMIT, include/linux/threads.h). */
const PID_MAX = 4_194_304;
const MAX_ACTIVE_MAX = 1 << 20;

const mechanismChoices: readonly MechanismChoice[] = ["auto", "call", "jump", "punned", "int3"];

/** Words as they came, by flag; and the words that belong to none. */
interface Words {
  readonly values: ReadonlyMap<FlagName, readonly string[]>;
  readonly rest: readonly string[];
}

/** Throws `UsageError` when the words make no sense. */
export function parseArguments(argv: readonly string[]): CommandLine {
  const words = sortWords(argv);
  const has = (name: FlagName) => words.values.has(name);
  const debug = has("debug");
  const outputFile = words.values.get("output")?.[0];
  if (has("help")) return { action: { verb: "help" }, debug, outputFile };
  if (has("version")) return { action: { verb: "version" }, debug, outputFile };
  return { action: parseAction(words), debug, outputFile };
}

function parseAction(words: Words): Action {
  const { values, rest } = words;
  const format = parseChoice(words, "format", ["text", "json"], "text") as OutputFormat;
  const mechanism = parseChoice(words, "mechanism", mechanismChoices, "auto") as MechanismChoice;
  const pids = (values.get("pid") ?? []).flatMap((list) => list.split(",").map(parsePid));
  const verb = findVerb(words);
  refuseForeignFlags(values, verb);
  switch (verb) {
    case "list":
      refuseMore(rest, 1, "-l takes one pattern; quote it if it holds blanks or wildcards");
      return { verb, options: { pattern: rest[0], pids, format } };
    case "explain": {
      const probe = rest[1];
      if (probe === undefined)
        throw new UsageError(
          "explain: say which probe",
          "for example: trapline explain uprobe:libc:malloc -p PID",
        );
      refuseMore(rest, 2, "explain takes one probe");
      const pid = pids[0];
      if (pid === undefined || pids.length > 1)
        throw new UsageError(
          "explain: say in which process",
          `for example: trapline explain ${probe} -p PID`,
        );
      const { gate, probeGates } = parseGates(words);
      if (probeGates !== undefined)
        throw new UsageError(
          "explain: --gate PROBE=LEVEL has no meaning with one probe",
          `for example: --gate ${probeGates[0]!.level}`,
        );
      const ways = { returns: parseReturns(words), gate };
      return { verb, options: { probe, pid, mechanism, format, ...ways } };
    }
    case "coverage":
      return { verb, options: parseCoverage(words, { format, pids }) };
    case "detach":
      refuseMore(rest, 1, "the process is given with -p");
      if (pids.length === 0)
        throw new UsageError(
          "detach: say from which process",
          "for example: trapline detach -p PID; trapline ps lists the processes that carry probes",
        );
      return {
        verb,
        options: { pids, quiet: values.has("quiet"), verify: parseSwitch(values, "verify"), format },
      };
    case "ps":
    case "doctor":
      refuseMore(rest, 1, `${verb} takes no words`);
      return { verb, options: { format } };
    case "run":
      return parseRun(words, { format, mechanism, pids });
    case "bpf verify":
      return { verb, options: parseObject(rest, verb) };
    case "bpf disasm":
      return { verb, options: { ...parseObject(rest, verb), jit: values.has("jit") } };
    case "bpf exec":
      // Bytes of memory may be several words.
      return {
        verb,
        options: {
          memory: rest.slice(2).join(" "),
          interpret: values.has("interpret"),
          unverified: values.has("unverified"),
        },
      };
    case "trace":
      return parseTrace(words, { format, mechanism, pids });
    default:
      return verb satisfies never;
  }
}

/** `coverage IMAGE`. */
function parseCoverage(
  { values, rest }: Words,
  { format, pids }: { readonly format: OutputFormat; readonly pids: readonly number[] },
): CoverageOptions {
  const image = rest[1];
  if (image === undefined)
    throw new UsageError(
      "coverage: say which image",
      "for example: trapline coverage libc -p PID, or of a file: trapline coverage /bin/bash",
    );
  refuseMore(rest, 2, "coverage takes one image");
  if (pids.length > 1) throw new UsageError("coverage: takes one process");
  if (values.has("functions") && values.has("instructions"))
    throw new UsageError("coverage: --functions or --instructions, not both");
  return {
    image,
    pid: pids[0],
    candidates: values.has("instructions") ? "instructions" : "functions",
    sample: parseSample(values.get("sample")?.[0]),
    verbose: values.has("verbose"),
    format,
  };
}

function parseSample(word: string | undefined): number {
  if (word === undefined) return 1;
  const percent = /^\d+(\.\d+)?%?$/.test(word) ? Number.parseFloat(word) : 0;
  if (percent <= 0 || percent > 100) throw new UsageError(`--sample ${word}: must be a part of 100, like 1%`);
  return percent / 100;
}

function parseTrace(words: Words, shared: Pick<TraceOptions, "format" | "mechanism" | "pids">): Action {
  const { values, rest } = words;
  const text = values.get("program")?.[0];
  const path = rest[0];
  if (text === undefined && path === undefined)
    throw new UsageError("say what to trace: -e PROGRAM or FILE.bt", "see: trapline --help");
  if (text !== undefined && text.trim() === "")
    throw new UsageError(
      "the program of -e is empty",
      "for example: -e 'uprobe:libc:malloc { @ = count(); }'",
    );
  const source: ProgramSource = text === undefined ? { kind: "file", path: path! } : { kind: "text", text };
  return {
    verb: "trace",
    source,
    options: {
      ...shared,
      params: text === undefined ? rest.slice(1) : rest,
      command: parseCommand(values.get("command")?.[0]),
      quiet: values.has("quiet"),
      verbose: values.has("verbose"),
      debug: values.has("debug"),
      dryRun: values.has("dryRun"),
      maxActive: parseMaxActive(values.get("maxActive")?.[0]),
      budget: parseBudget(values.get("budget")?.[0]),
      returns: parseReturns(words),
      verify: parseSwitch(values, "verify"),
      perfMap: values.has("noPerfMap") ? false : undefined,
      pokeLog: values.get("pokeLog")?.[0],
      symbols: values.get("symbols")?.[0],
      ...parseGates(words),
      onViolation: parseOnViolation(words),
      arena: parseArena(words),
    },
  };
}

/** `run FILE.bpf.o`. */
function parseRun(
  words: Words,
  shared: Pick<RunObjectOptions, "format" | "mechanism" | "pids">,
): Extract<Action, { verb: "run" }> {
  const { values, rest } = words;
  const path = rest[1];
  if (path === undefined)
    throw new UsageError("run: say which object file", "for example: trapline run FILE.bpf.o -p PID");
  refuseMore(rest, 2, "run takes one object file");
  const command = parseCommand(values.get("command")?.[0]);
  if (shared.pids.length === 0 && command === undefined && !values.has("dryRun"))
    throw new UsageError("run: say in which process", `for example: trapline run ${path} -p PID`);
  return {
    verb: "run",
    options: {
      ...shared,
      path,
      command,
      attach: values.get("attach") ?? [],
      quiet: values.has("quiet"),
      verbose: values.has("verbose"),
      dryRun: values.has("dryRun"),
      maxActive: parseMaxActive(values.get("maxActive")?.[0]),
      budget: parseBudget(values.get("budget")?.[0]),
      returns: parseReturns(words),
      verify: parseSwitch(values, "verify"),
      perfMap: values.has("noPerfMap") ? false : undefined,
      pokeLog: values.get("pokeLog")?.[0],
      symbols: values.get("symbols")?.[0],
      ...parseGates(words),
      onViolation: parseOnViolation(words),
      arena: parseArena(words),
    },
  };
}

/** `bpf VERB FILE.o [SECTION]`. */
function parseObject(rest: readonly string[], verb: string): BpfVerifyOptions {
  const path = rest[2];
  if (path === undefined)
    throw new UsageError(`${verb}: say which object file`, `for example: trapline ${verb} FILE.bpf.o`);
  refuseMore(rest, 4, `${verb} takes one file and one section`);
  return { path, section: rest[3] };
}

/** `-l` wins; then the first word, if it is a verb. A script of that name is written `./ps`. */
function findVerb({ values, rest }: Words): VerbName {
  if (values.has("list")) return "list";
  const first = rest[0];
  if (values.has("program")) return "trace";
  if (first === "explain" || first === "ps" || first === "detach" || first === "doctor") return first;
  if (first === "run" || first === "coverage") return first;
  if (first === "bpf") return findBpfVerb(rest[1]);
  return "trace";
}

function findBpfVerb(word: string | undefined): VerbName {
  if (word === "verify" || word === "disasm" || word === "exec") return `bpf ${word}`;
  throw new UsageError(
    word === undefined ? "bpf: say what to do" : `bpf ${word}: there is no such command`,
    "one of: trapline bpf verify FILE.o, trapline bpf disasm FILE.o, trapline bpf exec [MEMORY_HEX]",
  );
}

function refuseForeignFlags(values: Words["values"], verb: VerbName): void {
  for (const flag of flags) {
    if (!values.has(flag.name) || flag.verbs.includes(verb)) continue;
    const what = verb === "list" ? "-l" : verb === "trace" ? "a program" : verb;
    throw new UsageError(`${spell(flag)} has no meaning with ${what}`);
  }
}

function refuseMore(rest: readonly string[], most: number, why: string): void {
  if (rest.length > most) throw new UsageError(`${rest[most]}: one word too many: ${why}`);
}

function parseChoice(
  { values }: Words,
  name: FlagName,
  choices: readonly string[],
  otherwise: string,
): string {
  const value = values.get(name)?.[0] ?? otherwise;
  if (choices.includes(value)) return value;
  const flag = flags.find((candidate) => candidate.name === name)!;
  throw new UsageError(`${spell(flag)} ${value}: must be one of ${choices.join(", ")}`);
}

/** Undefined: not said. */
function parseSwitch(values: Words["values"], name: FlagName): true | undefined {
  return values.has(name) || undefined;
}

/** Undefined: not said. */
function parseReturns(words: Words): ReturnChoice | undefined {
  return words.values.has("returns")
    ? (parseChoice(words, "returns", ["auto", "sites", "stack"], "auto") as ReturnChoice)
    : undefined;
}

const gateChoices: readonly GateChoice[] = ["auto", "none", "stack", "strict"];

/** A level for the session, undefined if it is not said, and those for single probes, as PROBE=LEVEL. */
function parseGates({ values }: Words): {
  readonly gate: GateChoice | undefined;
  readonly probeGates: readonly ProbeGate[] | undefined;
} {
  let gate: GateChoice | undefined;
  const probeGates: ProbeGate[] = [];
  for (const value of values.get("gate") ?? []) {
    const [, probes, word] = /^(?:(.*)=)?([^=]*)$/s.exec(value)!;
    const level = gateChoices.find((choice) => choice === word);
    if (level === undefined || (probes !== undefined && level === "auto"))
      throw new UsageError(
        `--gate ${value}: must be one of ${gateChoices.join(", ")}` +
          (probes === undefined ? "" : "; for single probes none, stack or strict"),
      );
    if (probes !== undefined) probeGates.push({ probes, level: level as ProbeGate["level"] });
    else if (gate !== undefined) throw new UsageError("--gate is given twice");
    else gate = level;
  }
  const lower = probeGates.find(({ level }) => level !== "strict");
  if (gate === "strict" && lower !== undefined)
    throw new UsageError(
      `--gate ${lower.probes}=${lower.level}: with --gate strict all probes are strict`,
      "its protection key is open in no other gate; ask for strict probe by probe, without a key: --gate PROBE=strict",
    );
  return { gate, probeGates: probeGates.length === 0 ? undefined : probeGates };
}

/** Undefined: not said. */
function parseOnViolation(words: Words): ViolationChoice | undefined {
  return words.values.has("onViolation")
    ? (parseChoice(words, "onViolation", ["kill", "skip", "report"], "kill") as ViolationChoice)
    : undefined;
}

/** Undefined: not said. */
function parseArena(words: Words): ArenaChoice | undefined {
  return words.values.has("arena")
    ? (parseChoice(words, "arena", ["auto", "1g", "2m", "thp", "4k"], "auto") as ArenaChoice)
    : undefined;
}

function parsePid(word: string): number {
  const pid = /^\d+$/.test(word) ? Number(word) : 0;
  if (pid < 1 || pid > PID_MAX)
    throw new UsageError(
      `-p ${word}: not a process id`,
      "a process id is a number: -p 4242, or by name: -p $(pidof -s NAME)",
    );
  return pid;
}

function parseMaxActive(word: string | undefined): number | undefined {
  if (word === undefined) return undefined;
  const count = /^\d+$/.test(word) ? Number(word) : 0;
  if (count < 1 || count > MAX_ACTIVE_MAX)
    throw new UsageError(`--maxactive ${word}: must be a number from 1 to ${MAX_ACTIVE_MAX}`);
  return count;
}

/** `2%`, as a part of 1. */
function parseBudget(word: string | undefined): number | undefined {
  if (word === undefined) return undefined;
  const percent = /^\d+(\.\d+)?%?$/.test(word) ? Number.parseFloat(word) : 0;
  if (percent <= 0 || percent > 100)
    throw new UsageError(`--budget ${word}: must be a part of the processor time, such as 2%`);
  return percent / 100;
}

function parseCommand(line: string | undefined): readonly string[] | undefined {
  if (line === undefined) return undefined;
  const split = splitWords(line);
  if (split.kind === "unfinished")
    throw new UsageError(
      `-c ${line}: it ends inside a ${split.what}`,
      "quote the command once more for the shell",
    );
  if (split.words.length === 0 || split.words[0] === "")
    throw new UsageError("the command of -c is empty", "for example: -c 'ls -l /tmp'");
  return split.words;
}

/** Tells flags and their values from the other words. */
function sortWords(argv: readonly string[]): Words {
  const values = new Map<FlagName, string[]>();
  const rest: string[] = [];
  const add = (flag: Flag, value: string) => {
    const list = values.get(flag.name) ?? [];
    if (list.length > 0 && flag.value !== undefined && !flag.mayRepeat)
      throw new UsageError(`${spell(flag)} is given twice`);
    values.set(flag.name, [...list, value]);
  };
  const queue = [...argv];
  const takeValue = (flag: Flag, spelling: string): string => {
    const value = queue.shift();
    if (value === undefined) throw new UsageError(`${spelling} needs a value: ${spelling} ${flag.value}`);
    return value;
  };
  for (let word = queue.shift(); word !== undefined; word = queue.shift()) {
    if (word === "--") {
      rest.push(...queue.splice(0));
    } else if (word.startsWith("--")) {
      const [spelling, ...attached] = word.split("=") as [string, ...string[]];
      const flag = findFlag(spelling, (candidate) => `--${candidate.word}` === spelling);
      if (flag.value === undefined && attached.length > 0) throw new UsageError(`${spelling} takes no value`);
      if (flag.value === undefined) add(flag, "");
      else add(flag, attached.length > 0 ? attached.join("=") : takeValue(flag, spelling));
    } else if (/^-[^\d]/.test(word)) {
      for (let at = 1; at < word.length; at++) {
        const spelling = `-${word[at]}`;
        const flag = findFlag(spelling, (candidate) => candidate.letter === word![at]);
        if (flag.value === undefined) {
          add(flag, "");
          continue;
        }
        add(flag, at + 1 < word.length ? word.slice(at + 1) : takeValue(flag, spelling));
        break;
      }
    } else {
      rest.push(word);
    }
  }
  return { values, rest };
}

/** Flags of bpftrace's that one may look for here. */
const elsewhere: Readonly<Record<string, string>> = {
  "-B": "output is not buffered for longer than it takes to write it",
  "-I": "scripts cannot include C headers",
  "--include": "scripts cannot include C headers",
  "-k": "helpers that fail are not reported",
  "--unsafe": "there are no unsafe functions",
  "--info": "trapline doctor says what this machine allows",
  "--emit-elf": "there is no object file to write; -d shows the bytecode",
  "--emit-llvm": "programs are not compiled by LLVM; -d shows the machine code",
};

function findFlag(spelling: string, matches: (flag: Flag) => boolean): Flag {
  const flag = flags.find(matches);
  if (flag !== undefined) return flag;
  const why = elsewhere[spelling];
  throw new UsageError(`${spelling}: there is no such option${why === undefined ? "" : ` (${why})`}`);
}

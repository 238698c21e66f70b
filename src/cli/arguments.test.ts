import { describe, expect, it } from "vitest";
import { parseArguments } from "./arguments.ts";
import { flags } from "./flags.ts";
import { helpText } from "./help.ts";

const plainTrace = {
  params: [],
  pids: [],
  command: undefined,
  mechanism: "auto",
  format: "text",
  quiet: false,
  verbose: false,
  debug: false,
  dryRun: false,
  maxActive: undefined,
};
const textSource = { kind: "text", text: "BEGIN {}" };

describe("reading the command line", () => {
  const cases: readonly {
    readonly name: string;
    readonly argv: readonly string[];
    readonly action: object;
  }[] = [
    {
      name: "a program and a process",
      argv: ["-p", "4242", "-e", "BEGIN {}"],
      action: { verb: "trace", source: textSource, options: { ...plainTrace, pids: [4242] } },
    },
    {
      name: "value joined to its letter, letters joined",
      argv: ["-p4242", "-qve", "BEGIN {}"],
      action: {
        verb: "trace",
        source: textSource,
        options: { ...plainTrace, pids: [4242], quiet: true, verbose: true },
      },
    },
    {
      name: "several processes, both ways",
      argv: ["-p", "1,2", "-p", "3", "-e", "BEGIN {}"],
      action: { verb: "trace", source: textSource, options: { ...plainTrace, pids: [1, 2, 3] } },
    },
    {
      name: "with -e all words are parameters",
      argv: ["-e", "BEGIN {}", "ps", "-5", "x y"],
      action: { verb: "trace", source: textSource, options: { ...plainTrace, params: ["ps", "-5", "x y"] } },
    },
    {
      name: "a file, options behind it, parameters behind --",
      argv: ["a.bt", "-c", "ls '/a b'", "one", "--", "-p", "--two"],
      action: {
        verb: "trace",
        source: { kind: "file", path: "a.bt" },
        options: { ...plainTrace, command: ["ls", "/a b"], params: ["one", "-p", "--two"] },
      },
    },
    {
      name: "long options, value joined or not",
      argv: [
        "--mechanism=int3",
        "--return",
        "stack",
        "--maxactive",
        "64",
        "--dry-run",
        "-f",
        "json",
        "-d",
        "-",
      ],
      action: {
        verb: "trace",
        source: { kind: "file", path: "-" },
        options: {
          ...plainTrace,
          mechanism: "int3",
          returns: "stack",
          maxActive: 64,
          dryRun: true,
          debug: true,
          format: "json",
        },
      },
    },
    {
      name: "-l with a pattern before it",
      argv: ["uprobe:libc:*", "-l", "-p", "7"],
      action: { verb: "list", options: { pattern: "uprobe:libc:*", pids: [7], format: "text" } },
    },
    {
      name: "-l alone",
      argv: ["-l"],
      action: { verb: "list", options: { pattern: undefined, pids: [], format: "text" } },
    },
    {
      name: "explain",
      argv: ["explain", "uprobe:libc:read", "-p", "7", "--mechanism", "jump"],
      action: {
        verb: "explain",
        options: { probe: "uprobe:libc:read", pid: 7, mechanism: "jump", format: "text" },
      },
    },
    { name: "ps", argv: ["ps"], action: { verb: "ps", options: { format: "text" } } },
    {
      name: "doctor as json",
      argv: ["doctor", "-f", "json"],
      action: { verb: "doctor", options: { format: "json" } },
    },
    {
      name: "detach from several",
      argv: ["detach", "-p", "7", "-p", "8", "-q"],
      action: { verb: "detach", options: { pids: [7, 8], quiet: true, format: "text" } },
    },
    {
      name: "detach with proof",
      argv: ["detach", "-p", "7", "--verify"],
      action: { verb: "detach", options: { pids: [7], quiet: false, verify: true, format: "text" } },
    },
    {
      name: "bytecode on memory of several words",
      argv: ["bpf", "exec", "aa bb", "cc", "--interpret"],
      action: { verb: "bpf exec", options: { memory: "aa bb cc", interpret: true, unverified: false } },
    },
    {
      name: "bytecode without memory",
      argv: ["bpf", "exec", "--unverified"],
      action: { verb: "bpf exec", options: { memory: "", interpret: false, unverified: true } },
    },
    {
      name: "an object file to be run",
      argv: ["run", "a.bpf.o", "-p", "7", "--attach", "f=libc:malloc", "--attach=g=libc:free", "-v"],
      action: {
        verb: "run",
        options: {
          path: "a.bpf.o",
          pids: [7],
          command: undefined,
          attach: ["f=libc:malloc", "g=libc:free"],
          mechanism: "auto",
          format: "text",
          quiet: false,
          verbose: true,
          dryRun: false,
          maxActive: undefined,
        },
      },
    },
    {
      name: "an object file that is only looked at",
      argv: ["run", "a.bpf.o", "--dry-run", "-f", "json"],
      action: {
        verb: "run",
        options: {
          path: "a.bpf.o",
          pids: [],
          command: undefined,
          attach: [],
          mechanism: "auto",
          format: "json",
          quiet: false,
          verbose: false,
          dryRun: true,
          maxActive: undefined,
        },
      },
    },
    {
      name: "an object file and a section",
      argv: ["bpf", "verify", "a.bpf.o", "uprobe/libc:malloc"],
      action: { verb: "bpf verify", options: { path: "a.bpf.o", section: "uprobe/libc:malloc" } },
    },
    {
      name: "an object file with machine code",
      argv: ["bpf", "disasm", "--jit", "a.bpf.o"],
      action: { verb: "bpf disasm", options: { path: "a.bpf.o", section: undefined, jit: true } },
    },
    {
      name: "a script whose name is a verb's",
      argv: ["./ps"],
      action: { verb: "trace", source: { kind: "file", path: "./ps" }, options: plainTrace },
    },
    { name: "help wins", argv: ["ps", "-h", "-e", ""], action: { verb: "help" } },
    { name: "version", argv: ["--version"], action: { verb: "version" } },
  ];
  it.each(cases)("$name", ({ argv, action }) => {
    expect(parseArguments(argv).action).toEqual(action);
  });

  it("tells the output file and debugging for every verb", () => {
    const { debug, outputFile } = parseArguments(["ps", "-d", "-o", "out"]);
    expect({ debug, outputFile }).toEqual({ debug: true, outputFile: "out" });
  });
});

describe("refusing a command line", () => {
  const cases: readonly { readonly name: string; readonly argv: readonly string[]; readonly what: string }[] =
    [
      { name: "nothing at all", argv: [], what: "say what to trace: -e PROGRAM or FILE.bt" },
      { name: "empty program", argv: ["-e", " "], what: "the program of -e is empty" },
      { name: "unknown letter", argv: ["-z"], what: "-z: there is no such option" },
      {
        name: "an option of bpftrace's that does not exist here",
        argv: ["--unsafe"],
        what: "--unsafe: there is no such option (there are no unsafe functions)",
      },
      { name: "value missing", argv: ["-p"], what: "-p needs a value: -p PID" },
      { name: "value where none belongs", argv: ["--dry-run=1"], what: "--dry-run takes no value" },
      { name: "process by name", argv: ["-p", "nginx", "-e", "BEGIN{}"], what: "-p nginx: not a process id" },
      { name: "process 0", argv: ["-p", "0", "-e", "BEGIN{}"], what: "-p 0: not a process id" },
      {
        name: "process beyond the kernel's",
        argv: ["-p", "4194305", "ps"],
        what: "-p 4194305: not a process id",
      },
      { name: "two programs", argv: ["-e", "BEGIN{}", "-e", "END{}"], what: "-e is given twice" },
      { name: "two commands", argv: ["-c", "ls", "-c", "ps", "-e", "END{}"], what: "-c is given twice" },
      { name: "empty command", argv: ["-c", "''", "-e", "END{}"], what: "the command of -c is empty" },
      {
        name: "open quote in the command",
        argv: ["-c", "ls '", "-e", "END{}"],
        what: "-c ls ': it ends inside a single quote",
      },
      { name: "unknown format", argv: ["-f", "xml", "ps"], what: "-f xml: must be one of text, json" },
      {
        name: "unknown mechanism",
        argv: ["--mechanism", "hop", "a.bt"],
        what: "--mechanism hop: must be one of auto, call, jump, punned, int3",
      },
      {
        name: "coverage without an image",
        argv: ["coverage", "-p", "1"],
        what: "coverage: say which image",
      },
      {
        name: "a sample of nothing",
        argv: ["coverage", "libc", "--sample", "0%"],
        what: "--sample 0%: must be a part of 100, like 1%",
      },
      {
        name: "a sample of something else",
        argv: ["coverage", "libc", "--sample", "some"],
        what: "--sample some: must be a part of 100, like 1%",
      },
      {
        name: "a way of returns that does not exist",
        argv: ["--return", "exits", "a.bt"],
        what: "--return exits: must be one of auto, sites, stack",
      },
      {
        name: "maxactive that is no number",
        argv: ["--maxactive", "-1", "a.bt"],
        what: "--maxactive -1: must be a number from 1 to 1048576",
      },
      {
        name: "a gate that does not exist",
        argv: ["--gate", "private", "a.bt"],
        what: "--gate private: must be one of auto, none, stack, strict",
      },
      {
        name: "a gate of single probes that is none",
        argv: ["--gate", "uprobe:a:b=auto", "a.bt"],
        what: "--gate uprobe:a:b=auto: must be one of auto, none, stack, strict; for single probes none, stack or strict",
      },
      {
        name: "two gates",
        argv: ["--gate", "stack", "--gate", "none", "a.bt"],
        what: "--gate is given twice",
      },
      {
        name: "a lower gate than that of the key",
        argv: ["--gate", "strict", "--gate", "uprobe:a:b=stack", "a.bt"],
        what: "--gate uprobe:a:b=stack: with --gate strict all probes are strict",
      },
      {
        name: "a gate of single probes where there is one",
        argv: ["explain", "uprobe:a:b", "-p", "1", "--gate", "uprobe:a:b=stack"],
        what: "explain: --gate PROBE=LEVEL has no meaning with one probe",
      },
      { name: "flag of another verb", argv: ["ps", "-p", "1"], what: "-p has no meaning with ps" },
      { name: "flag of a program with -l", argv: ["-l", "-v"], what: "-v has no meaning with -l" },
      { name: "explain without a probe", argv: ["explain", "-p", "1"], what: "explain: say which probe" },
      {
        name: "explain without a process",
        argv: ["explain", "uprobe:a:b"],
        what: "explain: say in which process",
      },
      { name: "detach without a process", argv: ["detach"], what: "detach: say from which process" },
      {
        name: "detach with a bare number",
        argv: ["detach", "7"],
        what: "7: one word too many: the process is given with -p",
      },
      { name: "run alone", argv: ["run", "-p", "1"], what: "run: say which object file" },
      { name: "run without a process", argv: ["run", "a.o"], what: "run: say in which process" },
      {
        name: "--attach with a script",
        argv: ["a.bt", "--attach", "f=a:b"],
        what: "--attach has no meaning with a program",
      },
      { name: "bpf verify alone", argv: ["bpf", "verify"], what: "bpf verify: say which object file" },
      { name: "bpf alone", argv: ["bpf"], what: "bpf: say what to do" },
      {
        name: "bpf with a verb of another tool's",
        argv: ["bpf", "load"],
        what: "bpf load: there is no such command",
      },
      { name: "-p with bpf exec", argv: ["bpf", "exec", "-p", "1"], what: "-p has no meaning with bpf exec" },
      { name: "a word behind ps", argv: ["ps", "aux"], what: "aux: one word too many: ps takes no words" },
    ];
  it.each(cases)("$name", ({ argv, what }) => {
    expect(() => parseArguments(argv)).toThrow(expect.objectContaining({ code: "usage", message: what }));
  });
});

it("explains every flag", () => {
  const help = helpText();
  for (const { letter, word } of flags)
    expect(help).toContain(letter === undefined ? `--${word}` : `-${letter}`);
});

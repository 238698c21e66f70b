/** The help text. */
import { flags } from "./flags.ts";

const synopsis = `USAGE
  trapline [-p PID | -c COMMAND] [options] -e PROGRAM [PARAM...]
  trapline [-p PID | -c COMMAND] [options] FILE.bt [PARAM...]
  trapline -l [PATTERN] [-p PID]
  trapline explain PROBE -p PID   what a probe would do to the code, and why
  trapline coverage IMAGE -p PID  what each function could take, and why not more; or: coverage FILE
  trapline ps                     processes that carry probes
  trapline detach -p PID          restore what a dead tracer left behind
  trapline doctor                 what this machine allows
  trapline run FILE.bpf.o -p PID  programs of an object file that clang has compiled
  trapline bpf verify FILE.o [SECTION]   prove the programs of an object file
  trapline bpf disasm FILE.o [SECTION]   show their bytecode, and with --jit the machine code
  trapline bpf exec [MEMORY_HEX]         run bytecode (hex on standard input) and print r0`;

const examples = `EXAMPLES
  trapline -p 4242 -e 'uprobe:libc:malloc { @bytes = hist(arg0); }'
      sizes of allocations, as a histogram, until Ctrl-C
  trapline -c 'ls -l /tmp' -e 'uprobe:libc:opendir { printf("%s\\n", str(arg0)); }'
      trace a command from its first instruction
  trapline -l 'uprobe:libc:*alloc*' -p 4242
      what can be probed`;

export function helpText(): string {
  const rows = flags.map((flag): readonly [string, string] => {
    const spellings = [flag.letter && `-${flag.letter}`, flag.word && `--${flag.word}`].filter(Boolean);
    return [spellings.join(", ") + (flag.value === undefined ? "" : ` ${flag.value}`), flag.help];
  });
  const width = Math.max(...rows.map(([spelling]) => spelling.length));
  const options = rows.map(([spelling, help]) => `  ${spelling.padEnd(width)}  ${help}`).join("\n");
  return `trapline: eBPF probes in live processes\n\n${synopsis}\n\nOPTIONS\n${options}\n\n${examples}\n`;
}

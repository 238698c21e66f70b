/**
 * Fast tracepoints of gdbserver with its in-process agent. A count is a trace state variable that the tracepoint's condition
 * adds to; a printed argument is one that is collected into the trace buffer. gdbserver compiles both to machine code. They
 * need an instruction of 5 bytes, and a target that has the agent loaded from its start.
 *
 * gdb cannot read the agent's copy of a variable, so every 4,096th hit leaves a trace frame: these can be counted.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { Child } from "../child.ts";
import { CodeBytes } from "../code-bytes.ts";
import type { Tracer, Work } from "./tracer.ts";

const agent = ["/usr/lib/libinproctrace.so", "/usr/lib/x86_64-linux-gnu/libinproctrace.so"].find(existsSync);

const STEP = 4096;

const tracepoints: Partial<Record<Work, (address: string) => readonly string[]>> = {
  count: (address) => [
    "tvariable $hits = 0",
    `ftrace *${address} if (($hits = $hits + 1) & ${STEP - 1}) == 0`,
  ],
  printf: (address) => [
    "set circular-trace-buffer on",
    `ftrace *${address}`,
    "actions",
    "collect $rdi",
    "end",
  ],
};

export const gdbserver: Tracer = {
  name: "gdbserver fast tracepoint",
  targetEnv: agent === undefined ? {} : { LD_PRELOAD: agent },
  missing() {
    const absent = ["gdb", "gdbserver"].filter((command) => spawnSync(command, ["--version"]).error);
    if (agent === undefined) absent.push("libinproctrace.so (part of gdbserver)");
    return absent.length === 0
      ? undefined
      : `${absent.join(", ")} not installed: apt-get install gdb gdbserver`;
  },
  async plant(target, site, work) {
    const commands = tracepoints[work]?.(`0x${target.addressOf(site).toString(16)}`);
    if (commands === undefined) throw new Error(`gdbserver cannot do "${work}"`);
    const code = new CodeBytes(target.pid, target.addressOf(site));
    const server = new Child(["gdbserver", "--attach", "127.0.0.1:0", `${target.pid}`]);
    const { text } = await server.line((line) => line.text.startsWith("Listening on port"));
    const gdb = new Child(["gdb", "-q", "-nx", target.binary]);
    const say = (lines: readonly string[]): void => gdb.send(lines.map((line) => `${line}\n`).join(""));
    say([
      "set pagination off",
      "set confirm off",
      "set mi-async on",
      "set non-stop on",
      "set sysroot",
      `target remote 127.0.0.1:${text.split(" ").at(-1)}`,
      ...commands,
      "tstart",
      "continue -a &",
      "echo continued\\n",
    ]);
    await code.until("changed", gdb);
    await gdb.line((line) => line.text.includes("continued"));
    const step = work === "count" ? STEP : 1;
    return {
      step,
      async remove() {
        say(["tstop", "tstatus", "echo counted\\n"]);
        await gdb.line((line) => line.text.includes("counted"));
        const said = gdb.lines.map((line) => line.text).join("\n");
        say(["interrupt -a", "detach", "quit"]);
        await gdb.end();
        server.kill("SIGTERM");
        await server.end();
        await code.until("original");
        code[Symbol.dispose]();
        // "Collected N trace frames" says how many are still there; "(created N total)" is added where some are not.
        const frames = /Collected (\d+) trace frames?(?: \(created (\d+) total\))?/.exec(said);
        if (frames === null) return undefined;
        return Number(frames[2] ?? frames[1]) * step;
      },
    };
  },
};

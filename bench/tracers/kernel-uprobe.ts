/** Uprobes of the running kernel, by bpftrace. They vanish with the bpftrace process. */
import { spawnSync } from "node:child_process";
import { setTimeout as delay } from "node:timers/promises";
import { Child } from "../child.ts";
import { CodeBytes } from "../code-bytes.ts";
import { functionOf } from "../hot-process.ts";
import { hitsIn } from "./bpftrace-output.ts";
import { scriptFor } from "./script.ts";
import type { Tracer } from "./tracer.ts";

/** The second probe of a script follows the first, and printed text its event; nothing of bpftrace's says when. */
const SETTLE_MS = 200;

export const kernelUprobe: Tracer = {
  name: "kernel uprobe (bpftrace)",
  targetEnv: {},
  missing() {
    if (spawnSync("bpftrace", ["--version"]).error) return "not installed: apt-get install bpftrace";
    if (process.getuid?.() !== 0) return "needs root";
    const trial = spawnSync("bpftrace", ["-e", "BEGIN { exit(); }"], { encoding: "utf8" });
    return trial.status === 0
      ? undefined
      : `bpftrace does not work here: ${trial.stderr.trim().split("\n").at(-1)}`;
  },
  async plant(target, site, work) {
    const code = new CodeBytes(target.pid, target.addressOf(site));
    const script = scriptFor(work, target.binary, functionOf(site));
    const child = new Child(["bpftrace", "-f", "json", "-p", `${target.pid}`, "-e", script]);
    await code.until("changed", child);
    await delay(SETTLE_MS);
    return {
      async remove() {
        // What is still in its buffers when it ends is lost.
        await delay(SETTLE_MS);
        child.kill("SIGINT");
        // It only heeds a signal that comes while it waits for events.
        const again = setInterval(() => child.kill("SIGINT"), 1_000);
        await child.end().finally(() => clearInterval(again));
        await code.until("original");
        code[Symbol.dispose]();
        return hitsIn(child.lines.map(({ text }) => text));
      },
    };
  },
};

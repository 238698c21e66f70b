/** The command as a whole, where no process is touched: what it prints where, and its exit code. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { commandPath, runCommand } from "./support/built-command.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "trapline-command-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

describe("the command", () => {
  it("can be executed as it is", () => {
    expect(statSync(commandPath).mode & 0o111).toBe(0o111);
    expect(execFileSync(commandPath, ["--version"], { encoding: "utf8" })).toMatch(
      /^trapline \d+\.\d+\.\d+\n$/,
    );
  });

  it("prints its help to standard output", () => {
    const { code, out, err } = runCommand(["--help"]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toContain("trapline explain PROBE -p PID");
    for (const line of out.split("\n")) expect(line.length).toBeLessThanOrEqual(100);
  });

  const refusals: readonly {
    readonly name: string;
    readonly args: readonly string[];
    readonly err: string;
  }[] = [
    {
      name: "no arguments",
      args: [],
      err: "trapline: say what to trace: -e PROGRAM or FILE.bt\nhint: see: trapline --help\n",
    },
    {
      name: "a script that is not there",
      args: ["/nowhere/a.bt"],
      err: "trapline: read script /nowhere/a.bt: there is no such file\nhint: a program on the command line is given with -e\n",
    },
    {
      name: "a script that is a directory",
      args: ["/tmp"],
      err: "trapline: read script /tmp: it is a directory\nhint: see: trapline --help\n",
    },
    {
      name: "an output file that cannot be made",
      args: ["ps", "-o", "/nowhere/out"],
      err: "trapline: write to /nowhere/out: ENOENT\nhint: -o takes the path of a file that can be created or overwritten\n",
    },
    {
      name: "a process id that is no number",
      args: ["-p", "nginx", "-e", "BEGIN {}"],
      err: "trapline: -p nginx: not a process id\nhint: a process id is a number: -p 4242, or by name: -p $(pidof -s NAME)\n",
    },
  ];
  it.each(refusals)("refuses $name in one line with a hint", ({ args, err }) => {
    expect(runCommand(args)).toEqual({ code: 1, out: "", err });
  });

  it("doctor writes to the file of -o", () => {
    const path = join(folder, "doctor.json");
    writeFileSync(path, "old");
    expect(runCommand(["doctor", "-f", "json", "-o", path])).toEqual({ code: 0, out: "", err: "" });
    const lines = readFileSync(path, "utf8").trim().split("\n");
    expect(lines.map((line) => JSON.parse(line).type)).toEqual(lines.map(() => "check"));
  });

  it("says when the disk is full", () => {
    const { code, err } = runCommand(["doctor", "-o", "/dev/full"]);
    expect({ code, err }).toEqual({ code: 1, err: "trapline: write to /dev/full: ENOSPC\n" });
  });

  it("says when standard output cannot be written", () => {
    const run = spawnSync("/bin/sh", ["-c", `"${process.execPath}" "${commandPath}" doctor >/dev/full`], {
      encoding: "utf8",
    });
    expect({ code: run.status, err: run.stderr }).toEqual({
      code: 1,
      err: "trapline: write to standard output: ENOSPC\n",
    });
  });

  it("is content when the reader has enough", () => {
    const run = spawnSync(
      "/bin/bash",
      ["-c", `set -o pipefail; "${process.execPath}" "${commandPath}" doctor | head -n 1`],
      { encoding: "utf8" },
    );
    expect({ code: run.status, err: run.stderr }).toEqual({ code: 0, err: "" });
  });

  it("ps succeeds", () => {
    expect(runCommand(["ps"]).code).toBe(0);
  });
});

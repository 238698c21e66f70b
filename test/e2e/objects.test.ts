/** Programs that clang has compiled run unchanged in a live process, and their counts are exact. */
import { describe, expect, it } from "vitest";
import { buildBpfFixture } from "../support/bpf-objects.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { runObject } from "../support/object-run.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 1;
const CALLS = 2_000;

describe("an object file in a live process", () => {
  it("counts every call, in maps and in globals, and prints what it sends", async () => {
    const argv = [buildFixture("counter"), `${THREADS}`, `${CALLS}`];
    using child = await UnmanagedChild.start(argv);
    child.send("\n");
    const expected = await child.line();
    const args = [
      buildBpfFixture("probed"),
      "-p",
      `${child.pid}`,
      "--attach",
      "probed_returns=counter:probed",
    ];
    const { code, out, err } = await runObject(args, async () => {
      child.send("\n");
      expect(await child.line()).toBe(expected);
    });
    expect({ code, err }).toEqual({
      code: 0,
      err: "attached 2 probes; Ctrl-C takes them out and shows the maps\n",
    });
    const digits = Array.from({ length: 16 }, (_, digit) => `  [${digit}]: ${CALLS / 16}\n`).join("");
    // The first call is probed(1, 0), which returns 31; the second probed(31, 1).
    expect(out).toContain(
      "results: 1f 00 00 00 00 00 00 00  ........\nresults: c2 03 00 00 00 00 00 00  ........\n",
    );
    expect(out).toContain(
      `map by_process (hash, 1 of 256)\n  [{pid: ${child.pid}, comm: "counter"}]: {calls: ${CALLS}, odd: ${CALLS / 2}}\n`,
    );
    expect(out).toContain(`map by_digit (array, 16 of 16)\n${digits}`);
    expect(out).toMatch(new RegExp(`^calls = ${CALLS}$`, "m"));
    expect(out).toMatch(new RegExp(`^returns = ${CALLS}$`, "m"));
    expect(out).toMatch(/^begin = 42$/m);
    expect(out).not.toMatch(/^shown/m);
    child.send("\n");
    expect(await child.line()).toBe(expected);
  });

  it("starts a command and ends with it", () => {
    const args = ["run", buildBpfFixture("probed"), "-q", "--attach", "probed_returns=counter:probed"];
    const run = runCommand([...args, "-c", `${buildFixture("counter")} 2 100`], "\n");
    expect({ code: run.code, err: run.err }).toEqual({ code: 0, err: "" });
    expect(run.out).toMatch(/^calls = 200$/m);
    expect(run.out).toMatch(/^returns = 200$/m);
  });
});

describe("refusing an object", () => {
  const pid = `${process.pid}`;
  const cases: readonly { readonly name: string; readonly args: () => string[]; readonly err: RegExp }[] = [
    {
      name: "a program without a place",
      args: () => [buildBpfFixture("probed"), "-p", pid],
      err: /^trapline: run: program probed_returns \(uretprobe\): its section does not say where it belongs\nhint: say it: --attach probed_returns=IMAGE:SYMBOL\n$/,
    },
    {
      name: "a place that is none",
      args: () => [buildBpfFixture("probed"), "-p", pid, "--attach", "probed_returns"],
      err: /^trapline: run: --attach probed_returns: it is not PROGRAM=IMAGE:SYMBOL\n/,
    },
    {
      name: "a program that is not there",
      args: () => [buildBpfFixture("probed"), "-p", pid, "--attach", "other=libc:malloc"],
      err: /^trapline: run: --attach other=libc:malloc: there is no program other\nhint: the programs are: on_probed, probed_returns\n$/,
    },
    {
      name: "programs of the kernel's",
      args: () => [
        buildBpfFixture("maps"),
        "-p",
        pid,
        "--attach",
        "calls=libc:free",
        "--attach",
        "bad_read=libc:free",
      ],
      err: /program in_kernel \(kprobe\/do_sys_openat2\): kprobe programs belong to the kernel/,
    },
    {
      name: "no process",
      args: () => [buildBpfFixture("probed")],
      err: /^trapline: run: say in which process\n/,
    },
  ];
  it.each(cases)("$name", ({ args, err }) => {
    expect(runCommand(["run", ...args()])).toEqual({ code: 1, out: "", err: expect.stringMatching(err) });
  });
});

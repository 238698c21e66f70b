/** Commands that the tracer starts: nothing of them is missed, from their first instruction on. */
import { expect, it } from "vitest";
import { MemoryFile } from "../../src/target/process/memory-file.ts";
import { readMaps } from "../../src/target/process/proc-fs.ts";
import { outputOf } from "../support/build-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { runTracing, Tracing, withSign } from "../support/tracing.ts";

const library = () =>
  buildFixture("library", { variant: "lib.so", flags: ["-shared", "-fPIC", "-Wl,-soname,library-lib.so"] });
const linked = () => {
  const path = library();
  return buildFixture("library-user", { variant: "linked", flags: ["-DLINKED", path, "-Wl,-rpath,$ORIGIN"] });
};
const loader = () => buildFixture("library-user", { variant: "dlopen", flags: ["-ldl"] });

/** `library_step`, ten times from 1. */
function tenSteps(): string {
  let value = 1n;
  for (let i = 0; i < 10; i++) value = BigInt.asUintN(64, value * 5n + (value >> 3n));
  return value.toString(16).padStart(16, "0");
}

const programs: readonly {
  readonly name: string;
  readonly command: () => string;
  readonly program: string;
  readonly maps: Readonly<Record<string, unknown>>;
}[] = [
  {
    name: "a library's constructor",
    command: linked,
    program: "uprobe:library-lib.so:library_step { @ = count(); }",
    maps: { "@": 13 },
  },
  {
    name: "a library's constructor, by path, with its returns",
    command: linked,
    program: `uprobe:LIBRARY:library_step { @in = count(); } uretprobe:LIBRARY:library_step { @out = count(); }`,
    maps: { "@in": 13, "@out": 13 },
  },
  {
    name: "a library that is loaded, unloaded and loaded again at run time",
    command: () => `${loader()} ${library()}`,
    program: "uprobe:library-lib.so:library_step { @ = count(); }",
    maps: { "@": 26 },
  },
  {
    name: "a library and the program itself",
    command: linked,
    program:
      "uprobe:library-lib.so:library_step { @ = count(); } uprobe:library-user-linked:main { @main = count(); }",
    maps: { "@": 13, "@main": 1 },
  },
  {
    name: "every library that has such a function, by wildcard",
    command: linked,
    program: "uprobe:library*:library_st* { @[probe] = count(); }",
    maps: { "@": { "uprobe:LIBRARY:library_step": 13 } },
  },
];

it.each(programs)("counts $name", async ({ command, program, maps }) => {
  const fill = (text: string) => text.replaceAll("LIBRARY", library());
  const result = await runTracing(["-c", command(), "-e", fill(program)]);
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expect(result.out).toContain(tenSteps());
  const expected = JSON.parse(fill(JSON.stringify(maps))) as Record<string, unknown>;
  expect(Object.fromEntries(Object.keys(maps).map((name) => [name, result.map(name)]))).toEqual(expected);
});

it.each(["jump", "int3"])("counts the main function and its arguments, %s", async (mechanism) => {
  const command = `${buildFixture("traps")} x y z`;
  const result = await runTracing([
    "--mechanism",
    mechanism,
    "-c",
    command,
    "-e",
    "uprobe:traps:main { @argc = sum(arg0); @ = count(); }",
  ]);
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expect({ argc: result.map("@argc"), calls: result.map("@") }).toEqual({ argc: 4, calls: 1 });
});

it.each([
  ["static", { variant: "static", flags: ["-static"] }],
  ["static PIE", { variant: "static-pie", flags: ["-static-pie"] }],
  ["static musl", { variant: "musl-static", compiler: "musl-gcc", flags: ["-static"] }],
] as const)("counts from the entry of a program without a loader: %s", async (_, build) => {
  const path = buildFixture("traps", build);
  const result = await runTracing([
    "-c",
    path,
    "-e",
    `uprobe:${path}:main,uprobe:${path}:_start { @[probe] = count(); }`,
  ]);
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expect(result.map("@")).toEqual({ [`uprobe:${path}:main`]: 1, [`uprobe:${path}:_start`]: 1 });
});

it("threads that the command starts are counted", async () => {
  // The command reads the tracer's standard input.
  await using tracing = Tracing.start([
    "-c",
    `${buildFixture("counter")} 4 2500`,
    "-e",
    "uprobe:counter:probed { @[tid] = count(); }",
  ]);
  tracing.send("\n");
  const result = await tracing.ended();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expect(Object.values(result.map("@") as object)).toEqual([2500, 2500, 2500, 2500]);
});

it("a command outlives neither the end of the trace nor an interrupt", async () => {
  for (const end of [" interval:ms:50 { exit(); }", ""]) {
    await using tracing = Tracing.start([
      "-c",
      "sleep 1000",
      "-e",
      `uprobe:libc:*nanosleep { printf("pid %d\\n", pid); } ${end}`,
    ]);
    await tracing.until("pid ");
    if (end === "") tracing.signal("SIGINT");
    const { code, err, out } = await tracing.ended();
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const pid = Number(/pid (\d+)/.exec(out)![1]);
    expect(() => process.kill(pid, 0)).toThrow("ESRCH");
  }
});

const refusals: readonly { readonly name: string; readonly args: readonly string[]; readonly err: RegExp }[] =
  [
    {
      name: "a command that is not there",
      args: ["-c", "no-such-program-here", "-e", "uprobe:libc:malloc { @ = count(); }"],
      err: /^trapline: start no-such-program-here: no such program in PATH\n/,
    },
    {
      name: "a file that cannot be executed",
      args: ["-c", "/etc/passwd", "-e", "uprobe:libc:malloc { @ = count(); }"],
      err: /^trapline: start \/etc\/passwd: there is no such program, or it may not be executed\n/,
    },
    {
      name: "a function that the program does not have",
      args: ["-c", "sleep 1000", "-e", "uprobe:sleep:no_such_function { @ = count(); }"],
      err: /no_such_function/,
    },
  ];
it.each(refusals)("refuses $name", async ({ args, err }) => {
  const result = await runTracing(args);
  expect({ code: result.code, out: result.out }).toEqual({ code: 1, out: "" });
  expect(result.err).toMatch(err);
});

it("a command that executes another program is followed into it", async () => {
  await using tracing = Tracing.start([
    "-c",
    `sh -c "exec ${buildFixture("counter")} 2 1000"`,
    "-e",
    withSign("uprobe:counter:probed { @ = count(); }"),
  ]);
  await tracing.untilError("attaching to it again");
  await untilArmed(tracing);
  tracing.send("\n");
  const { code, err, map } = await tracing.ended();
  expect({ code, count: map("@") }).toEqual({ code: 0, count: 2000 });
  expect(err).toMatch(/^note: process \d+ has executed \/.*\/counter; attaching to it again\n$/);
});

/** The command's own child holds executable memory of the tracer's: its detours are there. */
async function untilArmed(tracing: Tracing): Promise<void> {
  const pid = Number(/process (\d+)/.exec(tracing.result.err)![1]);
  const path = buildFixture("counter");
  const symbol = outputOf("nm", [path])
    .split("\n")
    .find((line) => line.endsWith(" T probed"))!;
  const { start } = readMaps(pid).find((map) => map.path === path)!;
  const memory = MemoryFile.open(pid, "r");
  try {
    const at = start + BigInt(`0x${symbol.split(" ")[0]}`);
    for (const deadline = Date.now() + 10_000; memory.read(at, 1)[0] !== 0xe9; )
      await new Promise((resolve, reject) =>
        Date.now() < deadline ? setTimeout(resolve, 5) : reject(new Error("it is not armed")),
      );
  } finally {
    memory.close();
  }
}

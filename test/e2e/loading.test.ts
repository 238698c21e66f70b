/** Libraries that a running target loads, unloads and loads again, in the same place or elsewhere. */
import { basename } from "node:path";
import { describe, expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const library = (variant: string) =>
  buildFixture("library", { variant, flags: ["-shared", "-fPIC", `-Wl,-soname,library-${variant}`] });
const first = () => library("first.so");
const second = () => library("second.so");
const start = () => UnmanagedChild.start([buildFixture("dlopener"), first(), second()]);

async function ask(child: UnmanagedChild, letters: string): Promise<string> {
  child.send(letters);
  return await child.line();
}

const names: readonly { readonly name: string; readonly image: () => string }[] = [
  { name: "its path", image: first },
  { name: "its file name", image: () => basename(first()) },
  { name: "its short name", image: () => "library-first" },
];
const mechanisms = ["jump", "int3"] as const;

describe.each(names)("an attach point that names a library by $name", ({ image }) => {
  it.each(mechanisms)("waits for it, before its constructors run, %s", async (mechanism) => {
    using child = await start();
    const before = readProcessState(child.pid);
    const probe = `uprobe:${image()}:library_step`;
    await using tracing = await Tracing.armed(
      ["--mechanism", mechanism, "-p", `${child.pid}`],
      `${probe} { @[pid] = count(); } uretprobe:${image()}:library_step { @out = count(); }`,
    );
    expect(tracing.result.err).toBe(
      ["uprobe", "uretprobe"]
        .map(
          (kind) =>
            `note: process ${child.pid}: ${kind}:${image()}:library_step waits until ${first()} is loaded\n`,
        )
        .join(""),
    );
    await ask(child, "o0");
    await ask(child, "k0");
    const { code, map } = await tracing.interrupt();
    // Three calls by its constructor.
    expect({ code, in: map("@"), out: map("@out") }).toEqual({ code: 0, in: { [child.pid]: 13 }, out: 13 });
    expectNoTrace(child.pid, before);
    await ask(child, "k0");
  });
});

it("a library that is never loaded is named at the end", async () => {
  using child = await start();
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(
    ["-q", "-p", `${child.pid}`],
    "uprobe:library-first:library_step { @ = count(); }",
  );
  const { code, err } = await tracing.interrupt();
  expect({ code, err }).toEqual({
    code: 0,
    err: "note: uprobe:library-first:library_step: no image library-first was loaded\n",
  });
  expectUnchanged(child.pid, before);
});

it.each([
  {
    name: "a library that is nowhere",
    probe: "uprobe:library-frist:library_step",
    err: /^trapline: probe: uprobe:library-frist:library_step: no image library-frist is mapped by the process\nhint: /,
  },
  {
    name: "a misspelt library that is mapped",
    probe: "uprobe:lbc:malloc",
    err: /^trapline: probe: uprobe:lbc:malloc: no image lbc is mapped by the process\nhint: did you mean libc/,
  },
  {
    name: "a function that the library does not have",
    probe: "uprobe:library-first:library_stop",
    err: /^trapline: probe: uprobe:library-first:library_stop: .*library-first\.so: .*library_stop.*\nhint: did you mean library_step/,
  },
])("$name is refused", async ({ probe, err }) => {
  using child = await start();
  const result = await runTracing(["-p", `${child.pid}`, "-e", `${probe} { @ = count(); }`]);
  expect({ code: result.code, out: result.out }).toEqual({ code: 1, out: "" });
  expect(result.err).toMatch(err);
});

it("a pattern of images matches those that come later", async () => {
  using child = await start();
  await ask(child, "o0");
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(
    ["-p", `${child.pid}`],
    "uprobe:library-*:library_st* { @[probe] = count(); }",
  );
  await ask(child, "k0");
  await ask(child, "o1");
  await ask(child, "k1");
  const { code, err, map } = await tracing.interrupt();
  expect({ code, err, counts: map("@") }).toEqual({
    code: 0,
    err: "",
    counts: { [`uprobe:${first()}:library_step`]: 10, [`uprobe:${second()}:library_step`]: 13 },
  });
  expectNoTrace(child.pid, before);
});

describe.each(mechanisms)("a probed library that is unloaded, %s", (mechanism) => {
  const arm = (child: UnmanagedChild) =>
    Tracing.armed(
      ["--mechanism", mechanism, "-p", `${child.pid}`],
      "uprobe:library-first:library_step { @ = count(); } uprobe:dlopener:probed { @probed = count(); }",
    );

  it("leaves nothing to be put back, whatever lies in its place", async () => {
    using child = await start();
    await ask(child, "o0");
    await using tracing = await arm(child);
    await ask(child, "t0");
    await ask(child, "k0");
    await ask(child, "c0");
    expect(await ask(child, "m0")).toBe("mapped");
    const calls = Number((await ask(child, "T0")).replace("called ", ""));
    const { code, err, map } = await tracing.interrupt();
    expect({ code, err, steps: map("@"), probed: map("@probed") }).toEqual({
      code: 0,
      err: "",
      steps: 10,
      probed: calls,
    });
  });

  it("is armed again when it comes back, in its place and elsewhere", async () => {
    using child = await start();
    const place = await ask(child, "o0");
    await using tracing = await arm(child);
    await ask(child, "t0");
    await ask(child, "k0");
    await ask(child, "c0");
    expect(await ask(child, "o0")).toBe(place);
    await ask(child, "k0");
    await ask(child, "c0");
    expect(await ask(child, "b0")).toBe("blocked");
    expect(await ask(child, "o0")).not.toBe(place);
    const before = await ask(child, "k0");
    const calls = Number((await ask(child, "T0")).replace("called ", ""));
    const { code, err, map } = await tracing.interrupt();
    // The constructor has run three times since.
    expect({ code, err, steps: map("@"), probed: map("@probed") }).toEqual({
      code: 0,
      err: "",
      steps: 10 + 13 + 3 + 13,
      probed: calls,
    });
    expect(await ask(child, "k0")).toBe(before);
  });

  it("is left alone by whoever cleans up after a dead tracer", async () => {
    using child = await start();
    await ask(child, "o0");
    await using tracing = await arm(child);
    tracing.signal("SIGKILL");
    await tracing.ended();
    await ask(child, "c0");
    await ask(child, "m0");
    const { code, err } = await runTracing(["detach", "-p", `${child.pid}`]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
  });
});

it("a library that comes and goes all the time is counted each time, and takes no more memory for it", async () => {
  using child = await start();
  await using tracing = await Tracing.armed(
    ["-q", "-p", `${child.pid}`],
    "uprobe:library-first:library_step { @ = count(); }",
  );
  await ask(child, "l0");
  const mappings = () => readProcessState(child.pid).mappings.length;
  const before = mappings();
  await ask(child, "l0");
  expect(mappings()).toBe(before);
  const { code, err, map } = await tracing.interrupt();
  expect({ code, err, count: map("@") }).toEqual({ code: 0, err: "", count: 2 * 50 * 13 });
});

it("a session that ends while libraries come and go ends in order", async () => {
  using child = await start();
  for (let round = 0; round < 5; round++) {
    await using tracing = await Tracing.armed(
      ["-q", "-p", `${child.pid}`],
      'uprobe:library-first:library_step { if (@n == 0) { printf("first hit\\n"); } @n = 1; @ = count(); }',
    );
    child.send("l0");
    await tracing.until("first hit");
    const { code, err } = await tracing.interrupt();
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(await child.line()).toBe("looped");
  }
});

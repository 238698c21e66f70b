/** What cannot be done is refused with a message that says why, exit code 1 and an untouched target. */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { instructionOffsets } from "../support/instructions.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing, type TracingResult } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const isRoot = process.getuid?.() === 0;
const asNobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
const count = "uprobe:libc:malloc { @ = count(); }";

function expectRefusal(result: TracingResult, err: string | RegExp): void {
  if (typeof err === "string") expect(result.err).toBe(err);
  else expect(result.err).toMatch(err);
  expect({ code: result.code, out: result.out }).toEqual({ code: 1, out: "" });
}

/** Processes that are no proper target, and what has to be done with them afterwards. */
describe("processes that cannot be attached to", () => {
  it("a number that no process has", async () => {
    expectRefusal(
      await runTracing(["-p", "4194303", "-e", count]),
      "trapline: attach to process 4194303: there is no such process\n",
    );
  });

  it("a zombie", async () => {
    using parent = await UnmanagedChild.start(["sh", "-c", "sleep 0.3 & echo ready; exec sleep 1000"]);
    const children = () => readFileSync(`/proc/${parent.pid}/task/${parent.pid}/children`, "latin1").trim();
    const zombie = Number(children());
    while (!/^State:\s+Z/m.test(readFileSync(`/proc/${zombie}/status`, "latin1")))
      await new Promise((resolve) => setTimeout(resolve, 10));
    expectRefusal(
      await runTracing(["-p", `${zombie}`, "-e", count]),
      `trapline: attach to process ${zombie}: it has ended (zombie) and only waits to be reaped by its parent\n`,
    );
  });

  // In a container there may be none.
  const kernelThread = readdirSync("/proc").find(
    (name) => /^\d+$/.test(name) && readIfThere(`/proc/${name}/comm`).startsWith("kthreadd"),
  );
  it.skipIf(kernelThread === undefined)("a kernel thread", async () => {
    expectRefusal(
      await runTracing(["-p", kernelThread!, "-e", count]),
      `trapline: attach to process ${kernelThread}: it is a kernel thread: there is no user code to probe\n`,
    );
  });

  it("a thread that is not its process's first", async () => {
    using child = await UnmanagedChild.start([buildFixture("compute"), "2"]);
    const tid = readdirSync(`/proc/${child.pid}/task`).find((name) => name !== `${child.pid}`)!;
    expectRefusal(
      await runTracing(["-p", tid, "-e", count]),
      `trapline: attach to process ${tid}: it is a thread of process ${child.pid}; use -p ${child.pid}\n`,
    );
  });

  it.skipIf(!isRoot)("a process of another user", async () => {
    using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
    const before = readProcessState(child.pid);
    expectRefusal(
      await runTracing(["-p", `${child.pid}`, "-e", count], asNobody),
      `trapline: attach to process ${child.pid}: it belongs to user 0 and you are user 65534: run trapline as that user or as root\n`,
    );
    expectUnchanged(child.pid, before);
  });

  it("a process that has a tracer already", async () => {
    using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
    using debugger_ = await UnmanagedChild.start([buildFixture("debugger"), `${child.pid}`]);
    const before = readProcessState(child.pid);
    expectRefusal(
      await runTracing(["-p", `${child.pid}`, "-e", count]),
      `trapline: attach to process ${child.pid}: process ${debugger_.pid} (debugger) traces it already; end that debugger first\n`,
    );
    expectUnchanged(child.pid, before);
    child.send("w");
    expect(await child.line()).toMatch(/^parent /);
  });

  it("a 32-bit program", async () => {
    const path = writeSmallElf32();
    let child: UnmanagedChild;
    try {
      child = await UnmanagedChild.start([path]);
    } catch (error) {
      // A kernel without IA32 emulation does not run it at all.
      expect(String(error)).toMatch(/Exec format error|status 126/);
      return;
    }
    using running = child;
    expectRefusal(
      await runTracing(["-p", `${running.pid}`, "-e", count]),
      `trapline: attach to process ${running.pid}: it runs a 32-bit program; only 64-bit x86 code can be probed\n`,
    );
  });
});

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}

/** An ELF32 program of one segment: writes "ready", then pauses for ever. */
function writeSmallElf32(): string {
  const folder = join(tmpdir(), `trapline-programs-${process.getuid?.() ?? 0}`);
  const path = join(folder, "small-elf32");
  if (existsSync(path)) return path;
  const base = 0x0804_8000;
  const headerBytes = 52 + 32;
  // mov eax,4; mov ebx,1; mov ecx,text; mov edx,6; int 0x80; again: mov eax,29; int 0x80; jmp again
  const code = [
    0xb8, 4, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9, 0, 0, 0, 0, 0xba, 6, 0, 0, 0, 0xcd, 0x80, 0xb8, 29, 0, 0, 0,
    0xcd, 0x80, 0xeb, 0xf7,
  ];
  const file = Buffer.alloc(headerBytes + code.length + 6);
  file.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]);
  file.writeUInt16LE(2, 16); // e_type: executable
  file.writeUInt16LE(3, 18); // e_machine: 386
  file.writeUInt32LE(1, 20);
  file.writeUInt32LE(base + headerBytes, 24); // e_entry
  file.writeUInt32LE(52, 28); // e_phoff
  file.writeUInt16LE(52, 40);
  file.writeUInt16LE(32, 42);
  file.writeUInt16LE(1, 44);
  file.writeUInt32LE(1, 52); // p_type: load
  file.writeUInt32LE(base, 60);
  file.writeUInt32LE(base, 64);
  file.writeUInt32LE(file.length, 68);
  file.writeUInt32LE(file.length, 72);
  file.writeUInt32LE(5, 76); // read, execute
  file.writeUInt32LE(0x1000, 80);
  file.set(code, headerBytes);
  file.writeUInt32LE(base + headerBytes + code.length, headerBytes + 11);
  file.write("ready\n", headerBytes + code.length);
  mkdirSync(folder, { recursive: true });
  writeFileSync(path, file);
  chmodSync(path, 0o755);
  return path;
}

describe("probes that cannot be planted", () => {
  const offsets = () => instructionOffsets(buildFixture("lifecycle"), "probed");
  const cases: readonly {
    readonly name: string;
    readonly args?: readonly string[];
    readonly program: () => string;
    readonly err: RegExp;
  }[] = [
    {
      name: "an image that is neither mapped nor found as a file",
      program: () => "uprobe:libnowhere:f { @ = count(); }",
      err: /^trapline: probe: uprobe:libnowhere:f: no image libnowhere is mapped by the process\nhint: mapped are lifecycle, libc\.so\.6, /,
    },
    {
      name: "an image whose name is nearly right",
      program: () => "uprobe:lifecicle:probed { @ = count(); }",
      err: /no image lifecicle is mapped by the process\nhint: did you mean lifecycle\?\n/,
    },
    {
      name: "a function whose name is nearly right",
      program: () => "uprobe:lifecycle:probd { @ = count(); }",
      err: /^trapline: probe: uprobe:lifecycle:probd: \S+\/lifecycle: no function probd\nhint: did you mean probed\?\n$/,
    },
    {
      name: "a function of another image",
      program: () => "uprobe:lifecycle:pthread_mutex_lock { @ = count(); }",
      err: /: no function pthread_mutex_lock\nhint: it is defined in libc\.so\.6\n$/,
    },
    {
      name: "an offset beyond the function",
      program: () => "uprobe:lifecycle:probed+4096 { @ = count(); }",
      err: /probed\+4096: \S+\/lifecycle: offset 4096 is outside probed, which has \d+ bytes\n$/,
    },
    {
      name: "an address that is no code",
      program: () => "uprobe:lifecycle:0x10 { @ = count(); }",
      err: /lifecycle: address 0x10 is in data, not in code\nhint: addresses are file addresses, as objdump -d shows them\n$/,
    },
    {
      name: "a return probe inside a function",
      program: () => `uretprobe:lifecycle:probed+${offsets()[1]!} { @ = count(); }`,
      err: /^stdin:1:1-\d+: ERROR: invalid place 'probed\+\d+': a return probe takes no offset\n/,
    },
    {
      name: "one probe that is right and one that is wrong",
      program: () =>
        `uprobe:lifecycle:probed { @ = count(); } uprobe:lifecycle:nothing_like_it { @ = count(); }`,
      err: /^trapline: probe: uprobe:lifecycle:nothing_like_it: \S+\/lifecycle: no function nothing_like_it\n$/,
    },
  ];
  it.each(cases)("$name", async ({ args = [], program, err }) => {
    using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
    const before = readProcessState(child.pid);
    const result = await runTracing([...args, "-p", `${child.pid}`, "-e", program()]);
    expectRefusal(result, err);
    expectUnchanged(child.pid, before);
    child.send("w");
    expect(await child.line()).toMatch(/^parent /);
  });

  it("the two instructions around an offset are named", async () => {
    using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
    const [, second, third] = offsets().map((offset) => `probed+0x${offset.toString(16)} (lifecycle)`);
    const inside = offsets()[1]! + 1;
    const result = await runTracing([
      "-p",
      `${child.pid}`,
      "-e",
      `uprobe:lifecycle:probed+${inside} { @ = count(); }`,
    ]);
    expectRefusal(
      result,
      `trapline: probe: uprobe:lifecycle:probed+${inside}: probed+0x${inside.toString(16)} (lifecycle) ` +
        `is inside an instruction; the nearest ones are at ${second} and ${third}\n`,
    );
  });

  it("a jump that is forced where there is no room for one", async () => {
    using child = await UnmanagedChild.start([buildFixture("traps")]);
    const before = readProcessState(child.pid);
    const args = ["-p", `${child.pid}`, "-e", "uprobe:traps:tiny { @ = count(); } interval:ms:1 { exit(); }"];
    expectRefusal(
      await runTracing(["--mechanism", "jump", ...args]),
      /tiny \(traps\) at 0x[0-9a-f]+ cannot take a jump: the function ends at behind_tiny \(traps\), inside the region\nhint: without --mechanism jump it gets what is possible there\n/,
    );
    expectUnchanged(child.pid, before);
    expect((await runTracing(args)).code).toBe(0);
    expectUnchanged(child.pid, before);
  });
});

describe("programs that are not accepted", () => {
  const cases: readonly { readonly name: string; readonly program: string; readonly err: RegExp }[] = [
    {
      name: "a syntax error",
      program: "uprobe:libc:malloc { @ = count( }",
      err: /^stdin:1:\d+-\d+: ERROR: syntax error.*\nuprobe:libc:malloc \{ @ = count\( \}\n +~+\n/,
    },
    {
      name: "a type error",
      program: 'uprobe:libc:malloc { @ = count(); @ = "text"; }',
      err: /^stdin:1:\d+-\d+: ERROR: Type mismatch for @.*\nuprobe.*\n +~+\n/,
    },
    {
      name: "an unknown function",
      program: "uprobe:libc:malloc { @ = cuont(); }",
      err: /^stdin:1:26-31: ERROR: Unknown function: 'cuont'\nuprobe.*\n +~+\nHINT: did you mean 'count'\?\n$/,
    },
    {
      name: "a construct of a later version",
      program: "kprobe:vfs_read { @ = count(); }",
      err: /^stdin:1:1-16: ERROR: probe type kprobe is not supported yet\nkprobe.*\n~+\nHINT: supported: BEGIN, END, interval, uprobe, uretprobe\n$/,
    },
    {
      name: "a loop without an end",
      program: "uprobe:libc:malloc { $i = 0; while (1) { $i++; } @ = $i; }",
      err: /^stdin:1:\d+: ERROR: program uprobe:libc:malloc: the verifier rejects instruction \d+: BPF program is too large\. .*\nHINT: every loop must have an end that can be proved; count up to a constant\n$/,
    },
    {
      name: "a loop whose end depends on the program that is probed",
      program: "uprobe:libc:malloc { $i = 0; while ($i < arg0) { $i++; } @ = $i; }",
      err: /ERROR: program uprobe:libc:malloc: the verifier rejects instruction \d+: .*\nHINT: every loop must have an end that can be proved; count up to a constant\n$/,
    },
  ];
  it.each(cases)("$name", async ({ program, err }) => {
    using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
    const before = readProcessState(child.pid);
    expectRefusal(await runTracing(["-p", `${child.pid}`, "-e", program]), err);
    expectUnchanged(child.pid, before);
  });

  it("no process is given", async () => {
    expectRefusal(
      await runTracing(["-e", count]),
      "trapline: trace: uprobe:libc:malloc: no process is given\nhint: name one with -p PID, or start a command with -c CMD\n",
    );
  });
});

describe("SIGTRAP", () => {
  const forced = ["--mechanism", "int3"];
  const program = "uprobe:traps:probed { @ = count(); }";

  it("a thread that blocks it keeps int3 away, and a jump is taken", async () => {
    using child = await UnmanagedChild.start([buildFixture("traps"), "block"]);
    const before = readProcessState(child.pid);
    const tid = readdirSync(`/proc/${child.pid}/task`).find((name) => name !== `${child.pid}`)!;
    expectRefusal(
      await runTracing([...forced, "-p", `${child.pid}`, "-e", program]),
      new RegExp(`thread ${tid} blocks SIGTRAP: an int3 would kill the process`),
    );
    expectUnchanged(child.pid, before);
    expectRefusal(
      await runTracing(["-p", `${child.pid}`, "-e", "uprobe:traps:stuck { @ = count(); }"]),
      new RegExp(`thread ${tid} blocks SIGTRAP`),
    );
    expectUnchanged(child.pid, before);
    // One can hold a jump, the other a punned one.
    const jumps = "uprobe:traps:probed, uprobe:traps:tiny { @ = count(); }";
    await using tracing = await Tracing.armed(["-p", `${child.pid}`], jumps);
    child.send("\n");
    await child.line();
    expect((await tracing.interrupt()).map("@")).toBe(200);
  });

  it.each(["ignore", "handle"])(
    "a process that does %s it keeps doing so, during and after int3",
    async (what) => {
      using child = await UnmanagedChild.start([buildFixture("traps"), what]);
      child.send(what === "handle" ? "\n" : "");
      if (what === "handle") expect(await child.line()).toMatch(/ 2$/);
      const before = readProcessState(child.pid);
      await using tracing = await Tracing.armed([...forced, "-p", `${child.pid}`], program);
      child.send("\n");
      expect(await child.line()).toMatch(what === "handle" ? / 4$/ : / 0$/);
      if (what === "ignore") process.kill(child.pid, "SIGTRAP");
      const result = await tracing.interrupt();
      expect({ code: result.code, err: result.err, count: result.map("@") }).toEqual({
        code: 0,
        err: "",
        count: 100,
      });
      expectUnchanged(child.pid, before);
      if (what === "ignore") process.kill(child.pid, "SIGTRAP");
      child.send("\n");
      expect(await child.line()).toMatch(what === "handle" ? / 6$/ : / 0$/);
    },
  );
});

describe("seccomp", () => {
  const work = async (child: UnmanagedChild) => {
    child.send("\n");
    return await child.line();
  };

  it.skipIf(!isRoot)(
    "a filter that forbids everything does not keep root from counting by jump",
    async () => {
      using child = await UnmanagedChild.start([buildFixture("filtered")]);
      const expected = await work(child);
      const before = readProcessState(child.pid);
      await using tracing = await Tracing.armed(
        ["-p", `${child.pid}`],
        "uprobe:filtered:probed { @[tid] = sum(arg1); @h = hist(arg1); @t = max(nsecs); } uretprobe:filtered:probed { @out = count(); }",
      );
      expect(await work(child)).toBe(expected);
      const result = await tracing.interrupt();
      expect({ code: result.code, err: result.err, out: result.map("@out") }).toEqual({
        code: 0,
        err: "",
        out: 1000,
      });
      expect(result.map("@")).toEqual({ [child.pid]: 499_500 });
      expectUnchanged(child.pid, before);
      expect(await work(child)).toBe(expected);
    },
  );

  const refused = [
    {
      name: "int3",
      args: ["--mechanism", "int3"],
      program: "uprobe:filtered:probed { @ = count(); }",
      err: /the trap handler of int3 makes a system call/,
    },
    {
      name: "a program that reads user memory",
      args: [],
      program: "uprobe:filtered:probed { @[str(arg0)] = count(); }",
      err: /makes system calls that its filter may forbid/,
    },
    {
      name: "a program that asks for the command's name",
      args: [],
      program: "uprobe:filtered:probed { @[comm] = count(); }",
      err: /makes system calls that its filter may forbid/,
    },
    {
      name: "a private stack",
      args: ["--gate", "stack"],
      program: "uprobe:filtered:probed { @ = count(); }",
      err: /--gate stack asks the kernel where alternate stacks are.*\nhint: use --gate none\n/,
    },
    {
      name: "one probe that is strict",
      args: ["--gate", "uprobe:filtered:probed=strict"],
      program: "uprobe:filtered:probed { @ = count(); }",
      err: /--gate strict makes two system calls a hit/,
    },
  ];
  it.each(refused)("$name is refused", async ({ args, program, err }) => {
    using child = await UnmanagedChild.start([buildFixture("filtered")]);
    const before = readProcessState(child.pid);
    expectRefusal(await runTracing([...args, "-p", `${child.pid}`, "-e", program]), err);
    expectUnchanged(child.pid, before);
    await work(child);
  });

  it.skipIf(!isRoot)("a user who may not suspend a filter is refused", async () => {
    using child = await UnmanagedChild.start([...asNobody, buildFixture("filtered")]);
    const before = readProcessState(child.pid);
    expectRefusal(
      await runTracing(["-p", `${child.pid}`, "-e", "uprobe:filtered:probed { @ = count(); }"], asNobody),
      /seccomp/,
    );
    expectUnchanged(child.pid, before);
    await work(child);
  });
});

it.skipIf(!isRoot)("a user who is not root traces a process of his own", async () => {
  using child = await UnmanagedChild.start([...asNobody, buildFixture("traps")]);
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(
    ["-p", `${child.pid}`],
    "uprobe:traps:probed { @[uid, comm] = count(); }",
    asNobody,
  );
  child.send("\n");
  await child.line();
  const result = await tracing.interrupt();
  expect({ code: result.code, err: result.err, count: result.map("@") }).toEqual({
    code: 0,
    err: "",
    count: { "65534,traps": 100 },
  });
  expectUnchanged(child.pid, before);
});

import { describe, expect, it } from "vitest";
import { buildBpfFixture } from "../../../test/support/bpf-objects.ts";
import { recordIo } from "../../../test/support/session-io.ts";
import { disassembleObject } from "./bpf-disasm.ts";
import { verifyObject } from "./bpf-verify.ts";

async function verify(section: string | undefined) {
  const io = recordIo();
  const code = await verifyObject({ path: buildBpfFixture("maps"), section }, io);
  return { code, out: io.outText(), err: io.errText() };
}

async function disassemble(section: string, jit: boolean, fixture = "maps") {
  const io = recordIo();
  const code = await disassembleObject({ path: buildBpfFixture(fixture), section, jit }, io);
  return { code, out: io.outText(), err: io.errText() };
}

describe("bpf verify", () => {
  it("accepts a section by its name", async () => {
    const { code, out, err } = await verify("uprobe/libc.so.6:malloc");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(/^program on_malloc \(uprobe\/libc\.so\.6:malloc\): accepted: \d+ instructions/);
  });

  it("rejects with the log, between the lines of the source", async () => {
    const { code, out, err } = await verify("bad_read");
    expect({ code, out }).toEqual({ code: 1, out: "" });
    expect(err).toMatch(/^; .* @ maps\.bpf\.c:\d+\n0: \(79\) r1 = \*\(u64 \*\)\(r1 \+112\)\n/);
    expect(err).toMatch(/^; return \*outside; @ maps\.bpf\.c:\d+\n1: \(79\)/m);
    expect(err).toMatch(
      /trapline: bpf verify: program bad_read \(uprobe\): maps\.bpf\.c:\d+:\d+: the verifier rejects instruction 1: R1 invalid mem access 'scalar'\n$/,
    );
  });

  it("refuses what belongs to the kernel by its name", async () => {
    expect(await verify("kprobe/do_sys_openat2")).toEqual({
      code: 1,
      out: "",
      err: "trapline: bpf verify: program in_kernel (kprobe/do_sys_openat2): kprobe programs belong to the kernel; in a process there are uprobe, uretprobe and usdt\n",
    });
  });

  it("fails if one of all programs is rejected", async () => {
    expect((await verify(undefined)).code).toBe(1);
  });

  it("leaves out what is not loaded unless asked for, and not possible", async () => {
    const verifyFeatures = async (section: string | undefined) => {
      const io = recordIo();
      const code = await verifyObject({ path: buildBpfFixture("features"), section }, io);
      return { code, err: io.errText() };
    };
    const reason =
      "kprobe programs belong to the kernel; in a process there are uprobe, uretprobe and usdt\n";
    expect(await verifyFeatures(undefined)).toEqual({
      code: 0,
      err: `note: program not_wanted (?kprobe/do_nanosleep) is left out: ${reason}`,
    });
    expect(await verifyFeatures("not_wanted")).toEqual({
      code: 1,
      err: `trapline: bpf verify: program not_wanted (?kprobe/do_nanosleep): ${reason}`,
    });
  });

  it("names the sections when one is not there", async () => {
    await expect(verify("uprobe/nothing")).rejects.toMatchObject({
      code: "no-program",
      hint: expect.stringContaining("uprobe/libc.so.6:malloc, uretprobe//usr/lib/libc.so.6:malloc"),
    });
  });

  it.each([
    { path: "/nowhere.o", message: "bpf verify: /nowhere.o: there is no such file" },
    { path: "/tmp", message: "bpf verify: /tmp: it is a directory" },
    { path: "/etc/passwd", message: "bpf verify: /etc/passwd: it is no ELF file" },
  ])("says what is wrong with $path", async ({ path, message }) => {
    await expect(verifyObject({ path, section: undefined }, recordIo())).rejects.toThrow(message);
  });
});

describe("bpf disasm", () => {
  it("shows functions, lines and the names of maps", async () => {
    const { code, out, err } = await disassemble("calls", false);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(
      /^program calls \(uprobe\): \d+ instructions\ncalls:\n; .* @ maps\.bpf\.c:\d+\n {4}0: /,
    );
    expect(out).toMatch(/^triple:$/m);
    expect(out).toMatch(/: r1 = map\[\d\]\[0\]\+\d+ \(\.data\)$/m);
    expect(out).toMatch(/: call pc\+\d+ \(twice\)$/m);
  });

  it("shows the machine code beside each instruction", async () => {
    const { code, out } = await disassemble("on_malloc", true);
    expect(code).toBe(0);
    expect(out).toMatch(/: call bpf_map_lookup_elem#1 +[0-9a-f]+: e8 .* call 0x/);
    expect(out).toMatch(/: exit +.*\n(.*\n)? +[0-9a-f]+: c3 +ret$/m);
  });

  it("shows the machine code of each function of a program that makes tail calls", async () => {
    const { code, out } = await disassemble("begin", true, "features");
    expect(code).toBe(0);
    const functions = out.split(/^(\w+):$/m);
    const names = functions.filter((_, index) => index % 2 === 1);
    expect(names).toEqual(["begin", "add", "visit"]);
    for (const name of names)
      expect(functions[functions.indexOf(name) + 1]).toMatch(/^ +\d+: exit +[0-9a-f]+: [0-9a-f]{2} /m);
    expect(out).toMatch(/: r2 = subprog\[\+\d+\] \(add\)/);
    expect(out).toMatch(/: call bpf_tail_call#12 +[0-9a-f]+: /);
  });

  it("says why a program has no machine code", async () => {
    const { code, out, err } = await disassemble("bad_read", true);
    expect(code).toBe(1);
    expect(out).toMatch(/^ {4}0: r1 = \*\(u64 \*\)\(r1 \+112\)$/m);
    expect(err).toBe(
      "trapline: bpf disasm: program bad_read (uprobe): not compiled: the verifier rejects instruction 1: R1 invalid mem access 'scalar'\n",
    );
  });
});

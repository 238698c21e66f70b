import { describe, expect, it } from "vitest";
import { recordIo } from "../../../test/support/session-io.ts";
import { encodeInsns } from "../../bpf/index.ts";
import { parseProgram } from "../../bpf/text.ts";
import { executeBpf } from "./bpf-exec.ts";

function hexOf(text: string): string {
  const parsed = parseProgram(text);
  if (parsed.kind !== "parsed") throw new Error(JSON.stringify(parsed));
  return Buffer.from(encodeInsns(parsed.insns)).toString("hex");
}

async function execute(
  bytecode: string,
  options: { memory?: string; interpret?: boolean; unverified?: boolean } = {},
): Promise<{ code: number; out: string; err: string }> {
  const io = recordIo();
  const code = await executeBpf(
    { bytecode, memory: "", interpret: false, unverified: false, ...options },
    io,
  );
  return { code, out: io.outText(), err: io.errText() };
}

const results: readonly {
  readonly name: string;
  readonly text: string;
  readonly memory?: string;
  readonly out: string;
}[] = [
  { name: "a constant", text: "r0 = 42\nexit", out: "0x2a\n" },
  { name: "all 64 bits", text: "r0 = -1\nexit", out: "0xffffffffffffffff\n" },
  { name: "no memory has no length", text: "r0 = r2\nexit", out: "0x0\n" },
  { name: "the length of memory", text: "r0 = r2\nexit", memory: "01 02\n03", out: "0x3\n" },
  { name: "the last byte of memory", text: "r0 = *(u8 *)(r1 +2)\nexit", memory: "aabbcc", out: "0xcc\n" },
  {
    name: "memory is written and read again",
    text: "r3 = 7\n*(u32 *)(r1 +4) = r3\nr0 = *(u64 *)(r1 +0)\nexit",
    memory: "01000000ffffffff",
    out: "0x700000001\n",
  },
  {
    name: "address and length change places",
    text: "r3 = r1\nr1 = r2\nr2 = r3\nr0 = *(u8 *)(r2 +0)\nr0 += r1\nexit",
    memory: "05ff",
    out: "0x7\n",
  },
  {
    name: "memory is still there behind a helper",
    text: "r6 = r1\nr7 = r2\ncall bpf_get_prandom_u32#7\nr0 = *(u8 *)(r6 +1)\nr0 += r7\nexit",
    memory: "0104",
    out: "0x6\n",
  },
  {
    name: "the stack beside memory",
    text: "r3 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -256) = r3\nr0 = *(u64 *)(r10 -256)\nexit",
    memory: "2a00000000000000",
    out: "0x2a\n",
  },
  {
    name: "a shift by more than the width is masked",
    text: "r0 = 1\nr4 = 65\nr0 <<= r4\nexit",
    out: "0x2\n",
  },
];

/** What RFC 9669 allows and the kernel refuses, and what takes more than one function. */
const functions: typeof results = [
  {
    name: "a local function",
    text: "r1 = 20\nr2 = 22\ncall pc+1\nexit\nr0 = r1\nr0 += r2\nexit",
    out: "0x2a\n",
  },
  {
    name: "eight frames of 512 bytes",
    text: `${"*(u64 *)(r10 -512) = 1\ncall pc+1\nexit\n".repeat(7)}*(u64 *)(r10 -512) = 9\nr0 = *(u64 *)(r10 -512)\nexit`,
    out: "0x9\n",
  },
  {
    name: "registers that a function must give back",
    text: "r6 = 5\ncall pc+2\nr0 = r6\nexit\nr6 = 1\nr0 = 0\nexit",
    out: "0x5\n",
  },
  {
    name: "a callback",
    text: "*(u64 *)(r10 -8) = 0\nr1 = 10\nr2 = subprog[+7]\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop#181\nr0 = *(u64 *)(r10 -8)\nexit\nr3 = *(u64 *)(r2 +0)\nr3 += r1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit",
    out: "0x2d\n",
  },
  { name: "code that nothing leads to", text: "r0 = 3\nexit\nr0 = 4\nexit", out: "0x3\n" },
  {
    name: "a stack access that is not aligned",
    text: "*(u64 *)(r10 -16) = -1\n*(u64 *)(r10 -8) = 0\nr0 = *(u32 *)(r10 -10)\nexit",
    out: "0xffff\n",
  },
];

describe("running bytecode", () => {
  it.each(functions)("$name", async ({ text, out }) => {
    for (const interpret of [false, true])
      expect(await execute(hexOf(text), { interpret })).toEqual({ code: 0, out, err: "" });
  });

  it("shows on standard error what a program prints", async () => {
    // "n=%d\n" and its NUL.
    const text = hexOf(
      "r1 = 0xa64253d6e ll\n*(u64 *)(r10 -8) = r1\nr1 = r10\nr1 += -8\nr2 = 6\nr3 = 42\nr4 = 0\nr5 = 0\ncall bpf_trace_printk#6\nr0 = 0\nexit",
    );
    for (const interpret of [false, true])
      expect(await execute(text, { interpret })).toEqual({
        code: 0,
        out: "0x0\n",
        err: expect.stringMatching(/-\d+ +\[\d+\] \.{5} +\d+\.\d{6}: bpf_trace_printk: n=42\n$/),
      });
  });

  it.each(results)("$name", async ({ text, memory = "", out }) => {
    for (const interpret of [false, true])
      expect(await execute(hexOf(text), { memory, interpret })).toEqual({ code: 0, out, err: "" });
  });

  it("takes white space between digits and lines", async () => {
    expect(await execute("b7 00 00 00\n2a000000\n\n\t9500 0000 0000 0000\n")).toMatchObject({
      out: "0x2a\n",
    });
  });
});

describe("refusing bytecode", () => {
  const read3 = hexOf("r0 = *(u8 *)(r1 +3)\nexit");

  it("says what the verifier says, with the path", async () => {
    expect(await execute(read3, { memory: "aabbcc" })).toEqual({
      code: 1,
      out: "",
      err: expect.stringMatching(
        /^0: \(71\) r0 = \*\(u8 \*\)\(r1 \+3\)\n[\s\S]*trapline: bpf exec: the verifier rejects instruction 0: invalid access to memory/,
      ),
    });
  });

  it("interprets it all the same when asked to, under its own checks", async () => {
    const { code, out, err } = await execute(read3, { memory: "aabbcc", unverified: true });
    expect({ code, out }).toEqual({ code: 1, out: "" });
    expect(err).toMatch(/^trapline: bpf exec: fault at instruction 0: read of 1 bytes/);
    const unwritten = hexOf("r0 = *(u64 *)(r10 -8)\nexit");
    expect((await execute(unwritten)).code).toBe(1);
    expect(await execute(unwritten, { unverified: true })).toEqual({ code: 0, out: "0x0\n", err: "" });
  });

  it.each([
    { name: "a letter that is no digit", bytecode: "zz", memory: "", message: /bytecode: "z" is no hex/ },
    { name: "half a byte", bytecode: "950", memory: "", message: /bytecode: 3 hex digits are no whole/ },
    { name: "half an instruction", bytecode: "95000000", memory: "", message: /4 bytes are not a multiple/ },
    { name: "wrong memory", bytecode: "", memory: "0", message: /memory: 1 hex digits/ },
  ])("$name", async ({ bytecode, memory, message }) => {
    await expect(execute(bytecode, { memory })).rejects.toThrow(message);
  });
});

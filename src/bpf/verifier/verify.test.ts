import { describe, expect, it } from "vitest";
import { acceptedFunctionCases, rejectedFunctionCases } from "./test-function-cases.ts";
import { acceptedMapCases, rejectedMapCases } from "./test-map-cases.ts";
import { assembleCase } from "./test-text.ts";
import { type VerifyOptions, verifyProgram } from "./verify.ts";
import { acceptedCases, caseMaps, lookup, rejectedCases } from "./verify-cases.ts";

/** Stack that was never written may not be read unless a case says otherwise. */
const strict: VerifyOptions = { limits: { uninitStack: "refuse" } };

function verify(text: string, options: VerifyOptions = strict) {
  return verifyProgram({ insns: assembleCase(text) }, caseMaps, options);
}

describe("verifier", () => {
  it.each([...acceptedCases, ...acceptedFunctionCases, ...acceptedMapCases])("accepts $name", ({ text }) => {
    const verdict = verify(text);
    expect(verdict.kind === "rejected" ? verdict.log : verdict.kind).toBe("accepted");
  });

  it.each([...rejectedCases, ...rejectedFunctionCases, ...rejectedMapCases])(
    "rejects $name",
    ({ text, message }) => {
      const verdict = verify(text);
      expect(verdict).toMatchObject({ kind: "rejected", message });
      if (verdict.kind === "rejected") expect(verdict.log).toContain(message);
    },
  );
});

describe("proof", () => {
  it("lists what the program uses", () => {
    const verdict = verify(`
      r6 = r1
      r7 = *(u64 *)(r6 +112)
      r8 = *(u32 *)(r6 +104)
      call bpf_get_attach_cookie
      ${lookup}
      r1 = map[3]
      r2 = r10
      r2 += -24
      *(u64 *)(r10 -24) = r7
      r3 = r10
      r3 += -8
      r4 = 0
      call bpf_map_update_elem
      r0 = 0
      exit`);
    expect(verdict).toMatchObject({
      kind: "accepted",
      proof: {
        stackBytes: 24,
        ctxReads: new Set([112, 104, 120]),
        helpers: new Set([174, 1, 2]),
        mapAtCall: new Map([
          [9, 1],
          [18, 3],
        ]),
        deadInsns: new Set(),
      },
    });
  });

  it("names the instructions that a decided branch cuts off", () => {
    const verdict = verify("r0 = 1\nif r0 == 1 goto +2\nr1 = 5 ll\nexit");
    expect(verdict).toMatchObject({ kind: "accepted", proof: { deadInsns: new Set([2, 3]) } });
  });

  it("counts stack that is only passed to a helper", () => {
    const verdict = verify("r1 = r10\nr1 += -40\nr2 = 16\ncall bpf_get_current_comm\nr0 = 0\nexit");
    expect(verdict).toMatchObject({ kind: "accepted", proof: { stackBytes: 40 } });
  });

  it("takes memory of a known size as r1", () => {
    const options: VerifyOptions = { entry: { kind: "memory", lenBytes: 16 } };
    expect(verify("*(u64 *)(r1 +8) = 1\nr0 = r2\nexit", options).kind).toBe("accepted");
    expect(verify("r0 = *(u8 *)(r1 +16)\nexit", options)).toMatchObject({
      message: "invalid access to memory, mem_size=16 off=16 size=1",
    });
  });
});

describe("proof of several functions", () => {
  it("lists the functions that are reached, with the stack of each", () => {
    const verdict = verify(
      "*(u64 *)(r10 -16) = 0\nr1 = r10\nr1 += -24\ncall &f\nr1 = 3\nr2 = &cb\nr3 = 0\nr4 = 0\ncall bpf_loop\nexit\n" +
        "f: *(u64 *)(r1 +0) = 1\n*(u32 *)(r10 -4) = 1\nr0 = 0\nexit\ncb: r0 = 0\nexit\ndead: r0 = 0\nexit",
      { limits: { unreachable: "allow" } },
    );
    expect(verdict).toMatchObject({
      kind: "accepted",
      proof: {
        stackBytes: 24,
        subprograms: [
          { start: 0, end: 11, stackBytes: 24, isCallback: false },
          { start: 11, end: 15, stackBytes: 4, isCallback: false },
          { start: 15, end: 19, stackBytes: 0, isCallback: true },
        ],
        callbackAtCall: new Map([[9, 15]]),
        deadInsns: new Set([17, 18]),
      },
    });
  });

  it("says what is known at calls", () => {
    const verdict = verify(
      "*(u32 *)(r10 -4) = 0\nr6 = r1\nr1 = map[10]\nr2 = r10\nr2 += -4\ncall bpf_map_lookup_elem\nif r0 == 0 goto out\n" +
        "*(u64 *)(r10 -16) = 0\nr1 = r0\nr2 = r10\nr2 += -16\ncall bpf_map_delete_elem\n" +
        "r1 = r10\nr1 += -16\nr2 = 8\nr3 = map[13][0]+0\ncall bpf_strncmp\n" +
        "r5 = *(u64 *)(r6 +0)\nr5 &= 7\nr1 = r6\nr2 = map[11]\nr3 = 0\nr4 = r10\nr4 += -16\ncall bpf_perf_event_output\n" +
        "r1 = r6\nr2 = map[12]\nr3 = 0\ncall bpf_get_stackid\nout: r0 = 0\nexit",
    );
    expect(verdict).toMatchObject({
      kind: "accepted",
      proof: {
        mapAtCall: new Map([
          [6, 10],
          [27, 11],
          [32, 12],
        ]),
        outerMapAtCall: new Map([[12, 10]]),
        stringAtCall: new Map([[18, new TextEncoder().encode("%d %s")]]),
        recordBytes: new Map([[11, 7]]),
        ctxReads: new Set([0, 32, 128, 152, 168]),
      },
    });
  });
});

const limited = (text: string, limits: VerifyOptions["limits"]) => {
  const verdict = verify(text, { limits: limits! });
  return verdict.kind === "accepted" ? "accepted" : verdict.message;
};

describe("limits", () => {
  it.each([
    { name: "a number", text: "r0 = *(u64 *)(r10 -8)\nexit", verdict: "accepted" },
    {
      name: "no pointer",
      text: "r1 = *(u64 *)(r10 -8)\nr0 = *(u64 *)(r1 +0)\nexit",
      verdict: "R1 invalid mem access 'scalar'",
    },
    {
      name: "no small number",
      text: "r2 = *(u32 *)(r10 -8)\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit",
      verdict: "R1 unbounded memory access, make sure to bounds check any such access",
    },
    {
      name: "a key",
      text: "r1 = map[1]\nr2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\nr0 = 0\nexit",
      verdict: "accepted",
    },
  ])("takes stack that was never written for $name", ({ text, verdict }) => {
    expect(limited(text, { uninitStack: "allow" })).toBe(verdict);
    expect(limited(text, {})).toBe(verdict);
    expect(limited(text, { uninitStack: "refuse" })).toContain("invalid read from stack");
  });

  it("allows as much stack as told", () => {
    const nested = "*(u64 *)(r10 -512) = 0\ncall &f\nexit\nf: *(u64 *)(r10 -512) = 0\nr0 = 0\nexit";
    expect(limited(nested, { stackBytes: 1024 })).toBe("accepted");
    expect(limited(nested, { stackBytes: 1023 })).toBe("combined stack size of 2 calls is 1024. Too large");
  });

  it("lets unreachable instructions be, but looks at their form", () => {
    expect(limited("r0 = 0\nexit\nr0 = 1\nexit", { unreachable: "allow" })).toBe("accepted");
    expect(limited("r0 = 0\nexit\nr0 = 1", { unreachable: "allow" })).toBe("last insn is not an exit or jmp");
    expect(limited("r0 = 0\nexit\ngoto +5\nexit", { unreachable: "allow" })).toBe(
      "jump out of range from insn 2 to 8",
    );
    expect(limited("r0 = 0\nexit\n.8byte 0xff\nexit", { unreachable: "allow" })).toBe("unknown opcode ff");
  });

  it.each([
    {
      name: "reads what was stored across two slots",
      text: "*(u64 *)(r10 -16) = 0\n*(u64 *)(r10 -8) = 0\nr1 = 7\n*(u64 *)(r10 -12) = r1\nr0 = *(u64 *)(r10 -12)\nexit",
      verdict: "accepted",
    },
    {
      name: "forgets a number of which a part was overwritten",
      text: "*(u64 *)(r10 -8) = 1\n*(u64 *)(r10 -16) = 1\n*(u32 *)(r10 -10) = -1\nr2 = *(u64 *)(r10 -8)\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit",
      verdict: "R1 unbounded memory access, make sure to bounds check any such access",
    },
    {
      name: "forgets a pointer of which a part was overwritten",
      text: "*(u64 *)(r10 -8) = r1\n*(u16 *)(r10 -9) = 0\nr1 = *(u64 *)(r10 -8)\nr0 = *(u64 *)(r1 +0)\nexit",
      verdict: "R1 invalid mem access 'scalar'",
    },
    {
      name: "takes a pointer that is stored across two slots for a number",
      text: "*(u64 *)(r10 -12) = r1\nr1 = *(u64 *)(r10 -12)\nr0 = *(u64 *)(r1 +0)\nexit",
      verdict: "R1 invalid mem access 'scalar'",
    },
    {
      name: "knows a zero in the middle of a slot",
      text: "*(u32 *)(r10 -6) = 0\nr2 = *(u32 *)(r10 -6)\nr1 = map[0][0]+63\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit",
      verdict: "accepted",
    },
    {
      name: "finds the byte that was never written",
      text: "*(u32 *)(r10 -8) = 0\nr0 = *(u32 *)(r10 -6)\nexit",
      verdict: "invalid read from stack off -6+2 size 4",
    },
    {
      name: "keeps atomic ones aligned",
      text: "*(u64 *)(r10 -16) = 0\n*(u64 *)(r10 -8) = 0\nr1 = 1\nlock *(u64 *)(r10 -12) += r1\nr0 = 0\nexit",
      verdict: "misaligned stack access off 0+0+-12 size 8",
    },
    {
      name: "stays inside the stack",
      text: "*(u64 *)(r10 -4) = 0\nr0 = 0\nexit",
      verdict: "invalid write to stack R10 off=-4 size=8",
    },
  ])("with unaligned stack accesses $name", ({ text, verdict }) => {
    expect(limited(text, { unalignedStack: true, uninitStack: "refuse" })).toBe(verdict);
  });
});

describe("log", () => {
  it("shows the path, what was known, and the message", () => {
    const verdict = verify(
      "r2 = *(u64 *)(r1 +0)\nr2 &= 127\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit",
    );
    expect(verdict.kind === "rejected" && verdict.log).toBe(
      [
        "0: (79) r2 = *(u64 *)(r1 +0)",
        "1: (57) r2 &= 127",
        "2: (18) r1 = map[0][0]+0",
        "4: (0f) r1 += r2",
        "5: (71) r0 = *(u8 *)(r1 +0)",
        "R1=map_value(map=counts,ks=4,vs=64,smin=0,smax=127,var_off=(0x0; 0x7f)) " +
          "R2=scalar(smin=0,smax=127,umax=127,smin32=0,smax32=127,umax32=127,var_off=(0x0; 0x7f)) R10=fp0",
        "invalid access to map value, value_size=64 off=127 size=1: R1 max value is outside of the allowed memory range",
        "processed 5 insns",
        "",
      ].join("\n"),
    );
  });
});

describe("log of several functions", () => {
  it("shows the frames of all functions that are running", () => {
    const verdict = verify(
      "r6 = 7\nr1 = r10\nr1 += -8\ncall &f\nexit\nf: *(u64 *)(r1 +0) = 1\nr0 = r9\nexit",
    );
    expect(verdict.kind === "rejected" && verdict.log).toBe(
      [
        "func#0 @0",
        "func#1 @5",
        "0: (b7) r6 = 7",
        "1: (bf) r1 = r10",
        "2: (07) r1 += -8",
        "3: (85) call pc+1",
        "5: (7a) *(u64 *)(r1 +0) = 1",
        "6: (bf) r0 = r9",
        "caller:",
        " R6=7 R10=fp0 fp-8=1",
        "callee:",
        " frame1: R1=fp[0]-8 R10=fp0",
        "R9 !read_ok",
        "processed 6 insns",
        "",
      ].join("\n"),
    );
  });
});

const visits = (text: string) => {
  const verdict = verify(text);
  return verdict.kind === "accepted" ? verdict.proof.visited : verdict.message;
};

const loop = (count: number) =>
  `r6 = r1\nr7 = 0\nr8 = 0\ntop: r1 = *(u64 *)(r6 +0)\nif r1 == 3 goto +1\nr8 += 5\nr7 += 1\nif r7 < ${count} goto top\nr0 = r8\nexit`;

describe("cost", () => {
  it("joins branches that decide nothing later", () => {
    const diamonds = Array.from(
      { length: 40 },
      (_, i) => `r1 = *(u64 *)(r6 +0)\nif r1 == ${i} goto +1\nr7 += ${i}\n`,
    );
    expect(visits(`r6 = r1\nr7 = 0\n${diamonds.join("")}r0 = r7\nexit`)).toBeLessThan(1000);
  });

  it("walks a loop with a branch in its body in time proportional to its count", () => {
    expect(visits(loop(100))).toBeLessThan(2500);
    expect(visits(loop(1000))).toBeLessThan(25_000);
  });

  const handOn = "r2 = &cb\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop\n";
  const loopOnce = `r1 = 100\n${handOn}`;
  const use = "r1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit";

  // The path that is fine is walked first; what differs on the other one must keep it from ending where they join.
  it.each([
    {
      name: "a number that becomes an address",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 64\nif r3 == 0 goto join\nr2 = 0\njoin: ${use}`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that is copied, changed and becomes an address",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 63\nif r3 == 0 goto join\nr2 = 0\njoin: r5 = r2\nr5 += 1\nr2 = r5\n${use}`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that passes through the stack",
      text: `r3 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -8) = 64\nif r3 == 0 goto join\n*(u64 *)(r10 -8) = 0\njoin: r2 = *(u64 *)(r10 -8)\n${use}`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "one byte of a number on the stack",
      text: `r3 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -8) = 0\n*(u8 *)(r10 -6) = 64\nif r3 == 0 goto join\n*(u8 *)(r10 -6) = 0\njoin: r2 = *(u8 *)(r10 -6)\n${use}`,
      message: "invalid access to map value, value_size=64 off=255 size=1",
    },
    {
      name: "a number that decides a branch",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 1\nif r3 == 0 goto join\nr2 = 0\njoin: if r2 == 0 goto fine\nr0 = *(u64 *)(r10 -8)\nfine: r0 = 0\nexit`,
      message: "invalid read from stack off -8+0 size 8",
    },
    {
      name: "whether a slot was written",
      text: `r3 = *(u64 *)(r1 +0)\nif r3 == 0 goto join\n*(u64 *)(r10 -8) = 0\njoin: r0 = *(u64 *)(r10 -8)\nexit`,
      message: "invalid read from stack off -8+0 size 8",
    },
    {
      name: "whether two numbers are copies",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = *(u64 *)(r1 +8)\nr5 = *(u64 *)(r1 +16)\nif r3 == 0 goto join\nr5 = r2\njoin: r0 = 0\nif r5 > 63 goto end\n${use}\nend: exit`,
      message: "math between map_value pointer and register with unbounded min value is not allowed",
    },
    {
      name: "a size argument",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 65\nif r3 == 0 goto join\nr2 = 8\njoin: r1 = map[0][0]+0\nr3 = 0\ncall bpf_probe_read_user\nr0 = 0\nexit`,
      message: "invalid access to map value, value_size=64 off=0 size=65",
    },
    {
      name: "whether a pointer was checked",
      text: `${lookup}\nr6 = r0\nr7 = 0\nif r6 == 0 goto join\nr7 = 1\njoin: if r7 == 1 goto fine\nr6 = *(u64 *)(r6 +0)\nfine: r0 = 0\nexit`,
      message: "R6 invalid mem access 'scalar'",
    },
    {
      name: "a number that a function returns",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 64\nif r3 == 0 goto join\nr2 = 0\njoin: r1 = r2\ncall &f\nr2 = r0\n${use}\nf: r0 = r1\nexit`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that a function gets",
      text: `r3 = *(u64 *)(r1 +0)\nr6 = 64\nif r3 == 0 goto join\nr6 = 0\njoin: r2 = r6\ncall &f\nexit\nf: ${use}`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number in a caller's stack",
      text: `r3 = *(u64 *)(r1 +0)\nr6 = 64\nif r3 == 0 goto join\nr6 = 0\njoin: *(u64 *)(r10 -8) = r6\nr1 = r10\nr1 += -8\ncall &f\nr0 = 0\nexit\nf: r2 = *(u64 *)(r1 +0)\n${use}`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that a function stores for its caller",
      text: `*(u64 *)(r10 -8) = 64\nr2 = *(u64 *)(r1 +0)\nr1 = r10\nr1 += -8\ncall &f\nr2 = *(u64 *)(r10 -8)\n${use}\nf: if r2 == 0 goto join\n*(u64 *)(r1 +0) = 0\njoin: r0 = 0\nexit`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that a caller keeps in a register",
      text: `r3 = *(u64 *)(r1 +0)\nr6 = 64\nif r3 == 0 goto join\nr6 = 0\njoin: r1 = r3\ncall &f\nr2 = r6\n${use}\nf: if r1 & 8 goto inside\nr0 = 1\ninside: r0 = 0\nexit`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that a callback reads",
      text: `r3 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -8) = 64\nif r3 == 0 goto join\n*(u64 *)(r10 -8) = 0\njoin: ${loopOnce}r0 = 0\nexit\ncb: r2 = *(u64 *)(r2 +0)\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nr0 = 0\nexit`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that a callback leaves behind",
      text: `*(u64 *)(r10 -8) = 0\n${loopOnce}r2 = *(u64 *)(r10 -8)\n${use}\ncb: r3 = 64\nif r1 & 1 goto join\nr3 = 0\njoin: *(u64 *)(r2 +0) = r3\nr0 = 0\nexit`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that a callback leaves for the next one",
      text: `*(u64 *)(r10 -8) = 0\n${loopOnce}r0 = 0\nexit\ncb: r6 = r2\nr7 = r1\nr2 = *(u64 *)(r6 +0)\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nr3 = 64\nif r7 & 1 goto join\nr3 = 0\njoin: *(u64 *)(r6 +0) = r3\nr0 = 0\nexit`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "how often a callback can still run",
      text: `*(u64 *)(r10 -8) = 60\nr1 = 3\n${handOn}r2 = *(u64 *)(r10 -8)\nr2 += -1\n${use}\ncb: r3 = *(u64 *)(r2 +0)\nif r1 & 1 goto more\nr3 += 1\ngoto join\nmore: r3 += 2\njoin: *(u64 *)(r2 +0) = r3\nr0 = 0\nexit`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
  ])("keeps paths apart that differ in $name", ({ text, message }) => {
    const verdict = verify(text, { ...strict, observer: { stepsBetween: 0 } });
    expect(verdict.kind === "rejected" && verdict.message).toContain(message);
  });
});

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

  // Enough steps to make a checkpoint where the paths of a program meet.
  const join = "r4 = 1\nr4 += 1\nr4 += 1\nr4 += 1\nr4 += 1\nr4 += 1\nr4 += 1\nr4 += 1\ngoto +0\n";
  const use = "r1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit";

  it.each([
    {
      name: "a number that becomes an address",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 0\nif r3 == 0 goto join\nr2 = 64\njoin: ${join}${use}`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that is copied, changed and becomes an address",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 0\nif r3 == 0 goto join\nr2 = 63\njoin: ${join}r5 = r2\nr5 += 1\nr2 = r5\n${use}`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "a number that passes through the stack",
      text: `r3 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -8) = 0\nif r3 == 0 goto join\n*(u64 *)(r10 -8) = 64\njoin: ${join}r2 = *(u64 *)(r10 -8)\n${use}`,
      message: "invalid access to map value, value_size=64 off=64 size=1",
    },
    {
      name: "one byte of a number on the stack",
      text: `r3 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -8) = 0\nif r3 == 0 goto join\n*(u8 *)(r10 -6) = 64\njoin: ${join}r2 = *(u8 *)(r10 -6)\n${use}`,
      message: "invalid access to map value, value_size=64 off=255 size=1",
    },
    {
      name: "a number that decides a branch",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 0\nif r3 == 0 goto join\nr2 = 1\njoin: ${join}if r2 == 0 goto fine\nr0 = *(u64 *)(r10 -8)\nfine: r0 = 0\nexit`,
      message: "invalid read from stack off -8+0 size 8",
    },
    {
      name: "whether a slot was written",
      text: `r3 = *(u64 *)(r1 +0)\nif r3 == 0 goto skip\ngoto join\nskip: *(u64 *)(r10 -8) = 0\njoin: ${join}r0 = *(u64 *)(r10 -8)\nexit`,
      message: "invalid read from stack off -8+0 size 8",
    },
    {
      name: "whether two numbers are copies",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = *(u64 *)(r1 +8)\nr5 = r2\nif r3 == 0 goto join\nr5 = *(u64 *)(r1 +16)\njoin: ${join}r0 = 0\nif r5 > 63 goto end\n${use}\nend: exit`,
      message: "math between map_value pointer and register with unbounded min value is not allowed",
    },
    {
      name: "a size argument",
      text: `r3 = *(u64 *)(r1 +0)\nr2 = 8\nif r3 == 0 goto join\nr2 = 65\njoin: ${join}r1 = map[0][0]+0\nr3 = 0\ncall bpf_probe_read_user\nr0 = 0\nexit`,
      message: "invalid access to map value, value_size=64 off=0 size=65",
    },
    {
      name: "whether a pointer was checked",
      text: `${lookup}\nr6 = r0\nr7 = 0\nif r6 == 0 goto join\nr7 = 1\njoin: ${join}if r7 == 1 goto fine\nr6 = *(u64 *)(r6 +0)\nfine: r0 = 0\nexit`,
      message: "R6 invalid mem access 'scalar'",
    },
  ])("keeps paths apart that differ in $name", ({ text, message }) => {
    expect(visits(text)).toContain(message);
  });
});

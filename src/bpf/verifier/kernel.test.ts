/**
 * The same programs before the kernel's verifier, which is asked through bpf(2) and runs none of them.
 *
 * Needs permission to load programs (root, usually). Messages, and what the verifier understands, change from release
 * to release: the cases are written for one, and other releases are not asked.
 */
import * as fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  askKernel,
  canAskKernel,
  closeKernelMaps,
  createKernelMaps,
} from "../../../test/support/bpf-kernel.ts";
import { randomProgram, randomProgramMaps } from "../random-program.ts";
import { printProgram } from "../text.ts";
import { acceptedFunctionCases, rejectedFunctionCases } from "./test-function-cases.ts";
import { acceptedMapCases, rejectedMapCases } from "./test-map-cases.ts";
import { randomFunctions } from "./test-random-functions.ts";
import { assembleCase } from "./test-text.ts";
import { verifyProgram } from "./verify.ts";
import { acceptedCases, caseMaps, rejectedCases, type VerifyCase } from "./verify-cases.ts";

/** Where Trapline's verifier knows more than the kernel's, or follows RFC 9669 where the kernel refuses. */
const knowsMore = [
  /invalid shift/,
  /div by zero/,
  /unbounded/,
  /outside of the allowed memory range/,
  /min value is negative/,
  /makes .* pointer be out of bounds/,
  /variable.offset/,
  /misaligned/,
  /invalid write to stack/,
  /infinite loop|too (complex|large)/,
  // Of its own kind: it loses count of functions where it cuts dead code off.
  /verifier bug/,
];

/** Where it is stricter: stack that was never written, and numbers that the kernel knows of this machine. */
const isStricter = [
  /invalid read from stack/,
  /outside of the allowed memory range|min value is negative|zero-sized/,
  /misaligned|invalid variable-offset|invalid write to stack|invalid mem access 'scalar'/,
];

describe.skipIf(!canAskKernel())("the kernel's verifier", () => {
  let caseFds: readonly number[] = [];
  let randomFds: readonly number[] = [];
  beforeAll(() => {
    caseFds = createKernelMaps(caseMaps);
    randomFds = createKernelMaps(randomProgramMaps);
  });
  afterAll(() => {
    closeKernelMaps([...caseFds, ...randomFds]);
  });

  it.each([...acceptedCases, ...acceptedFunctionCases, ...acceptedMapCases])(
    "on $name",
    ({ text, kernel }) => {
      const said = askKernel(assembleCase(text), caseFds);
      if (kernel === "rejects") expect(said).toBeDefined();
      else expect(said).toBeUndefined();
    },
  );

  const asked = [...rejectedCases, ...rejectedFunctionCases, ...rejectedMapCases].filter(
    ({ kernel, text }: VerifyCase) => kernel !== "too slow" && text !== "",
  );
  it.each(asked)("on $name", ({ text, message, kernel }) => {
    const said = askKernel(assembleCase(text), caseFds);
    if (kernel === "accepts") {
      expect(said).toBeUndefined();
      return;
    }
    // What follows is the kernel's next line.
    const [first] = message.split(": R");
    expect(said).toContain(typeof kernel === "object" ? kernel.says : first);
  });

  it("differs on random programs only where it is meant to", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 0x7fffffff }), (seed) => {
        const insns = randomProgram(seed);
        const ours = verifyProgram({ insns }, randomProgramMaps, { maxVisits: 5000 });
        // The kernel walks an endless loop a million steps.
        if (ours.kind === "rejected" && /too (large|complex)|infinite/.test(ours.message)) return;
        const kernel = askKernel(insns, randomFds);
        if ((ours.kind === "accepted") === (kernel === undefined)) return;
        const said = ours.kind === "rejected" ? ours.message : kernel!.split("\n").slice(-3).join("\n");
        const allowed = ours.kind === "rejected" ? isStricter : knowsMore;
        if (!allowed.some((pattern) => pattern.test(said)))
          throw new Error(`${said}\n${printProgram(insns)}`);
      }),
      { numRuns: 150 },
    );
  });

  it("differs on random programs of several functions only where it is meant to", () => {
    let compared = 0;
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 0x7fffffff }), (seed) => {
        const insns = assembleCase(randomFunctions(seed));
        const ours = verifyProgram({ insns }, caseMaps, { maxVisits: 5000 });
        if (ours.kind === "rejected" && /too (large|complex)|infinite|unreachable/.test(ours.message)) return;
        compared++;
        const kernel = askKernel(insns, caseFds);
        if ((ours.kind === "accepted") === (kernel === undefined)) return;
        const said = ours.kind === "rejected" ? ours.message : kernel!.split("\n").slice(-3).join("\n");
        const allowed = ours.kind === "rejected" ? isStricter : knowsMore;
        if (!allowed.some((pattern) => pattern.test(said)))
          throw new Error(`${said}\n${printProgram(insns)}`);
      }),
      { numRuns: 150 },
    );
    expect(compared).toBeGreaterThan(50);
  });
});

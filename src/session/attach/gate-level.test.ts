import { describe, expect, test } from "vitest";
import type { GateLevel } from "../options.ts";
import {
  chooseGate,
  chooseGates,
  type GateImage,
  gateOfProbe,
  highest,
  levelsOf,
  threadSourceIn,
} from "./gate-level.ts";

/** An image with a section, imported and own functions of these names. */
const image = (
  name: string,
  sections: readonly string[],
  imported: readonly string[],
  defined: readonly string[] = [],
): GateImage => ({
  name,
  elf: {
    findSection: (section: string) => (sections.includes(section) ? {} : undefined),
    symbols: {
      imports: (symbol: string) => imported.includes(symbol),
      find: (symbol: string) => (defined.includes(symbol) ? [{}] : []),
    },
  } as unknown as GateImage["elf"],
});

test.each([
  ["an ordinary program", image("cat", [".text"], ["malloc"]), "auto", "none", "room"],
  ["goroutines", image("caddy", [".gopclntab"], []), "auto", "stack", "caddy has goroutines"],
  ["stacks made by hand", image("qemu", [], ["swapcontext"]), "auto", "stack", "swapcontext"],
  ["handlers with a stack of their own", image("rg", [], ["sigaltstack"]), "auto", "stack", "sigaltstack"],
  ["goroutines, and told not to", image("caddy", [".gopclntab"], []), "none", "none", "--gate none"],
  ["an ordinary program, and told to", image("cat", [], []), "stack", "stack", "--gate stack"],
  ["a program that cannot be read", undefined, "auto", "none", "room"],
] as const)("%s", (_, program, choice, level, reason) => {
  expect(chooseGate(choice, program, false)).toMatchObject({
    level,
    reason: expect.stringContaining(reason),
  });
});

test("under seccomp only Go gets private stacks by itself", () => {
  expect(chooseGate("auto", image("caddy", [".gopclntab"], []), true).level).toBe("stack");
  const gate = chooseGate("auto", image("qemu", [], ["swapcontext", "sigaltstack"]), true);
  expect(gate).toMatchObject({ level: "none", isAuto: false, reason: expect.stringContaining("seccomp") });
});

describe("the gate of a probe", () => {
  const proof = (helpers: readonly number[], ...functions: number[]) => ({
    stackBytes: functions[0]!,
    subprograms: functions.map((stackBytes) => ({ start: 0, end: 1, isCallback: false, stackBytes })),
    helpers: new Set(helpers),
  });
  const small = proof([], 512);
  const just = proof([], 256, 512, 256);
  const deep = proof([], 512, 512, 8);
  const caller = proof([12], 64);
  const ofProcess = (choice: "auto" | "none" | "stack") => chooseGate(choice, image("cat", [], []), false);
  const levelOf = (choice: "auto" | "none" | "stack", index: number, proofs = [small, just, deep]) =>
    gateOfProbe(ofProcess(choice), undefined, { proofs, index }).level;

  test("is private where its own program needs much stack, if nobody has said anything", () => {
    expect([0, 1, 2].map((index) => levelOf("auto", index))).toEqual(["none", "none", "stack"]);
    expect(levelOf("none", 2)).toBe("none");
    expect(levelOf("stack", 0)).toBe("stack");
    const { reason } = gateOfProbe(ofProcess("auto"), undefined, { proofs: [deep], index: 0 });
    expect(reason).toContain("1032 bytes");
  });

  test("a program that makes tail calls may need what any other needs", () => {
    expect(levelOf("auto", 0, [caller, deep])).toBe("stack");
    expect(levelOf("auto", 0, [caller, just])).toBe("none");
  });

  test("is the one that was asked for", () => {
    const asked = (gate: GateLevel) =>
      gateOfProbe(ofProcess("stack"), gate, { proofs: [deep], index: 0 }).level;
    expect((["none", "strict"] as const).map(asked)).toEqual(["none", "strict"]);
  });

  test("others than the process's are listed, and each level once", () => {
    const request = (name: string, programIndex: number, gate?: GateLevel) => ({
      attachPoint: { name },
      programIndex,
      gate,
    });
    const requests = [request("a", 0), request("b", 1), request("c", 0, "strict"), request("d", 0, "none")];
    const gates = chooseGates(ofProcess("auto"), { requests, proofs: [small, deep] });
    expect(gates.others.map(({ probe, gate }) => [probe, gate.level])).toEqual([
      ["b", "stack"],
      ["c", "strict"],
    ]);
    expect(levelsOf(gates)).toEqual(["none", "stack", "strict"]);
  });
});

test("of several probes at a point the highest level is taken", () => {
  expect(highest([])).toBe("none");
  expect(highest(["none", "none"])).toBe("none");
  expect(highest(["stack", "none"])).toBe("stack");
  expect(highest(["none", "strict", "stack"])).toBe("strict");
});

test("threads are told apart by fs:0 only where that is known to hold their fs base", () => {
  const program = image("cat", [], []);
  const loader = image("ld.so", [], [], ["_dl_debug_state"]);
  // Attached to while it runs.
  expect(threadSourceIn(loader, [program, loader], true)).toBe("fs:0");
  // At its first instruction.
  expect(threadSourceIn(program, [program, loader], false)).toBe("fs:0");
  expect(threadSourceIn(loader, [program, loader], false)).toBe("fs base");
  expect(threadSourceIn(program, [program], false)).toBe("fs base");
  expect(threadSourceIn(undefined, [program, loader], false)).toBe("fs base");
});

import { expect, test } from "vitest";
import { chooseGate, type GateImage, threadSourceIn } from "./gate-level.ts";

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
  ["goroutines, and told not to", image("caddy", [".gopclntab"], []), "none", "none", "--gate none"],
  ["an ordinary program, and told to", image("cat", [], []), "stack", "stack", "--gate stack"],
] as const)("%s", (_, found, choice, level, reason) => {
  expect(chooseGate(choice, [found])).toMatchObject({ level, reason: expect.stringContaining(reason) });
});

test("a program that needs much stack gets a private one", () => {
  const proof = (...functions: number[]) => ({
    stackBytes: functions[0]!,
    subprograms: functions.map((stackBytes) => ({ start: 0, end: 1, isCallback: false, stackBytes })),
  });
  const program = image("cat", [], []);
  expect(chooseGate("auto", [program], [proof(512), proof(256, 512, 256)]).level).toBe("none");
  expect(chooseGate("auto", [program], [proof(512), proof(512, 512, 8)])).toMatchObject({
    level: "stack",
    reason: expect.stringContaining("1032 bytes"),
  });
  expect(chooseGate("none", [program], [proof(512, 512, 512)]).level).toBe("none");
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

import { expect, test } from "vitest";
import { chooseGate, type GateImage } from "./gate-level.ts";

/** An image with a section and imported functions of these names. */
const image = (name: string, sections: readonly string[], imported: readonly string[]): GateImage => ({
  name,
  elf: {
    findSection: (section: string) => (sections.includes(section) ? {} : undefined),
    symbols: { imports: (symbol: string) => imported.includes(symbol) },
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

/** Text of test programs with named functions: `call &name` calls the function at label `name:`, `r2 = &name` is its address. */
import type { Insn } from "../insn.ts";
import { parseProgram } from "../text.ts";

/** The slots of a program in text form. */
export function assembleCase(text: string): Insn[] {
  const lines = text.split("\n").map((line) => line.trim());
  const labels = new Map<string, number>();
  const slots: number[] = [];
  let slot = 0;
  for (const line of lines) {
    slots.push(slot);
    const [, label, rest = ""] = /^(?:(\w+):)?\s*(.*)$/.exec(line)!;
    if (label !== undefined) labels.set(label, slot);
    if (rest !== "") slot += /^r\d+ = (.* ll$|map\[|&|subprog\[)/.test(rest) ? 2 : 1;
  }
  const linked = lines.map((line, i) =>
    line.replace(/(call |= )&(\w+)/, (_, before: string, name: string) => {
      const target = labels.get(name);
      if (target === undefined) throw new Error(`no function ${name}`);
      const distance = target - slots[i]! - 1;
      const sign = distance < 0 ? "" : "+";
      return before === "= " ? `= subprog[${distance}]` : `call pc${sign}${distance}`;
    }),
  );
  const parsed = parseProgram(linked.join("\n"));
  if (parsed.kind === "bad") throw new Error(`${parsed.message} of\n${linked.join("\n")}`);
  return parsed.insns;
}

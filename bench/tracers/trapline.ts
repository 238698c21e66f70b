/** The product itself, by its command line. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Child } from "../child.ts";
import { CodeBytes } from "../code-bytes.ts";
import { repository } from "../fixture.ts";
import { functionOf } from "../hot-process.ts";
import { hitsIn } from "./bpftrace-output.ts";
import { scriptFor } from "./script.ts";
import type { Tracer } from "./tracer.ts";

export const traplineCommand: readonly string[] = [process.execPath, join(repository, "dist/cli/main.js")];

/** `returns`: how returns are probed, `gate`: what programs run behind; each where it is not left to the product. `leavesKeys`: the target has not taken all protection keys itself. */
export function trapline(
  mechanism: "auto" | "call" | "jump" | "int3",
  {
    returns,
    gate,
    leavesKeys = true,
  }: { readonly returns?: "stack"; readonly gate?: "stack" | "strict"; readonly leavesKeys?: boolean } = {},
): Tracer {
  const way = [
    ...(returns === undefined ? [] : ["--return", returns]),
    ...(gate === undefined ? [] : ["--gate", gate]),
  ];
  return {
    name: [
      "trapline",
      mechanism,
      ...(way.length === 0 ? [] : [way.join(" ")]),
      ...(leavesKeys ? [] : ["no key left"]),
    ].join(", "),
    targetEnv: leavesKeys ? {} : { HOT_TAKES_KEYS: "1" },
    missing: () => (existsSync(traplineCommand[1]!) ? undefined : "not built: npm run build"),
    async plant(target, site, work) {
      const code = new CodeBytes(target.pid, target.addressOf(site));
      const script = scriptFor(work, target.binary, functionOf(site));
      const options = ["-p", `${target.pid}`, "-f", "json", "--mechanism", mechanism, ...way, "-e", script];
      const child = new Child([...traplineCommand, ...options]);
      await code.until("changed", child);
      return {
        mechanism: () => mechanismIn(child.lines.map(({ text }) => text)),
        async remove() {
          child.kill("SIGINT");
          await child.end();
          if (!code.isOriginal) throw new Error("trapline left the code changed");
          code[Symbol.dispose]();
          if (child.exitCode !== 0)
            throw new Error(`trapline ended with ${child.exitCode}: ${child.lastWords}`);
          return hitsIn(child.lines.map(({ text }) => text));
        },
      };
    },
  };
}

/** The mechanisms in the accounting at the end of a run. */
function mechanismIn(lines: readonly string[]): string | undefined {
  const line = lines.find((text) => text.startsWith('{"type": "accounting"'));
  if (line === undefined) return undefined;
  type Accounting = { data: { probes: { mechanisms: Record<string, number> }[] } };
  const { probes } = (JSON.parse(line) as Accounting).data;
  return [...new Set(probes.flatMap(({ mechanisms }) => Object.keys(mechanisms)))].join(", ");
}

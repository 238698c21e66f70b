/**
 * The import rules: that the tree keeps them, and that each of them is awake. A rule that never fires looks like one
 * that is kept, so a small copy of the layout is made to break each in turn.
 */
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const config = join(root, ".dependency-cruiser.cjs");
const depcruise = join(root, "node_modules/.bin/depcruise");

interface Violation {
  readonly rule: { readonly name: string };
  readonly from: string;
  readonly to: string;
}

function violationsIn(folder: string): Violation[] {
  const run = spawnSync(depcruise, ["--config", ".dependency-cruiser.cjs", "--output-type", "json", "src"], {
    cwd: folder,
    encoding: "utf8",
    maxBuffer: 1 << 28,
  });
  if (run.stdout === "") throw new Error(`dependency-cruiser failed:\n${run.stderr}`);
  return (JSON.parse(run.stdout) as { summary: { violations: Violation[] } }).summary.violations;
}

/** Each case adds these files to the same small clean tree. */
interface Case {
  readonly name: string;
  readonly files: Readonly<Record<string, string>>;
  /** Rules that must speak up. */
  readonly rules: readonly string[];
}

const importing = (what: string) => `import "${what}";\n`;
/** A folder's door exists in the clean tree, so an import of it resolves. */
const upward = (from: string, to: string, rule = `${from}-imports-downwards`): Case => ({
  name: `${from} imports ${to}`,
  files: { [`src/${from}/wrong.ts`]: importing(`../${to}/index.ts`) },
  rules: [rule],
});

const cases: readonly Case[] = [
  upward("cli", "lang"),
  upward("session", "cli"),
  upward("output", "session"),
  upward("lang", "x86"),
  upward("probe", "bpf"),
  upward("patch", "elf"),
  upward("gate", "patch"),
  upward("bpf", "lang"),
  upward("target", "probe"),
  upward("elf", "x86"),
  upward("x86", "elf"),
  {
    name: "probe imports a process target, and not only the interface",
    files: { "src/probe/wrong.ts": importing("../target/process/index.ts") },
    rules: ["probe-imports-downwards"],
  },
  {
    name: "bpf assembles outside of the jit",
    files: { "src/bpf/wrong.ts": importing("../x86/index.ts") },
    rules: ["only-the-jit-assembles"],
  },
  {
    name: "a cycle inside of a folder",
    files: { "src/x86/one.ts": importing("./two.ts"), "src/x86/two.ts": importing("./one.ts") },
    rules: ["no-cycles"],
  },
  {
    name: "a cycle through types only",
    files: {
      "src/x86/one.ts": 'import type { Two } from "./two.ts";\nexport type One = Two;\n',
      "src/x86/two.ts": 'import type { One } from "./one.ts";\nexport type Two = One | undefined;\n',
    },
    rules: ["no-cycles"],
  },
  ...["output", "lang", "probe", "patch", "gate", "bpf", "elf", "x86", "target"].map(
    (folder): Case => ({
      name: `${folder} touches the operating system`,
      files: { [`src/${folder}/wrong.ts`]: importing("node:fs") },
      rules: ["pure-code-imports-no-node"],
    }),
  ),
  {
    name: "pure code calls the C library",
    files: { "src/probe/wrong.ts": importing("koffi") },
    rules: ["koffi-only-in-targets-and-session"],
  },
  {
    name: "the process target knows the kernel target",
    files: { "src/target/process/wrong.ts": importing("../kernel/index.ts") },
    rules: ["targets-do-not-know-each-other"],
  },
  {
    name: "the kernel target knows the process target",
    files: { "src/target/kernel/wrong.ts": importing("../process/index.ts") },
    rules: ["kernel-target-does-not-know-the-process-target"],
  },
  {
    name: "an import of nothing",
    files: { "src/x86/wrong.ts": importing("./absent.ts") },
    rules: ["no-unresolvable"],
  },
  {
    name: "an import that is only loaded later",
    files: { "src/cli/wrong.ts": 'export const load = () => import("../patch/index.ts");\n' },
    rules: ["cli-imports-downwards"],
  },
  {
    name: "an import inside of a file that holds a using declaration",
    files: {
      "src/patch/wrong.ts":
        'import { x } from "../elf/index.ts";\nexport function f(): void {\n  using held = x as Disposable;\n  void held;\n}\n',
    },
    rules: ["patch-imports-downwards"],
  },
];

const folders =
  "cli session output lang probe patch gate bpf bpf/jit target target/process target/kernel elf x86".split(
    " ",
  );

describe("import rules", () => {
  let work = "";
  beforeAll(() => {
    work = mkdtempSync(join(tmpdir(), "trapline-imports-"));
    cpSync(config, join(work, ".dependency-cruiser.cjs"));
    writeFileSync(join(work, "package.json"), readFileSync(join(root, "package.json")));
    symlinkSync(join(root, "node_modules"), join(work, "node_modules"));
    for (const folder of folders) write(`src/${folder}/index.ts`, "export const x: unknown = 1;\n");
    // Every import that is allowed.
    write("src/target/target.ts", "export const x: unknown = 1;\n");
    write("src/cli/fine.ts", importing("../session/index.ts") + importing("../output/index.ts"));
    write("src/session/fine.ts", importing("../target/process/index.ts") + importing("node:fs"));
    write("src/lang/fine.ts", importing("../bpf/index.ts"));
    write("src/probe/fine.ts", importing("../patch/index.ts") + importing("../target/target.ts"));
    write("src/patch/fine.ts", importing("../gate/index.ts") + importing("../x86/index.ts"));
    write("src/gate/fine.ts", importing("../x86/index.ts"));
    write("src/bpf/jit/fine.ts", importing("../../x86/index.ts"));
    write("src/target/process/fine.ts", importing("../../elf/index.ts") + importing("koffi"));
    write("src/x86/fine.test.ts", importing("../elf/index.ts") + importing("node:fs"));
  });
  afterAll(() => rmSync(work, { recursive: true }));

  function write(path: string, text: string): void {
    mkdirSync(dirname(join(work, path)), { recursive: true });
    writeFileSync(join(work, path), text);
  }

  it("let the allowed imports pass", () => {
    expect(violationsIn(work)).toEqual([]);
  });

  it.each(cases)("catch: $name", ({ files, rules }) => {
    for (const [path, text] of Object.entries(files)) write(path, text);
    try {
      const found = violationsIn(work);
      expect(new Set(found.map(({ rule }) => rule.name))).toEqual(new Set(rules));
      for (const { from } of found) expect(Object.keys(files)).toContain(from);
    } finally {
      for (const path of Object.keys(files)) rmSync(join(work, path));
    }
  });

  it("are each broken by some case", () => {
    const { forbidden } = createRequire(import.meta.url)(config) as { forbidden: { name: string }[] };
    const covered = new Set(cases.flatMap(({ rules }) => rules));
    expect(forbidden.map(({ name }) => name).filter((name) => !covered.has(name))).toEqual([]);
  });

  it("are kept by the tree", () => {
    expect(violationsIn(root)).toEqual([]);
  });
});

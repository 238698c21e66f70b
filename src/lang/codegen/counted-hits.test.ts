/** Which counts are the accounts of the hits themselves, and what programs with accounts look like. */
import { describe, expect, it } from "vitest";
import { printProgram, verifyProgram } from "../../bpf/index.ts";
import { compileScript } from "../compile.ts";

function compile(text: string, shards = 8) {
  const result = compileScript(text, { accounts: true, shards });
  if (result.kind === "errors") throw new Error(result.diagnostics[0]!.message);
  return result.script;
}

describe("counts that are accounts", () => {
  const cases: readonly {
    readonly name: string;
    readonly script: string;
    readonly countedBy: readonly number[];
  }[] = [
    { name: "first thing in an action", script: "uprobe:a:f { @ = count(); }", countedBy: [0] },
    { name: "behind a predicate", script: "uprobe:a:f / pid == 1 / { @ = count(); }", countedBy: [0] },
    {
      name: "by two probes and one of the tracer itself",
      script: "uprobe:a:f { @ = count(); } interval:s:1 { @ = count(); } uretprobe:a:f { @ = count(); }",
      countedBy: [0, 2],
    },
    { name: "printed", script: "uprobe:a:f { @ = count(); } interval:s:1 { print(@); }", countedBy: [0] },
    { name: "not first", script: "uprobe:a:f { $a = 1; @ = count(); }", countedBy: [] },
    { name: "in a branch", script: "uprobe:a:f { if (arg0) { @ = count(); } }", countedBy: [] },
    { name: "by keys", script: "uprobe:a:f { @[tid] = count(); }", countedBy: [] },
    { name: "cleared", script: "uprobe:a:f { @ = count(); } interval:s:1 { clear(@); }", countedBy: [] },
    { name: "zeroed", script: "uprobe:a:f { @ = count(); } interval:s:1 { zero(@); }", countedBy: [] },
    {
      name: "by an action that runs in the tracer, too",
      script: "BEGIN, uprobe:a:f { @ = count(); }",
      countedBy: [],
    },
  ];
  it.each(cases)("$name", ({ script, countedBy }) => {
    expect(compile(script).maps[0]!.countedBy).toEqual(countedBy);
  });

  it("none when its copies are not laid out like an account", () => {
    expect(compile("uprobe:a:f { @ = count(); }", 4).maps[0]!.countedBy).toEqual([]);
  });
});

it("every hit adds to one word of the account, in programs that are proved", () => {
  const { bundle, accountMap } = compile(
    "uprobe:a:f / arg0 / { @[arg0] = 1; } uretprobe:a:f { @n = sum(retval); }",
  );
  expect(accountMap).toBe(bundle.maps.length - 1);
  for (const program of bundle.programs) {
    expect(verifyProgram(program, bundle.maps).kind).toBe("accepted");
    const exits = program.insns.filter(({ opcode }) => opcode === 0x95).length;
    const counted = printProgram(program.insns).match(new RegExp(`map\\[${accountMap}\\]`, "g"));
    expect(counted).toHaveLength(exits);
  }
});

it("programs of the tracer itself have no account", () => {
  expect(compile("BEGIN { @ = count(); } interval:s:1 { @ = count(); }").accountMap).toBeUndefined();
});

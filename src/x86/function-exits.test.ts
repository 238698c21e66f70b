/** Exits of functions, in code by compilers as objdump reads it, and in code made for each rule. */
import { realpathSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { buildProgram, outputOf } from "../../test/support/build-program.ts";
import { libcPath, openElf } from "../../test/support/elf-images.ts";
import { codeImageOf } from "../elf/index.ts";
import { functionsOf } from "../session/reports/coverage.ts";
import { Assembler, type Label } from "./assembler.ts";
import type { CodeImage } from "./code-image.ts";
import { type ExitRefusal, type FunctionExits, findExits } from "./function-exits.ts";
import { ImageCode } from "./regions.ts";
import { R10, R11, RAX, RBP, RCX, RDI, RDX, RSP } from "./registers.ts";

const source = `
#include <stdlib.h>
#include <string.h>
extern int other(int);
__attribute__((noinline)) int other(int x) { __asm__ volatile(""); return x * 3; }
int plain(int x) { return x + 1; }
int two_returns(int x, int *p) { if (x > 3) { *p = other(x); return 1; } p[1] = other(x + 1) + other(2); return 2; }
int tail(int x) { return other(x + 1); }
int tail_by_pointer(int x, int (*f)(int)) { return f(x); }
int tail_in_table(int x, int (*const *table)(int)) { return table[x](x + 1); }
size_t tail_elsewhere(const char *s) { return strlen(s + 1); }
__attribute__((cold, noreturn, noinline)) void fatal(void) { abort(); }
int with_cold(int x, int *p) { if (__builtin_expect(!p, 0)) { other(x); p = malloc(4); other(*p); } return *p + other(x); }
int never(int x) { fatal(); }
int sometimes(int x) { if (x == 5) fatal(); return other(x) + 1; }
int by_table(int x, char *s) {
  switch (x) {
    case 0: return strlen(s); case 1: return other(3); case 2: return other(9) + 2; case 3: return s[3];
    case 4: return atoi(s); case 5: return x * x; case 6: return s[1] / 7; default: return 5;
  }
}
int by_labels(const unsigned char *code) {
  static const void *const ops[] = { &&add, &&mul, &&stop };
  int value = 1;
  goto *ops[*code++];
add: value += atoi((const char *)code); goto *ops[*code++];
mul: value *= 3; goto *ops[*code++];
stop: return value;
}
int by_labels_without_frame(const unsigned char *code) {
  static const void *const ops[] = { &&add, &&mul, &&stop };
  int value = 1;
  goto *ops[*code++];
add: value += 7; goto *ops[*code++];
mul: value *= 3; goto *ops[*code++];
stop: return value;
}
int aligned(int x) { char room[64] __attribute__((aligned(64))); memset(room, x, 64); other(room[x]); return other(room[3]) + room[x]; }
int variable(int n) { char *room = __builtin_alloca(n); memset(room, 1, n); return other(room[n / 2]) + 1; }
int recursive(int x) { if (x < 2) return x; return recursive(x - 1) * other(x) + recursive(x - 2); }
int main(int argc, char **argv) {
  int (*table[2])(int) = { plain, tail };
  int p[2];
  return two_returns(argc, p) + tail_by_pointer(argc, tail) + tail_in_table(argc & 1, table) + with_cold(argc, p) +
    sometimes(argc) + by_table(argc, argv[0]) + by_labels((unsigned char *)"\\2") + by_labels_without_frame((unsigned char *)"\\2") + aligned(argc) + variable(argc) +
    recursive(argc) + (argc > 99 ? never(argc) : 0) + tail_elsewhere(argv[0]);
}
`;

/** Addresses of `ret` in the functions of the names, as objdump sees them. */
function returnsIn(path: string, names: readonly string[]): bigint[] {
  const found: bigint[] = [];
  let isIn = false;
  for (const line of outputOf("objdump", ["-d", "--no-show-raw-insn", path]).split("\n")) {
    const header = /^[0-9a-f]+ <(.+)>:$/.exec(line);
    if (header) isIn = names.includes(header[1]!);
    const insn = /^\s+([0-9a-f]+):\s+(?:repz |bnd )?ret/.exec(line);
    if (isIn && insn) found.push(BigInt(`0x${insn[1]}`));
  }
  return found;
}

interface Expected {
  readonly name: string;
  /** Number of tail calls; a reason where exits are not known. */
  readonly tails: number | ExitRefusal["reason"];
}

const compiled: readonly Expected[] = [
  { name: "plain", tails: 0 },
  { name: "two_returns", tails: 0 },
  { name: "tail", tails: 1 },
  { name: "tail_by_pointer", tails: 1 },
  { name: "tail_in_table", tails: 1 },
  { name: "tail_elsewhere", tails: 1 },
  { name: "with_cold", tails: 0 },
  { name: "never", tails: 0 },
  { name: "sometimes", tails: 0 },
  { name: "by_labels", tails: 0 },
  // Nothing tells a jump to a label from a tail call.
  { name: "by_labels_without_frame", tails: "indirect-jump-unresolved" },
  { name: "aligned", tails: 0 },
  { name: "variable", tails: 0 },
  { name: "recursive", tails: 0 },
];

const builds: Readonly<Record<string, readonly string[]>> = {
  "gcc -O2": ["-O2"],
  "gcc -O2, position-dependent": ["-O2", "-no-pie"],
  "gcc -O1, frame pointers": ["-O1", "-fno-omit-frame-pointer"],
  "gcc -O2, protected branches": ["-O2", "-fcf-protection=full"],
  "gcc -O3, split blocks": ["-O3", "-freorder-blocks-and-partition"],
};

describe.each(Object.entries(builds))("code by %s", (_, flags) => {
  const path = buildProgram({ name: "exits", source, flags });
  const elf = openElf(path);
  const code = new ImageCode(codeImageOf(elf, 0n));
  const start = (name: string) => elf.symbols.find(name)[0]!.addr;
  const results = findExits(
    code,
    compiled.map(({ name }) => start(name)),
  );

  it.each(compiled)("$name", ({ name, tails }) => {
    const result = results[compiled.findIndex((each) => each.name === name)]!;
    if (typeof tails === "string") {
      expect(result).toMatchObject({ kind: "refused", refusal: { reason: tails } });
      return;
    }
    const exits = exitsOf(result);
    const returns = exits.filter(({ kind }) => kind === "return").map(({ at }) => at);
    expect(returns).toEqual(returnsIn(path, [name, `${name}.cold`]).sort((a, b) => (a < b ? -1 : 1)));
    // Without optimisation of sibling calls there are none.
    const isOptimised = !flags.includes("-O1");
    expect(exits.length - returns.length).toBe(isOptimised ? tails : 0);
  });

  it("a switch has all returns and tail calls of its cases", () => {
    const [result] = findExits(code, [start("by_table")]);
    const exits = exitsOf(result!);
    const returns = exits.filter(({ kind }) => kind === "return").map(({ at }) => at);
    expect(returns).toEqual(returnsIn(path, ["by_table"]));
    if (!flags.includes("-O1")) expect(exits.length).toBeGreaterThan(returns.length);
  });
});

function exitsOf(result: FunctionExits) {
  expect(result).toMatchObject({ kind: "exits" });
  return result.kind === "exits" ? result.exits : [];
}

describe("whole libraries", () => {
  const libstdcxx = realpathSync(outputOf("g++", ["-print-file-name=libstdc++.so.6"]).trim());
  it.each([
    { path: libcPath, least: 0.995 },
    { path: libstdcxx, least: 0.999 },
  ])(
    "the exits of nearly all functions of $path are known, each at an instruction that leaves",
    ({ path, least }) => {
      const code = new ImageCode(codeImageOf(openElf(path), 0x7f00_0000_0000n));
      const starts = [...functionsOf(code.image)].filter(
        ({ name }) => name !== undefined && !/\.cold/.test(name),
      );
      expect(starts.length).toBeGreaterThan(2000);
      const results = findExits(
        code,
        starts.map(({ start }) => start),
      );
      const known = results.filter(({ kind }) => kind === "exits");
      expect(known.length / results.length).toBeGreaterThan(least);
      const flows = new Map<string, Set<string>>();
      for (const { kind, at } of known.flatMap(exitsOf)) {
        const found = flows.get(kind) ?? new Set();
        flows.set(kind, found.add(code.functionAt(at)!.code.findInsn(at)!.flow));
      }
      expect([...flows.get("return")!]).toEqual(["return"]);
      for (const flow of flows.get("tail-jump")!) expect(["jump", "jump-indirect"]).toContain(flow);
    },
  );
});

const TEXT = 0x7f00_0000_0000n;

interface Made {
  readonly name: string;
  /** The function `f` up to `end`; `exits` are to be bound where it is left. */
  readonly emit: (asm: Assembler, exits: readonly Label[], g: Label) => void;
  /** What stands in other functions. */
  readonly elsewhere?: (asm: Assembler, inside: Label) => void;
  readonly pads?: boolean;
  readonly expect: readonly string[] | ExitRefusal["reason"];
}

const made: readonly Made[] = [
  {
    name: "a conditional tail call",
    emit: (asm, [a, b], g) => {
      asm.test(RDI, RDI);
      asm.bind(a!);
      asm.jcc("ne", g);
      asm.zero(RAX);
      asm.bind(b!);
      asm.ret();
    },
    expect: ["tail-branch", "return"],
  },
  {
    name: "a tail call behind a frame",
    emit: (asm, [a], g) => {
      asm.push(RBP);
      asm.mov(RBP, RSP);
      asm.addImm(RSP, -64);
      asm.bytes(Uint8Array.of(0xc9)); // leave
      asm.bind(a!);
      asm.jmp32(g);
    },
    expect: ["tail-jump"],
  },
  {
    name: "a jump with something on the stack is no tail call",
    emit: (asm, _, g) => {
      asm.push(RBP);
      asm.jmp32(g);
    },
    expect: "return-address-unknown",
  },
  {
    name: "an address that is pushed and returned to",
    emit: (asm) => {
      asm.push(RAX);
      asm.ret();
    },
    expect: "return-address-unknown",
  },
  {
    name: "ret with a number, and with a prefix",
    emit: (asm, [a, b]) => {
      const other = asm.label("other");
      asm.test(RDI, RDI);
      asm.jcc("e", other);
      asm.bind(a!);
      asm.bytes(Uint8Array.of(0xc2, 0x10, 0x00));
      asm.bind(other);
      asm.bind(b!);
      asm.bytes(Uint8Array.of(0xf3, 0xc3));
    },
    expect: ["return", "return"],
  },
  {
    name: "a far return",
    emit: (asm) => asm.bytes(Uint8Array.of(0x48, 0xcb)),
    expect: "return-address-unknown",
  },
  {
    name: "a jump to a register that was loaded",
    emit: (asm, [a]) => {
      asm.mov(RAX, { base: RDI, disp: 8 });
      asm.bind(a!);
      asm.bytes(Uint8Array.of(0xff, 0xe0));
    },
    expect: ["tail-jump"],
  },
  {
    name: "a jump to a computed address",
    emit: (asm) => {
      asm.mov(RAX, RDI);
      asm.shl(RAX, 4);
      asm.bytes(Uint8Array.of(0xff, 0xe0));
    },
    expect: "indirect-jump-unresolved",
  },
  {
    name: "a loop back to the entry, which is no exit",
    emit: (asm, [a]) => {
      const start = asm.here("start");
      asm.addImm(RDI, -1);
      asm.jcc("ne", start);
      asm.bind(a!);
      asm.ret();
    },
    expect: ["return"],
  },
  {
    name: "a subroutine inside, whose return is not the function's",
    emit: (asm) => {
      const inner = asm.label("inner");
      asm.call(inner);
      asm.ret();
      asm.bind(inner);
      asm.zero(RAX);
      asm.ret();
    },
    expect: "subroutine-inside",
  },
  {
    name: "another function jumps behind the entry",
    emit: (asm, [a], inside) => {
      asm.zero(RAX);
      asm.bind(inside);
      asm.addImm(RAX, 1);
      asm.bind(a!);
      asm.ret();
    },
    elsewhere: (asm, inside) => asm.jmp32(inside),
    expect: "entered-elsewhere",
  },
  {
    name: "another function jumps behind the entry by a short jump",
    emit: (asm, [a], inside) => {
      asm.zero(RAX);
      asm.bind(inside);
      asm.addImm(RAX, 1);
      asm.bind(a!);
      asm.ret();
    },
    elsewhere: (asm, inside) => asm.jcc("e", inside),
    expect: "entered-elsewhere",
  },
  {
    name: "behind its last instruction the next function follows",
    emit: (asm) => asm.mov(RAX, RDI),
    expect: "runs-out",
  },
  {
    name: "a return that nothing leads to",
    emit: (asm) => {
      asm.ret();
      asm.zero(RAX);
      asm.ret();
    },
    expect: "exit-unreached",
  },
  {
    name: "code behind a call that does not come back is not measured by it",
    emit: (asm, [a, b], g) => {
      const out = asm.label("out");
      asm.test(RDI, RDI);
      asm.jcc("e", out);
      asm.push(RBP);
      asm.push(RCX);
      asm.call(g);
      asm.bind(out);
      asm.test(RDX, RDX);
      asm.bind(a!);
      asm.jcc("s", g);
      asm.bind(b!);
      asm.ret();
    },
    expect: ["tail-branch", "return"],
  },
  {
    name: "an exception's landing pad, and what it returns by",
    emit: (asm, [a, b], pad) => {
      asm.addImm(RSP, -24);
      asm.callTo({ base: R10 });
      asm.addImm(RSP, 24);
      asm.bind(a!);
      asm.ret();
      asm.bind(pad);
      asm.mov(RDI, RAX);
      asm.callTo({ base: R11 });
      asm.addImm(RSP, 24);
      asm.bind(b!);
      asm.ret();
    },
    pads: true,
    expect: ["return", "return"],
  },
];

describe("code that is made", () => {
  it.each(made)("$name", ({ emit, elsewhere, pads, expect: expected }) => {
    const asm = new Assembler(TEXT);
    const exits = [asm.label("a"), asm.label("b")];
    const mark = asm.label("mark");
    emit(asm, exits, mark);
    const end = asm.here("end");
    elsewhere?.(asm, mark);
    // Where the mark is not inside, it is the other function.
    const isInside = elsewhere !== undefined || pads === true;
    if (!isInside) asm.bind(mark);
    asm.zero(RAX);
    asm.ret();
    const last = asm.here("last");
    const bytes = asm.finish();
    const functions = [
      { start: TEXT, end: asm.addressOf(end), name: "f" },
      { start: asm.addressOf(end), end: asm.addressOf(last), name: "g" },
    ];
    const image: CodeImage = {
      name: "made",
      text: [{ start: TEXT, bytes }],
      findFunction: (addr) => functions.find((fn) => addr >= fn.start && addr < fn.end),
      pointersInto: () => [],
      landingPads: (range) => {
        const pad = pads === true ? asm.addressOf(mark) : 0n;
        return pad >= range.start && pad < range.end ? [pad] : [];
      },
      readData: () => undefined,
    };
    const [result] = findExits(new ImageCode(image), [TEXT]);
    if (typeof expected === "string") {
      expect(result).toMatchObject({ kind: "refused", refusal: { reason: expected } });
      return;
    }
    expect(exitsOf(result!)).toEqual(expected.map((kind, i) => ({ kind, at: asm.addressOf(exits[i]!) })));
  });
});

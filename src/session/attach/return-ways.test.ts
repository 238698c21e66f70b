/** The rule by which returns are probed at the exits or by a replaced return address. */
import { describe, expect, it } from "vitest";
import { planSites } from "../../patch/index.ts";
import { Assembler } from "../../x86/assembler.ts";
import type { CodeImage } from "../../x86/code-image.ts";
import { ImageCode } from "../../x86/regions.ts";
import { RAX, RCX } from "../../x86/registers.ts";
import type { ReturnChoice } from "../options.ts";
import { ReturnWays } from "./return-ways.ts";

const TEXT = 0x7f00_0000_0000n;

/** What the function of a case is like. */
interface Shape {
  /** Its return stands before code that is jumped to, so that without landings it needs an int3. */
  readonly isHemmed?: boolean;
  readonly hasTail?: boolean;
  readonly hasPad?: boolean;
  readonly name?: string;
}

function make({ isHemmed, hasTail, hasPad, name = "f" }: Shape): ImageCode {
  const asm = new Assembler(TEXT);
  const more = asm.label("more");
  const other = asm.label("other");
  asm.movImm(RAX, 7, 32);
  asm.test(RCX, RCX);
  asm.jcc("ne", more);
  asm.ret();
  if (isHemmed !== true) asm.bytes(new Uint8Array(8).fill(0xcc));
  asm.bind(more);
  asm.zero(RAX);
  if (hasTail === true) asm.jmp32(other);
  else asm.ret();
  asm.bytes(new Uint8Array(8).fill(0xcc));
  const end = asm.here("end");
  asm.bind(other);
  asm.ret();
  const last = asm.here("last");
  const bytes = asm.finish();
  const functions = [
    { start: TEXT, end: asm.addressOf(end), name },
    { start: asm.addressOf(end), end: asm.addressOf(last), name: "g" },
  ];
  const image: CodeImage = {
    name: "made",
    text: [{ start: TEXT, bytes }],
    findFunction: (addr) => functions.find((fn) => addr >= fn.start && addr < fn.end),
    pointersInto: () => [],
    landingPads: ({ start, end: to }) => {
      const pad = asm.addressOf(more);
      return hasPad === true && pad >= start && pad < to ? [pad] : [];
    },
    readData: () => undefined,
  };
  return new ImageCode(image);
}

interface Case {
  readonly name: string;
  readonly shape: Shape;
  readonly choice?: ReturnChoice;
  readonly obstacle?: string;
  readonly isGo?: boolean;
  readonly mechanism?: "auto" | "jump" | "int3";
  readonly expect: string;
}

const shadow = "the process uses shadow stacks";

const cases: readonly Case[] = [
  { name: "exits that take jumps", shape: {}, expect: "exits" },
  { name: "the stack, asked for", shape: {}, choice: "stack", expect: "stack: stack-forced" },
  { name: "an exit that needs an int3", shape: { isHemmed: true }, expect: "stack: exit-needs-int3" },
  {
    name: "an exit that needs an int3, where the entry would, too",
    shape: { isHemmed: true },
    mechanism: "int3",
    expect: "exits",
  },
  {
    name: "an exit that needs an int3, and exceptions pass through",
    shape: { isHemmed: true, hasPad: true },
    expect: "exits",
  },
  {
    name: "an exit that needs an int3, under shadow stacks",
    shape: { isHemmed: true },
    obstacle: shadow,
    expect: "exits",
  },
  { name: "an exit that needs an int3, in Go", shape: { isHemmed: true }, isGo: true, expect: "exits" },
  {
    name: "an exit that needs an int3, and exits asked for",
    shape: { isHemmed: true },
    choice: "sites",
    expect: "exits",
  },
  {
    name: "an exit that can take no jump, when only jumps are wanted",
    shape: { isHemmed: true },
    mechanism: "jump",
    expect: "stack: exit-refused",
  },
  {
    name: "the same, and exits asked for",
    shape: { isHemmed: true },
    mechanism: "jump",
    choice: "sites",
    expect: "impossible: its returns cannot be probed at its exits",
  },
  { name: "a tail call", shape: { hasTail: true }, expect: "exits" },
  {
    name: "a tail call under shadow stacks",
    shape: { hasTail: true },
    obstacle: shadow,
    expect: `impossible: ${shadow}`,
  },
  {
    name: "a tail call in Go",
    shape: { hasTail: true },
    isGo: true,
    expect: "impossible: Go looks for return addresses",
  },
  {
    name: "a tail call of what returns twice",
    shape: { hasTail: true, name: "setjmp" },
    expect: "stack: tail-call-hijacks",
  },
  { name: "what returns twice by itself", shape: { name: "vfork" }, expect: "exits" },
];

describe("the way of a function's returns", () => {
  it.each(cases)("$name", (each) => {
    const { shape, choice = "auto", obstacle, isGo = false, mechanism = "auto", expect: expected } = each;
    const code = make(shape);
    const print = (at: bigint) => `0x${at.toString(16)}`;
    const ways = new ReturnWays({ code, isGo, choice, obstacle, print }, [TEXT]);
    for (let isChanged = true; isChanged; ) {
      const way = ways.of(TEXT)!;
      const sites = way.kind === "exits" ? way.exits.map(({ at }) => at) : [TEXT];
      const plans = planSites(code, sites, { mechanism });
      isChanged = ways.revise((at) => plans[sites.indexOf(at)], { mechanism });
    }
    const way = ways.of(TEXT)!;
    const text =
      way.kind === "exits"
        ? "exits"
        : way.kind === "stack"
          ? `stack: ${way.refusal.reason}`
          : `impossible: ${way.reason}`;
    expect(text.startsWith(expected), text).toBe(true);
  });
});

import { describe, expect, test } from "vitest";
import type { GateProgram } from "../gate/gate-frame.ts";
import { Assembler, type Label } from "../x86/assembler.ts";
import type { CodeImage } from "../x86/code-image.ts";
import { ImageCode } from "../x86/regions.ts";
import {
  PT_REGS_COOKIE,
  PT_REGS_IP,
  R10,
  R11,
  RAX,
  RBX,
  RCX,
  RDI,
  RSI,
  RSP,
  regSet,
} from "../x86/registers.ts";
import { emitDetour, type ReturnHook, stackNeed } from "./detour.ts";
import { codeLines, explainSite, printCodeLines } from "./explain.ts";
import {
  findReturnRefusal,
  type Mechanism,
  type PlannedSite,
  patchOf,
  planAsTrap,
  planSites,
  type SitePlan,
} from "./plan.ts";
import { refusalText } from "./refusal.ts";
import { emitReturnTrampoline } from "./return-probe.ts";
import { emitReturnRuntime } from "./return-table.ts";
import { SA_SIGINFO } from "./signal-action.ts";
import { emitTrapHandler } from "./trap-handler.ts";
import { TrapTable } from "./trap-table.ts";

const TEXT = 0x7f12_3400_0000n;
const ARENA = TEXT - 0x10_0000n;

interface Made {
  readonly code: ImageCode;
  readonly site: bigint;
}

/** An image with one function; the site is its label. */
function make(emit: (asm: Assembler, site: Label) => void, name = "parse"): Made {
  const asm = new Assembler(TEXT);
  const site = asm.label("site");
  emit(asm, site);
  const bytes = asm.finish();
  const end = TEXT + BigInt(bytes.length);
  const image: CodeImage = {
    name: "libmade.so.1",
    text: [{ start: TEXT, bytes }],
    findFunction: (addr) => (addr >= TEXT && addr < end ? { start: TEXT, end, name } : undefined),
    pointersInto: () => [],
    landingPads: () => [],
    readData: () => undefined,
  };
  return { code: new ImageCode(image), site: asm.addressOf(site) };
}

const entry = (asm: Assembler, site: Label) => {
  asm.bind(site);
  asm.endbr64();
  asm.push(RBX);
  asm.mov(RBX, RDI);
  asm.call(TEXT + 0x4000n);
  asm.pop(RBX);
  asm.ret();
};

const middle = (asm: Assembler, site: Label) => {
  asm.mov({ base: RSP, disp: -8 }, RDI);
  asm.cmp(RDI, RSI);
  asm.bind(site);
  asm.mov(RAX, { ripTo: TEXT + 0x8000n });
  asm.alu("sbb", RCX, RAX);
  asm.ret();
};

const patchable = (asm: Assembler, site: Label) => {
  asm.bind(site);
  asm.endbr64();
  asm.nop(5);
  asm.push(RBX);
  asm.ret();
};

const patchableMiddle = (asm: Assembler, site: Label) => {
  asm.mov({ base: RSP, disp: -8 }, RDI);
  asm.bind(site);
  asm.nop(5);
  asm.ret();
};

const callSite = (asm: Assembler, site: Label) => {
  asm.push(RBX);
  asm.bind(site);
  asm.push(RAX);
  asm.call(TEXT + 0x4000n);
  asm.ret();
};

const hemmedIn = (asm: Assembler, site: Label) => {
  const again = asm.label();
  asm.bind(site);
  asm.dec(RDI);
  asm.bind(again);
  asm.inc(RAX);
  asm.dec(RCX);
  asm.jcc("ne", again);
  asm.ret();
};

const breakpoint = (asm: Assembler, site: Label) => {
  asm.bind(site);
  asm.int3();
  asm.nop(8);
  asm.ret();
};

const countProgram: GateProgram = {
  name: "program 1",
  entry: ARENA,
  clobbers: regSet(RAX, R11),
  ctxReads: new Set(),
  stackBytes: 16,
  cookie: 0n,
};
const sizeProgram: GateProgram = {
  name: "program 2",
  entry: ARENA + 64n,
  clobbers: regSet(RAX, RDI, R10),
  ctxReads: new Set([112, PT_REGS_IP, PT_REGS_COOKIE]),
  stackBytes: 64,
  cookie: 7n,
};

function planned(made: Made, mechanism: "auto" | Mechanism = "auto"): SitePlan {
  const [plan] = planSites(made.code, [made.site], { mechanism });
  if (plan?.kind !== "planned") throw new Error("refused");
  return plan;
}

function summary(plan: PlannedSite | undefined) {
  return {
    gets: plan?.kind === "planned" ? plan.mechanism : plan?.kind,
    refused: plan?.refused.map(({ mechanism, refusal }) => `${mechanism}: ${refusal.reason}`),
  };
}

const noCall = "call: no-patchable-entry";
const notAsked = "call: other-mechanism-forced";

describe("the ladder", () => {
  const cases: {
    readonly name: string;
    readonly emit: (asm: Assembler, site: Label) => void;
    readonly mechanism: "auto" | Mechanism;
    readonly gets: Mechanism | "refused";
    readonly refused: readonly string[];
  }[] = [
    { name: "auto takes the jump", emit: entry, mechanism: "auto", gets: "jump", refused: [noCall] },
    {
      name: "auto falls to int3 with the reason",
      emit: hemmedIn,
      mechanism: "auto",
      gets: "int3",
      refused: [noCall, "jump: jump-into-region"],
    },
    { name: "jump forced and possible", emit: entry, mechanism: "jump", gets: "jump", refused: [notAsked] },
    {
      name: "jump forced and impossible",
      emit: hemmedIn,
      mechanism: "jump",
      gets: "refused",
      refused: [notAsked, "jump: jump-into-region"],
    },
    {
      name: "int3 forced",
      emit: entry,
      mechanism: "int3",
      gets: "int3",
      refused: [notAsked, "jump: other-mechanism-forced"],
    },
    {
      name: "an instruction that cannot be moved has no rung",
      emit: breakpoint,
      mechanism: "auto",
      gets: "refused",
      refused: [noCall, "jump: unrelocatable", "int3: unrelocatable"],
    },
  ];
  cases.push(
    { name: "auto takes the call", emit: patchable, mechanism: "auto", gets: "call", refused: [] },
    { name: "call forced and possible", emit: patchable, mechanism: "call", gets: "call", refused: [] },
    {
      name: "call forced and impossible",
      emit: entry,
      mechanism: "call",
      gets: "refused",
      refused: [noCall],
    },
    {
      name: "jump forced where a call could be",
      emit: patchable,
      mechanism: "jump",
      gets: "jump",
      refused: [notAsked],
    },
    {
      name: "a nop in the middle takes a jump, never a call",
      emit: patchableMiddle,
      mechanism: "auto",
      gets: "jump",
      refused: ["call: not-a-function-entry"],
    },
  );
  for (const { name, emit, mechanism, gets, refused } of cases) {
    test(name, () => {
      const made = make(emit);
      const [plan] = planSites(made.code, [made.site], { mechanism });
      expect(summary(plan)).toEqual({ gets, refused });
    });
  }

  test("text that differs from the file is refused", () => {
    const made = make(entry);
    const [plan] = planSites(made.code, [made.site], {
      mechanism: "auto",
      readText: (_, lenBytes) => new Uint8Array(lenBytes).fill(0xe9),
    });
    expect(summary(plan)).toEqual({
      gets: "refused",
      refused: [noCall, "jump: text-differs", "int3: text-differs"],
    });
  });

  test("a detour out of reach lets the site fall to int3", () => {
    const made = make(entry);
    const plan = planned(made);
    const lower = planAsTrap(made.code, plan, {
      reason: "detour-out-of-reach",
      site: plan.at,
      detour: plan.at + (1n << 40n),
    });
    expect(summary(lower)).toEqual({ gets: "int3", refused: [noCall, "jump: detour-out-of-reach"] });
  });
});

test("what is to run at a site can forbid the call", () => {
  const made = make(patchable);
  const [plan] = planSites(made.code, [made.site], {
    mechanism: "auto",
    callObstacle: (at) => ({ reason: "return-address-claimed", at }),
  });
  expect(summary(plan)).toEqual({ gets: "jump", refused: ["call: return-address-claimed"] });
});

test("a jump beside a call does not cover it", () => {
  const made = make(patchable);
  const nop = made.site + 4n;
  const plans = planSites(made.code, [made.site, nop], { mechanism: "auto" });
  // A probe at the nop itself keeps the call away.
  expect(plans.map(summary)).toMatchObject([
    { gets: "int3", refused: ["call: other-probe-in-region", "jump: other-probe-in-region"] },
    { gets: "jump", refused: ["call: not-a-function-entry"] },
  ]);
});

describe("what is written into the text", () => {
  test("a call is written behind the endbr64", () => {
    const plan = planned(make(patchable));
    expect([...plan.oldBytes]).toEqual([0x0f, 0x1f, 0x44, 0, 0]);
    expect(plan.region.start).toBe(plan.at + 4n);
    expect([...patchOf(plan, "call", plan.at + 9n + 0x0102_0304n)]).toEqual([0xe8, 4, 3, 2, 1]);
  });

  test("a jump keeps the bytes behind it", () => {
    const plan = planned(make(entry));
    const patch = patchOf(plan, "jump", plan.at + 5n + 0x0102_0304n);
    expect([...patch]).toEqual([0xe9, 4, 3, 2, 1, ...plan.oldBytes.subarray(5)]);
    expect(patch.length).toBe(plan.region.lenBytes);
  });

  test("a site planned for a jump can be armed with int3 first", () => {
    const plan = planned(make(entry));
    expect([...patchOf(plan, "int3", ARENA)]).toEqual([0xcc, ...plan.oldBytes.subarray(1)]);
  });

  test("the plan and the image keep the old bytes", () => {
    const made = make(entry);
    const plan = planned(made);
    patchOf(plan, "jump", ARENA).fill(0);
    expect(plan.oldBytes[0]).toBe(0xf3);
    expect(made.code.image.text[0]!.bytes[0]).toBe(0xf3);
  });

  test("a site planned for int3 cannot take a jump", () => {
    const plan = planned(make(hemmedIn));
    expect(() => patchOf(plan, "jump", ARENA)).toThrow("no jump");
  });
});

describe("a return probe", () => {
  test("needs a function entry", () => {
    expect(findReturnRefusal(planned(make(entry)))).toBeUndefined();
    expect(findReturnRefusal(planned(make(middle)))).toMatchObject({ reason: "not-a-function-entry" });
  });

  for (const name of ["vfork", "setjmp", "__sigsetjmp", "getcontext", "swapcontext@@GLIBC_2.2.5"]) {
    test(`${name} returns twice`, () => {
      const refusal = findReturnRefusal(planned(make(entry, name)));
      expect(refusal).toMatchObject({ reason: "returns-twice" });
      expect(refusalText(refusal!)).toContain("returns more than once");
    });
  }
});

describe("an entry that is a loop's head", () => {
  test("is treated like the middle of a function", () => {
    const plan = planned(
      make((asm, site) => {
        asm.bind(site);
        asm.endbr64();
        asm.dec(RDI);
        asm.jcc("ne", site);
        asm.ret();
      }),
    );
    expect(plan.isEntry).toBe(false);
  });
});

function golden(name: string): string {
  return `../../test/cases/patch/${name}.txt`;
}

/** Golden files: `npx vitest run src/patch/plan.test.ts -u` accepts a change. */
describe("explanations", () => {
  const table = {
    at: 0x7f00_0000_0000n,
    entries: 1024,
    trampolines: { start: ARENA + 0x8000n, end: ARENA + 0x10000n },
  };
  const runtime = emitReturnRuntime(ARENA + 0x4000n, table);

  const cases: readonly {
    readonly name: string;
    readonly emit: (asm: Assembler, site: Label) => void;
    readonly programs: readonly GateProgram[];
    readonly hook?: ReturnHook;
  }[] = [
    { name: "entry-count", emit: entry, programs: [countProgram] },
    { name: "entry-two-programs", emit: entry, programs: [countProgram, sizeProgram] },
    { name: "middle-flags-and-red-zone", emit: middle, programs: [sizeProgram] },
    { name: "displaced-call", emit: callSite, programs: [countProgram] },
    { name: "int3", emit: hemmedIn, programs: [countProgram] },
    {
      name: "entry-and-return",
      emit: entry,
      programs: [countProgram],
      hook: { trampoline: ARENA + 0x8080n, claim: runtime.claim },
    },
  ];
  for (const { name, emit, programs, hook } of cases) {
    test(name, async () => {
      const plan = planned(make(emit));
      const detour = emitDetour({ plan, at: ARENA + 0x1000n, programs, returnHook: hook });
      if (detour.kind === "refused") throw new Error(detour.refusal.reason);
      expect(stackNeed(detour, hook)).toBeGreaterThan(0);
      const lines = explainSite(plan, detour, patchOf(plan, plan.mechanism, detour.entry));
      await expect(`${lines.join("\n")}\n`).toMatchFileSnapshot(golden(name));
    });
  }

  test("return trampoline", async () => {
    const trampoline = emitReturnTrampoline({
      at: ARENA + 0x8000n,
      programs: [sizeProgram],
      runtime,
      nmissed: 0x7f00_0001_0000n,
    });
    const lines = printCodeLines([...codeLines(runtime), ...codeLines(trampoline)]);
    await expect(`${lines.join("\n")}\n`).toMatchFileSnapshot(golden("return-trampoline"));
  });

  test("trap handler", async () => {
    const traps = new TrapTable(4);
    traps.set(TEXT, ARENA + 0x1000n);
    const handler = emitTrapHandler({
      at: ARENA + 0x2000n,
      table: traps,
      previous: { handler: TEXT + 0x100n, flags: SA_SIGINFO, restorer: 0n, mask: 0n },
    });
    await expect(`${printCodeLines(codeLines(handler)).join("\n")}\n`).toMatchFileSnapshot(
      golden("trap-handler"),
    );
  });
});

/** Functions of the program, callbacks and tail calls: compiled and interpreted. */
import { afterAll, describe, expect, it } from "vitest";
import { contextOf, NativeBpf } from "../../../test/support/native-bpf.ts";
import { HELPER_FOR_EACH_MAP_ELEM, HELPER_LOOP, HELPER_TAIL_CALL } from "../helpers.ts";
import {
  type BpfReg,
  bpfRegs,
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  type HelperHost,
  InsnBuilder,
  type MapSpec,
  type ProgramSpec,
  r0,
  r1,
  r2,
  r3,
  r4,
  r5,
  r6,
  r7,
  r8,
  r9,
  r10,
} from "../index.ts";

const maps: readonly MapSpec[] = [
  { name: "hash", kind: "hash", keyBytes: 8, valueBytes: 8, maxEntries: 16 },
  { name: "array", kind: "array", keyBytes: 4, valueBytes: 16, maxEntries: 5 },
  {
    name: "constants",
    kind: "array",
    keyBytes: 4,
    valueBytes: 16,
    maxEntries: 1,
    isReadOnly: true,
    contents: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 0x88, 9, 10, 11, 12, 13, 14, 15, 0xf0),
  },
];
const native = new NativeBpf({ maps });
native.memory.bytes.set(maps[2]!.contents!, Number(native.env.mapAddr(2) - native.env.mapAddr(0)));
afterAll(() => native[Symbol.dispose]());

const ctx = contextOf((offset) => 0x0123_4567_89ab_0000n + BigInt(offset));

/** Runs both ways; the result and all maps must be the same. */
function runBoth(write: (b: InsnBuilder) => void, on = native, host: Partial<HelperHost> = {}) {
  const b = new InsnBuilder();
  write(b);
  const { insns } = b.build();
  on.reset();
  const compiled = on.compile(insns);
  const start = on.memory.bytes.slice();
  const want = on.interpret(insns, ctx, host);
  const wantMemory = on.memory.bytes.slice();
  on.memory.bytes.set(start);
  const got = on.run(compiled, ctx);
  expect(got).toBe(want);
  expect(Buffer.compare(on.memory.bytes, wantMemory)).toBe(0);
  return { result: got, compiled, insns };
}

/** r6 to r9 = numbers of their own. */
function fill(b: InsnBuilder, seed: number, regs: readonly BpfReg[] = [r6, r7, r8, r9]): InsnBuilder {
  for (const reg of regs) b.loadConst(reg, BigInt(reg.reg * 1_000_003 + seed) * 0x1_0000_0001n);
  return b;
}

function addUp(b: InsnBuilder, regs: readonly BpfReg[]): InsnBuilder {
  for (const reg of regs) b.alu64("mul", r0, 31).alu64("add", r0, reg);
  return b;
}

describe("local functions", () => {
  it("take five arguments and keep the caller's registers, however many they use", () => {
    runBoth((b) => {
      const fn = b.label();
      b.ldx(8, r6, r1, 8).ldx(8, r7, r1, 16).ldx(8, r8, r1, 24).ldx(8, r9, r1, 32);
      for (const [i, reg] of [r1, r2, r3, r4, r5].entries()) b.mov64(reg, 7 * i + 1);
      addUp(b.callLocal(fn), [r6, r7, r8, r9]).exit();
      fill(b.bind(fn).mov64(r0, r1), 5);
      addUp(b, bpfRegs.slice(1, 10)).exit();
    });
  });

  it("call routines and functions of their own, with a division and a shift among them", () => {
    runBoth((b) => {
      const [outer, inner] = [b.label(), b.label()];
      fill(b, 1).mov64(r1, 1000).mov64(r2, 77).callLocal(outer);
      addUp(b, [r6, r7, r8, r9]).exit();
      fill(b.bind(outer).stx(8, r10, -8, r1).stx(8, r10, -16, r2), 2);
      b.ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -8).mov64(r3, r10).alu64("add", r3, -16).mov64(r4, 0);
      b.call(HELPER_MAP_UPDATE_ELEM).mov64(r1, r9).mov64(r2, 13).mov64(r3, r10).alu64("add", r3, -24);
      b.callLocal(inner).ldx(8, r1, r10, -24);
      addUp(b, [r1, r6, r7, r8, r9]).exit();
      fill(b.bind(inner), 3).mov64(r0, r1).alu64("div", r0, r2).alu64("lsh", r9, r2).alu64("mod", r8, r0);
      b.stx(8, r3, 0, r8).mov64(r4, 5).mov64(r5, 9).alu64("sdiv", r7, r5).alu64("arsh", r6, r4);
      addUp(b, [r1, r2, r4, r5, r6, r7, r9]).exit();
    });
  });

  it("get the context as an ordinary pointer, also for helpers that take it", () => {
    const { compiled, result } = runBoth((b) => {
      const fn = b.label();
      b.callLocal(fn).exit();
      b.bind(fn).mov64(r6, r1).call(HELPER_GET_ATTACH_COOKIE).ldx(8, r1, r6, 24).alu64("add", r0, r1).exit();
    });
    expect(result).toBe(BigInt.asUintN(64, 2n * 0x0123_4567_89ab_0000n + 120n + 24n));
    expect([...compiled.program.ctxReads].sort((x, y) => x - y)).toEqual([24, 120]);
  });

  it("have frames of their own, large ones too, that pointers lead into", () => {
    runBoth((b) => {
      const [fn, leaf] = [b.label(), b.label()];
      b.st(8, r10, -8, 11).st(8, r10, -160, 12).mov64(r1, r10).alu64("add", r1, -160).callLocal(fn);
      b.ldx(8, r1, r10, -8).ldx(8, r2, r10, -160);
      addUp(b, [r1, r2]).exit();
      b.bind(fn).st(8, r10, -8, 21).st(8, r10, -136, 22).st(8, r1, 0, 23).mov64(r6, r1);
      b.mov64(r2, r10).alu64("add", r2, -136).callLocal(leaf).ldx(8, r1, r10, -136).ldx(8, r2, r10, -8);
      addUp(b, [r1, r2]).exit();
      b.bind(leaf)
        .st(8, r10, -64, 5)
        .ldx(8, r3, r1, 0)
        .atomic("add", 8, r2, 0, r3)
        .ldx(8, r0, r10, -64)
        .exit();
    });
  });

  it("eight deep, each keeping four registers over the call", () => {
    runBoth((b) => {
      const functions = Array.from({ length: 7 }, () => b.label());
      b.mov64(r1, 3);
      for (const [depth, next] of functions.entries()) {
        fill(b, depth).stx(8, r10, -8, r1).alu64("add", r1, 5).callLocal(next).ldx(8, r1, r10, -8);
        addUp(b, [r1, r6, r7, r8, r9]).exit().bind(next);
      }
      b.mov64(r0, r1).exit();
    });
  });

  it("are called twice and from each other without a return value", () => {
    runBoth((b) => {
      const [fn, other] = [b.label(), b.label()];
      b.st(8, r10, -8, 0).mov64(r1, r10).alu64("add", r1, -8).mov64(r6, r1).callLocal(fn);
      b.mov64(r1, r6).callLocal(other).mov64(r1, r6).callLocal(fn).ldx(8, r0, r10, -8).exit();
      b.bind(fn).mov64(r2, 3).atomic("add", 8, r1, 0, r2).exit();
      b.bind(other).mov64(r6, r1).callLocal(fn).mov64(r1, r6).callLocal(fn).exit();
    });
  });

  it("a leaf saves nothing, and its caller saves nothing for it", () => {
    const { compiled } = runBoth((b) => {
      const fn = b.label();
      b.ldx(8, r6, r1, 8).mov64(r1, r6).callLocal(fn).alu64("add", r0, r6).exit();
      b.bind(fn).mov64(r0, r1).alu64("mul", r0, 3).exit();
    });
    expect(Buffer.from(compiled.code).toString("hex")).not.toMatch(/^5/);
    expect(compiled.program.stackBytes).toBe(8);
  });
});

const loopOver = (b: InsnBuilder, count: number | BpfReg, flags: number | BpfReg, context = -8) => {
  const [body, goOn] = [b.label(), b.label()];
  fill(b, 9).st(8, r10, -8, 1).ldFunction(r2, body);
  if (typeof count === "number") b.mov64(r1, count);
  else b.mov64(r1, count);
  b.mov64(r3, r10).alu64("add", r3, context).mov64(r4, flags);
  b.call(HELPER_LOOP).ldx(8, r1, r10, -8);
  addUp(b, [r1, r6, r7, r8, r9]).exit();
  b.bind(body).ldx(8, r3, r2, 0).alu64("mul", r3, 7).alu64("add", r3, r1).stx(8, r2, 0, r3).mov64(r0, 0);
  b.jmp("lt", r1, 1000, goOn).mov64(r0, 1).bind(goOn).exit();
};

describe("callbacks", () => {
  it.each([0, 1, 2, 50, 1001, 5000, 1 << 23, (1 << 23) + 1, -1])("bpf_loop %d times", (count) => {
    runBoth((b) => loopOver(b, count, 0));
    runBoth((b) =>
      loopOver(
        b
          .loadConst(r5, BigInt(count) + (7n << 40n))
          .stx(8, r10, -16, r5)
          .ldx(8, r5, r10, -16),
        r5,
        0,
      ),
    );
  });

  it("bpf_loop with flags fails", () => {
    runBoth((b) => loopOver(b, 5, 1));
    runBoth((b) => loopOver(b.ldx(8, r5, r1, 0), 5, r5));
  });

  it("bpf_loop in bpf_loop in a function, with registers that all keep something", () => {
    runBoth((b) => {
      const [fn, outer, inner] = [b.label(), b.label(), b.label()];
      b.st(8, r10, -8, 0).mov64(r1, r10).alu64("add", r1, -8).callLocal(fn).ldx(8, r1, r10, -8);
      addUp(b, [r1]).exit();
      fill(b.bind(fn), 4).mov64(r3, r1).mov64(r1, 9).ldFunction(r2, outer).mov64(r4, 0).call(HELPER_LOOP);
      addUp(b, [r6, r7, r8, r9]).exit();
      fill(b.bind(outer), 5)
        .stx(8, r10, -8, r1)
        .mov64(r3, r2)
        .ldFunction(r2, inner)
        .mov64(r4, 0)
        .call(HELPER_LOOP);
      addUp(b, [r6, r7, r8, r9]).mov64(r0, 0).exit();
      b.bind(inner)
        .ldx(8, r3, r2, 0)
        .alu64("mul", r3, 5)
        .alu64("add", r3, r1)
        .stx(8, r2, 0, r3)
        .mov64(r0, 0)
        .exit();
    });
  });

  it("a callback that ignores its arguments and calls helpers", () => {
    runBoth((b) => {
      const body = b.label();
      b.mov64(r1, 10).ldFunction(r2, body).mov64(r3, 0).mov64(r4, 0).call(HELPER_LOOP).exit();
      b.bind(body).ldMapValue(r6, 1, 0).mov64(r7, 1).call(HELPER_GET_CURRENT_UID_GID);
      b.atomic("add", 8, r6, 0, r7).mov64(r0, 0).exit();
    });
  });
});

/** Adds 100 to every value of map 0 and sums keys, values and visits up, until a key is at least `stopAt`. */
const visit = (stopAt: number) => (b: InsnBuilder) => {
  const [body, goOn] = [b.label(), b.label()];
  fill(b, 3).st(8, r10, -8, 0).st(8, r10, -16, 0).ldMapFd(r1, 0).ldFunction(r2, body).mov64(r3, r10);
  b.alu64("add", r3, -16)
    .mov64(r4, 0)
    .call(HELPER_FOR_EACH_MAP_ELEM)
    .ldx(8, r1, r10, -8)
    .ldx(8, r2, r10, -16);
  addUp(b, [r1, r2, r6, r7, r8, r9]).exit();
  b.bind(body).ldx(4, r2, r2, 0).ldx(8, r5, r3, 0).alu64("add", r5, 100).stx(8, r3, 0, r5);
  b.ldx(8, r1, r4, 8).alu64("add", r1, r5).alu64("add", r1, r2).stx(8, r4, 8, r1);
  b.ldx(8, r1, r4, 0).alu64("add", r1, 1).stx(8, r4, 0, r1).mov64(r0, 1);
  b.jmp("ge", r2, stopAt, goOn).mov64(r0, 0).bind(goOn).exit();
};

const kinds: readonly MapSpec[] = [
  ...(["array", "percpu_array"] as const).map((kind) => ({ kind, keyBytes: 4 })),
  ...(["hash", "lru_hash", "percpu_hash", "lru_percpu_hash"] as const).map((kind) => ({ kind, keyBytes: 8 })),
].map(({ kind, keyBytes }) => ({
  name: kind,
  kind,
  keyBytes,
  valueBytes: 8,
  maxEntries: 6,
  ...(kind.includes("percpu") ? { cpus: 2 } : {}),
}));

describe.each(kinds)("bpf_for_each_map_elem on a map of kind $kind", (spec) => {
  const world = new NativeBpf({ maps: [spec] });
  afterAll(() => world[Symbol.dispose]());

  // The order of the elements of a hash is nobody's business.
  it.each([
    { name: "all elements", stopAt: 1000 },
    ...(spec.keyBytes === 4 ? [{ name: "some of them", stopAt: 3 }] : []),
    { name: "only one", stopAt: 0 },
  ])("visits $name", ({ stopAt }) => {
    world.memory.bytes.fill(0);
    // Of the two slots of per-CPU kinds one is taken, so that both ways use the other; the interpreter asks its host.
    if (spec.cpus !== undefined) world.memory.words[0] = 1n;
    const cpu = { cpu: () => 1 };
    runBoth(visit(stopAt), world, cpu);
    for (let key = 0; key < 5; key++)
      runBoth(
        (b) => {
          b.st(8, r10, -8, key).st(8, r10, -16, key * 77);
          b.ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -8).mov64(r3, r10).alu64("add", r3, -16);
          b.mov64(r4, 0).call(HELPER_MAP_UPDATE_ELEM).exit();
        },
        world,
        cpu,
      );
    runBoth(visit(stopAt), world, cpu);
    runBoth(visit(stopAt), world, cpu);
  });
});

/** Counts in the first map, or another, at `[r10 - 16]` a key of 0. */
const countInFirst = (b: InsnBuilder, map = 0) => {
  const none = b.label();
  b.st(8, r10, -16, 0).ldMapFd(r1, map).mov64(r2, r10).alu64("add", r2, -16).call(HELPER_MAP_LOOKUP_ELEM);
  b.jmp("eq", r0, 0, none).mov64(r1, 1).atomic("add", 8, r0, 0, r1).bind(none);
  return b;
};

const inMain = (b: InsnBuilder) => countInFirst(b).mov64(r0, 0).exit();
const inFunction = (b: InsnBuilder) => {
  const fn = b.label();
  fill(b, 1).callLocal(fn);
  addUp(b, [r6, r7, r8, r9]).exit();
  countInFirst(fill(b.bind(fn), 2)).mov64(r0, 5);
  addUp(b, [r6, r7, r8, r9]).exit();
};
const inCallback = (b: InsnBuilder) => {
  const body = b.label();
  b.mov64(r1, 1).ldFunction(r2, body).mov64(r3, 0).mov64(r4, 0).call(HELPER_LOOP).exit();
  countInFirst(b.bind(body)).mov64(r0, 0).exit();
};
const onTwoPaths = (b: InsnBuilder) => {
  const other = b.label();
  b.ldx(8, r6, r1, 0).jmp("eq", r6, 0, other);
  countInFirst(b).mov64(r0, 1).exit();
  countInFirst(b.bind(other)).mov64(r0, 2).exit();
};
describe("the slot of per-CPU maps", () => {
  const cpus = 3;
  const specs = [
    { name: "first", kind: "percpu_array", keyBytes: 4, valueBytes: 8, maxEntries: 1, cpus },
    { name: "second", kind: "percpu_hash", keyBytes: 8, valueBytes: 8, maxEntries: 4, cpus },
  ] as const;
  const world = new NativeBpf({ maps: specs });
  afterAll(() => world[Symbol.dispose]());

  const owner = (slot: number) => world.memory.words[slot * 8];
  const counted = () =>
    specs.length > 0 && world.maps[0]?.kind === "percpu_array"
      ? world.maps[0].read(new Uint8Array(4))
      : undefined;

  it.each([
    { name: "the main function", write: inMain },
    { name: "a function", write: inFunction },
    { name: "a callback", write: inCallback },
    { name: "two paths", write: onTwoPaths },
  ])("is the one that is free, in $name, and free again afterwards", ({ write }) => {
    for (const free of [0, 1, 2]) {
      world.memory.bytes.fill(0);
      for (let slot = 0; slot < cpus; slot++) if (slot !== free) world.memory.words[slot * 8] = 9n;
      runBoth(write, world, { cpu: () => free });
      expect([0, 1, 2].map(owner)).toEqual([0, 1, 2].map((slot) => (slot === free ? 0n : 9n)));
      expect(counted()?.map((bytes) => bytes[0])).toEqual([0, 1, 2].map((slot) => (slot === free ? 1 : 0)));
    }
  });

  it("is shared when all are taken, and stays with its owners", () => {
    world.memory.bytes.fill(0);
    for (let slot = 0; slot < cpus; slot++) world.memory.words[slot * 8] = 9n;
    const b = new InsnBuilder();
    const { insns } = inMain(b).build();
    world.reset();
    world.run(world.compile(insns), ctx);
    expect([0, 1, 2].map(owner)).toEqual([9n, 9n, 9n]);
    expect(counted()?.reduce((sum, bytes) => sum + bytes[0]!, 0)).toBe(1);
  });

  it("is that of the processor when that is free", () => {
    world.memory.bytes.fill(0);
    const b = new InsnBuilder();
    const { insns } = inMain(b).build();
    world.reset();
    const compiled = world.compile(insns);
    for (let i = 0; i < 100; i++) world.run(compiled, ctx);
    expect([0, 1, 2].map(owner)).toEqual([0n, 0n, 0n]);
    expect(counted()?.reduce((sum, bytes) => sum + bytes[0]!, 0)).toBe(100);
  });
});

describe("memory that never changes", () => {
  it.each([1, 2, 4, 8] as const)("loads of %d bytes are constants", (bytes) => {
    const { compiled } = runBoth((b) => {
      b.ldMapValue(r1, 2, 0)
        .ldx(bytes, r0, r1, 0)
        .ldx(bytes, r2, r1, 8)
        .alu64("mul", r0, 31)
        .alu64("add", r0, r2);
      if (bytes !== 8)
        b.ldsx(bytes, r2, r1, 16 - bytes)
          .alu64("mul", r0, 31)
          .alu64("add", r0, r2);
      b.exit();
    });
    // A constant in rax, and ret.
    expect(compiled.code.length).toBeLessThanOrEqual(11);
  });
});

const programArray: MapSpec = { name: "next", kind: "prog_array", keyBytes: 4, valueBytes: 4, maxEntries: 4 };
const counters: MapSpec = { name: "counters", kind: "array", keyBytes: 4, valueBytes: 8, maxEntries: 8 };

function program(name: string, write: (b: InsnBuilder) => void): ProgramSpec {
  const b = new InsnBuilder();
  write(b);
  return { name, insns: b.build().insns };
}

/** Adds to a counter; changes r1 and r2. */
const count = (b: InsnBuilder, counter: number, by = 1) =>
  b
    .ldMapValue(r1, 1, 8 * counter)
    .mov64(r2, by)
    .atomic("add", 8, r1, 0, r2);

const jumpTo = (b: InsnBuilder, index: number | BpfReg, context: BpfReg = r6) =>
  b.mov64(r3, index).mov64(r1, context).ldMapFd(r2, 0).call(HELPER_TAIL_CALL);

const start = (index: number) => (b: InsnBuilder) =>
  jumpTo(count(fill(b, 1).mov64(r6, r1), 7), index)
    .mov64(r0, 1)
    .exit();

describe("tail calls", () => {
  const programs = [
    program("answers", (b) => count(b.mov64(r6, r1), 0).ldx(8, r0, r6, 16).alu64("add", r0, 5).exit()),
    program("goes round", (b) =>
      jumpTo(count(b.mov64(r6, r1), 1), 1)
        .mov64(r0, 9)
        .exit(),
    ),
    program("goes on from a function", (b) => {
      const fn = b.label();
      fill(b.mov64(r6, r1), 6, [r7, r8, r9]);
      b.callLocal(fn);
      count(addUp(b, [r7, r8, r9]).stx(8, r10, -8, r0), 3)
        .ldx(8, r0, r10, -8)
        .exit();
      count(b.bind(fn).mov64(r6, r1), 2);
      jumpTo(fill(b, 7, [r7, r8, r9]), 0, r6)
        .mov64(r0, 3)
        .exit();
    }),
    program("goes round in a function", (b) => {
      const fn = b.label();
      b.callLocal(fn).alu64("add", r0, 1).exit();
      jumpTo(count(b.bind(fn).mov64(r6, r1), 4), 3)
        .mov64(r0, 100)
        .exit();
    }),
  ];
  const bundle = new NativeBpf({
    maps: [programArray, { ...counters, maxEntries: 1, valueBytes: 64 }],
    programs,
  });
  afterAll(() => bundle[Symbol.dispose]());
  const setSlots = (...slots: readonly bigint[]) => {
    bundle.memory.bytes.fill(0);
    for (const [i, slot] of slots.entries()) bundle.memory.words[i] = slot;
  };
  it.each([
    { name: "a program", index: 0 },
    { name: "a program that goes to itself until the limit", index: 1 },
    { name: "a program that goes on from a function", index: 2 },
    { name: "a program that goes round from a function, which deepens the stack", index: 3 },
    { name: "a slot beyond the last", index: 4 },
    { name: "a slot far beyond", index: -1 },
  ])("to $name", ({ index }) => {
    setSlots(1n, 2n, 3n, 4n);
    runBoth(start(index), bundle);
  });

  it.each([
    { name: "is empty", slot: 0n },
    { name: "names a program that is not there", slot: 5n },
    { name: "was overwritten", slot: -1n },
    { name: "was overwritten in its high half", slot: 0x1_0000_0001n },
  ])("do nothing when the slot $name", ({ slot }) => {
    setSlots(slot);
    expect(runBoth(start(0), bundle).result).toBe(1n);
  });

  it("from a function of the first program return to its caller", () => {
    setSlots(1n, 2n, 3n, 4n);
    const { compiled } = runBoth((b) => {
      const fn = b.label();
      fill(b.mov64(r6, r1), 2, [r7, r8, r9]).callLocal(fn);
      addUp(b, [r7, r8, r9]).exit();
      jumpTo(fill(b.bind(fn).mov64(r6, r1), 3, [r7, r8, r9]), 2)
        .mov64(r0, 1)
        .exit();
    }, bundle);
    expect(compiled.program.stackBytes).toBeGreaterThan(0);
  });

  it("declare what every program of the bundle reads", () => {
    setSlots(1n);
    const { compiled } = runBoth(start(0), bundle);
    expect(compiled.program.ctxReads.has(16)).toBe(true);
  });
});

it("a tail call carries the slot of per-CPU maps on, and the first program gives it back", () => {
  const next: MapSpec = { name: "next", kind: "prog_array", keyBytes: 4, valueBytes: 4, maxEntries: 2 };
  const perCpu: MapSpec = {
    name: "slots",
    kind: "percpu_array",
    keyBytes: 4,
    valueBytes: 8,
    maxEntries: 1,
    cpus: 3,
  };
  const programs = [program("counts", (b) => countInFirst(b, 1).mov64(r0, 7).exit())];
  using world = new NativeBpf({ maps: [next, perCpu], programs });
  world.memory.words[0] = 1n;
  const firstOwner = Number(world.env.mapAddr(1) - world.env.mapAddr(0)) / 8;
  for (const slot of [0, 2]) world.memory.words[firstOwner + 8 * slot] = 9n;
  expect(runBoth((b) => jumpTo(b.mov64(r6, r1), 0).mov64(r0, 1).exit(), world, { cpu: () => 1 }).result).toBe(
    7n,
  );
  expect([0, 1, 2].map((slot) => world.memory.words[firstOwner + 8 * slot])).toEqual([9n, 0n, 9n]);
  const [, map] = world.maps;
  const copies = map?.kind === "percpu_array" ? map.read(new Uint8Array(4)) : undefined;
  expect(copies?.map((bytes) => bytes[0])).toEqual([0, 1, 0]);
});

import { describe, expect, test } from "vitest";
import { Assembler, type Label } from "./assembler.ts";
import type { CodeImage } from "./code-image.ts";
import { ImageCode, type RegionRefusal } from "./regions.ts";
import { R10, R11, RAX, RCX, RDI, RDX, RSI } from "./registers.ts";

const TEXT = 0x7f00_0000_0000n;
const RODATA = TEXT + 0x10_0000n;

interface Built {
  readonly image: CodeImage;
  readonly addressOf: (label: Label) => bigint;
}

interface Parts {
  /** Emits the text; functions are named in order of their labels. */
  readonly functions: readonly {
    readonly name: string | undefined;
    readonly start: Label;
    readonly end: Label;
  }[];
  readonly data?: (addressOf: (label: Label) => bigint) => Uint8Array;
  readonly pointers?: readonly Label[];
  readonly landingPads?: readonly Label[];
}

function build(emit: (asm: Assembler) => Parts): Built {
  const asm = new Assembler(TEXT);
  const parts = emit(asm);
  const bytes = asm.finish();
  const addressOf = (label: Label) => asm.addressOf(label);
  const functions = parts.functions.map(({ name, start, end }) => ({
    name,
    start: addressOf(start),
    end: addressOf(end),
  }));
  const pointers = (parts.pointers ?? []).map(addressOf);
  const landingPads = (parts.landingPads ?? []).map(addressOf);
  const data = parts.data?.(addressOf) ?? new Uint8Array(0);
  return {
    addressOf,
    image: {
      name: "made",
      text: [{ start: TEXT, bytes }],
      findFunction: (addr) => functions.find((fn) => addr >= fn.start && addr < fn.end),
      pointersInto: (from, to) => pointers.filter((addr) => addr >= from && addr < to),
      landingPads: (fn) => landingPads.filter((addr) => addr >= fn.start && addr < fn.end),
      readData(addr, lenBytes) {
        const offset = Number(addr - RODATA);
        return offset >= 0 && offset + lenBytes <= data.length
          ? data.subarray(offset, offset + lenBytes)
          : undefined;
      },
    },
  };
}

/** One function `f` whose site is its label `site`; `emit` may use other labels. */
interface Case {
  readonly name: string;
  readonly emit: (asm: Assembler, site: Label, marked: Label) => void;
  readonly extra?: (marked: Label) => Partial<Parts>;
  readonly expect: { readonly bytes: number; readonly padding?: number } | RegionRefusal["reason"];
  readonly armed?: "marked";
}

/** Ends a function with something longer than any region. */
function tail(asm: Assembler): void {
  asm.movabs(RAX, 0x1122_3344_5566_7788n);
  asm.ret();
}

const cases: readonly Case[] = [
  {
    name: "one instruction of five bytes at the entry",
    emit: (asm, site) => {
      asm.bind(site);
      asm.movImm(RAX, 7, 32);
      tail(asm);
    },
    expect: { bytes: 5 },
  },
  {
    name: "one long instruction",
    emit: (asm, site) => {
      asm.bind(site);
      asm.movabs(RAX, 0x1122_3344_5566_7788n);
      tail(asm);
    },
    expect: { bytes: 10 },
  },
  {
    name: "five short instructions",
    emit: (asm, site) => {
      asm.bind(site);
      for (let i = 0; i < 6; i++) asm.push(RAX);
      tail(asm);
    },
    expect: { bytes: 5 },
  },
  {
    name: "instructions of 4 and 3 bytes",
    emit: (asm, site) => {
      asm.bind(site);
      asm.endbr64();
      asm.mov(RAX, RDI);
      tail(asm);
    },
    expect: { bytes: 7 },
  },
  {
    name: "jump to the region's first byte",
    emit: (asm, site) => {
      asm.bind(site);
      asm.movImm(RAX, 7, 32);
      asm.jcc("e", site);
      tail(asm);
    },
    expect: { bytes: 5 },
  },
  {
    name: "jump behind the region",
    emit: (asm, site, marked) => {
      asm.bind(site);
      asm.movImm(RAX, 7, 32);
      asm.bind(marked);
      asm.dec(RAX, 32);
      asm.jcc("ne", marked);
      tail(asm);
    },
    expect: { bytes: 5 },
  },
  {
    name: "short jump to the second instruction",
    emit: (asm, site, marked) => {
      asm.bind(site);
      asm.endbr64();
      asm.bind(marked);
      asm.mov(RAX, RDI);
      asm.jcc("ne", marked);
      tail(asm);
    },
    expect: "jump-into-region",
  },
  {
    name: "loop to the second instruction",
    emit: (asm, site, marked) => {
      asm.bind(site);
      asm.mov(RAX, RDI);
      asm.bind(marked);
      asm.mov(RCX, RSI);
      asm.bytes([0xe2, 0xfb]); // loop marked
      tail(asm);
    },
    expect: "jump-into-region",
  },
  {
    name: "jump from inside the region to its own last instruction",
    emit: (asm, site, marked) => {
      asm.bind(site);
      asm.jcc("e", marked);
      asm.push(RAX);
      asm.bind(marked);
      asm.mov(RAX, RDI);
      tail(asm);
    },
    expect: "jump-into-region",
  },
  {
    name: "call as the last instruction",
    emit: (asm, site) => {
      asm.bind(site);
      asm.push(RAX);
      asm.call(TEXT + 0x1000n);
      tail(asm);
    },
    expect: { bytes: 6 },
  },
  {
    name: "short call inside",
    emit: (asm, site) => {
      asm.bind(site);
      asm.callTo(RAX);
      tail(asm);
    },
    expect: "call-inside-region",
  },
  {
    name: "system call inside",
    emit: (asm, site) => {
      asm.bind(site);
      asm.syscall();
      tail(asm);
    },
    expect: "syscall-in-region",
  },
  {
    name: "system call as the last instruction",
    emit: (asm, site) => {
      asm.bind(site);
      asm.mov(RAX, RDI);
      asm.syscall();
      tail(asm);
    },
    expect: { bytes: 5 },
  },
  {
    name: "pointer in data to the second instruction",
    emit: (asm, site, marked) => {
      asm.bind(site);
      asm.push(RAX);
      asm.bind(marked);
      tail(asm);
    },
    extra: (marked) => ({ pointers: [marked] }),
    expect: "pointer-into-region",
  },
  {
    name: "landing pad in the region",
    emit: (asm, site, marked) => {
      asm.bind(site);
      asm.push(RAX);
      asm.bind(marked);
      tail(asm);
    },
    extra: (marked) => ({ landingPads: [marked] }),
    expect: "landing-pad-in-region",
  },
  {
    name: "address of the second instruction taken by lea",
    emit: (asm, site, marked) => {
      asm.bind(site);
      asm.push(RAX);
      asm.bind(marked);
      asm.movImm(RCX, 7, 32);
      asm.lea(RAX, { ripTo: marked });
      tail(asm);
    },
    expect: "address-taken-in-region",
  },
  {
    name: "other probe in the region",
    armed: "marked",
    emit: (asm, site, marked) => {
      asm.bind(site);
      asm.push(RAX);
      asm.bind(marked);
      tail(asm);
    },
    expect: "other-probe-in-region",
  },
  {
    name: "site inside an instruction",
    emit: (asm, site) => {
      asm.bytes([0x48]);
      asm.bind(site);
      asm.bytes([0xb8, 1, 2, 3, 4, 5, 6, 7, 8]);
      tail(asm);
    },
    expect: "inside-instruction",
  },
  {
    name: "bytes that are no instruction later in the function",
    emit: (asm, site) => {
      asm.bind(site);
      asm.push(RCX);
      tail(asm);
      asm.bytes([0x06, 0x06]);
    },
    expect: "undecodable",
  },
  {
    name: "one long instruction, with bytes that are no instruction later in the function",
    emit: (asm, site) => {
      asm.bind(site);
      asm.movImm(RAX, 7, 32);
      tail(asm);
      asm.bytes([0x06, 0x06]);
    },
    expect: { bytes: 5 },
  },
  {
    name: "return followed by padding of the function",
    emit: (asm, site) => {
      asm.bind(site);
      asm.ret();
      asm.nop(8);
      asm.endbr64();
    },
    expect: { bytes: 5, padding: 4 },
  },
  {
    name: "return followed by int3",
    emit: (asm, site) => {
      asm.bind(site);
      asm.ret();
      for (let i = 0; i < 7; i++) asm.int3();
    },
    expect: { bytes: 5, padding: 4 },
  },
  {
    name: "return followed by code that nothing is known to reach",
    emit: (asm, site) => {
      asm.bind(site);
      asm.ret();
      tail(asm);
    },
    expect: "unreached-code-in-region",
  },
  {
    name: "return followed by a branch target",
    emit: (asm, site, marked) => {
      asm.test(RAX, RAX);
      asm.jcc("e", marked);
      asm.bind(site);
      asm.ret();
      asm.bind(marked);
      tail(asm);
    },
    expect: "unreached-code-in-region",
  },
  {
    name: "jump through a register that was loaded from memory",
    emit: (asm, site) => {
      asm.bind(site);
      asm.mov(RAX, { base: RDI });
      asm.push(RCX);
      asm.pop(RCX);
      asm.jmpTo(RAX);
    },
    expect: { bytes: 5 },
  },
  {
    name: "jump through an argument",
    emit: (asm, site) => {
      asm.bind(site);
      asm.endbr64();
      asm.mov(RDI, RSI);
      asm.jmpTo(RDX);
    },
    expect: { bytes: 7 },
  },
  {
    name: "jump through a copied register",
    emit: (asm, site) => {
      asm.bind(site);
      asm.mov(R11, { base: RDI, disp: 8 });
      asm.mov(R10, R11);
      asm.jmpTo(R10);
    },
    expect: { bytes: 7 },
  },
  {
    name: "jump to a computed address",
    emit: (asm, site) => {
      asm.movImm(RAX, 7, 32);
      asm.bind(site);
      asm.shl(RCX, 4);
      asm.add(RAX, RCX);
      asm.jmpTo(RAX);
    },
    expect: "indirect-jump-unresolved",
  },
  {
    name: "one long instruction in a function with a jump to a computed address",
    emit: (asm, site) => {
      asm.bind(site);
      asm.movImm(RAX, 7, 32);
      asm.shl(RCX, 4);
      asm.add(RAX, RCX);
      asm.jmpTo(RAX);
    },
    expect: { bytes: 5 },
  },
  {
    name: "jump into unrolled code by lea with a scaled index",
    emit: (asm, site) => {
      asm.movImm(RAX, 7, 32);
      asm.bind(site);
      asm.lea(RAX, { base: RAX, index: RCX, scale: 4 });
      asm.jmpTo(RAX);
    },
    expect: "indirect-jump-unresolved",
  },
  {
    name: "pointer slot in memory",
    emit: (asm, site) => {
      asm.bind(site);
      asm.endbr64();
      asm.jmpTo({ ripTo: RODATA });
    },
    expect: { bytes: 10 },
  },
];

describe("region of a jump", () => {
  for (const { name, emit, extra, expect: expected, armed } of cases) {
    test(name, () => {
      let site!: Label;
      let marked!: Label;
      const built = build((asm) => {
        site = asm.label("site");
        marked = asm.label("marked");
        const start = asm.here("f");
        emit(asm, site, marked);
        const end = asm.here("end");
        if (!asm.isBound(marked)) asm.bind(marked);
        return { functions: [{ name: "f", start, end }], ...extra?.(marked) };
      });
      const code = new ImageCode(built.image);
      const others = armed === "marked" ? [built.addressOf(marked)] : [];
      const [result] = code.jumpRegions([built.addressOf(site)], { armed: others });
      if (typeof expected === "string") {
        expect(result).toMatchObject({ kind: "refused", refusal: { reason: expected } });
      } else {
        expect(result).toMatchObject({
          kind: "region",
          region: { lenBytes: expected.bytes, paddingBytes: expected.padding ?? 0 },
        });
      }
    });
  }
});

/** A switch: entries of the table lead to `cases` labels of the function. */
function emitSwitch(asm: Assembler, table: bigint): { entry: Label; second: Label; targets: Label[] } {
  const entry = asm.here("entry");
  asm.push(RCX);
  const second = asm.here("second");
  asm.mov(RCX, RDI);
  asm.movImm(RDX, 1, 32);
  asm.lea(RDX, { ripTo: table });
  asm.movsx(RAX, { base: RDX, index: RDI, scale: 4 }, 32);
  asm.add(RAX, RDX);
  asm.jmpTo(RAX);
  const targets: Label[] = [];
  for (let i = 0; i < 3; i++) {
    targets.push(asm.here(`case ${i}`));
    asm.movImm(RAX, i + 1, 32);
    asm.ret();
  }
  return { entry, second, targets };
}

function offsetTable(entries: readonly bigint[], table: bigint): Uint8Array {
  const words = Int32Array.from(entries, (to) => Number(to - table));
  return new Uint8Array(words.buffer);
}

describe("jump tables", () => {
  const tables: readonly { name: string; leadsTo: "cases" | "second"; expect: string }[] = [
    { name: "whose entries lead elsewhere", leadsTo: "cases", expect: "region" },
    { name: "whose entry leads behind the site", leadsTo: "second", expect: "jump-table-into-region" },
  ];
  for (const { name, leadsTo, expect: expected } of tables) {
    test(`of offsets, ${name}`, () => {
      let parts!: ReturnType<typeof emitSwitch>;
      const built = build((asm) => {
        parts = emitSwitch(asm, RODATA);
        return {
          functions: [{ name: "f", start: parts.entry, end: asm.here() }],
          data: (addressOf) =>
            offsetTable(
              [...parts.targets, leadsTo === "second" ? parts.second : parts.targets[0]!].map(addressOf),
              RODATA,
            ),
        };
      });
      const [result] = new ImageCode(built.image).jumpRegions([built.addressOf(parts.entry)]);
      if (expected === "region") expect(result?.kind).toBe("region");
      else expect(result).toMatchObject({ refusal: { reason: expected } });
    });
  }

  test("of offsets that cannot be read", () => {
    let entry!: Label;
    const built = build((asm) => {
      entry = emitSwitch(asm, RODATA).entry;
      return { functions: [{ name: "f", start: entry, end: asm.here() }] };
    });
    const [result] = new ImageCode(built.image).jumpRegions([built.addressOf(entry)]);
    expect(result).toMatchObject({ refusal: { reason: "indirect-jump-unresolved" } });
  });

  test("of offsets in another function, leading into its cold part", () => {
    let cold!: Label;
    let second!: Label;
    const built = build((asm) => {
      const parts = emitSwitch(asm, RODATA);
      const end = asm.here();
      asm.align(16);
      cold = asm.here("cold");
      asm.push(RAX);
      second = asm.here("second");
      tail(asm);
      return {
        functions: [
          { name: "f", start: parts.entry, end },
          { name: "f.cold", start: cold, end: asm.here() },
        ],
        data: (addressOf) => offsetTable([...parts.targets, second].map(addressOf), RODATA),
      };
    });
    const [result] = new ImageCode(built.image).jumpRegions([built.addressOf(cold)]);
    expect(result).toMatchObject({
      refusal: { reason: "jump-table-into-region", to: built.addressOf(second) },
    });
  });

  test("of addresses, at an absolute place", () => {
    // jmp [table + rdi*8] = ff 24 fd disp32, in text and data below 2 GiB.
    const start = 0x40_1000n;
    const table = 0x40_2000n;
    const text = Uint8Array.of(0x50, 0x48, 0x89, 0xf8, 0x90, 0xff, 0x24, 0xfd, 0x00, 0x20, 0x40, 0x00);
    const image: CodeImage = {
      name: "fixed",
      text: [{ start, bytes: text }],
      findFunction: () => ({ start, end: start + BigInt(text.length), name: "f" }),
      pointersInto: () => [],
      landingPads: () => [],
      readData: (addr, lenBytes) => {
        if (addr !== table || lenBytes !== 8) return undefined;
        return new Uint8Array(BigUint64Array.of(start + 4n).buffer);
      },
    };
    const [result] = new ImageCode(image).jumpRegions([start]);
    expect(result).toMatchObject({ refusal: { reason: "jump-table-into-region", to: start + 4n } });
  });
});

describe("branches from other functions", () => {
  const sources: readonly { name: string; emit: (asm: Assembler, to: Label) => void }[] = [
    { name: "jmp rel32", emit: (asm, to) => asm.jmp32(to) },
    {
      name: "jcc rel32",
      emit: (asm, to) => {
        asm.nop(200);
        asm.jcc("e", to);
      },
    },
    { name: "jmp rel8", emit: (asm, to) => asm.jmp(to) },
    { name: "jcc rel8", emit: (asm, to) => asm.jcc("ne", to) },
    { name: "call rel32", emit: (asm, to) => asm.call(to) },
    { name: "lea", emit: (asm, to) => asm.lea(RAX, { ripTo: to }) },
  ];
  for (const place of ["before", "behind"] as const) {
    for (const { name, emit } of sources) {
      test(`${name} ${place} the function`, () => {
        let entry!: Label;
        const built = build((asm) => {
          entry = asm.label("entry");
          const second = asm.label("second");
          const other: { start?: Label; end?: Label } = {};
          const emitOther = () => {
            other.start = asm.here("g");
            emit(asm, second);
            asm.ret();
            other.end = asm.here();
          };
          if (place === "before") emitOther();
          asm.bind(entry);
          asm.push(RAX);
          asm.bind(second);
          tail(asm);
          const end = asm.here();
          if (place === "behind") emitOther();
          return {
            functions: [
              { name: "f", start: entry, end },
              { name: "g", start: other.start!, end: other.end! },
            ],
          };
        });
        const [result] = new ImageCode(built.image).jumpRegions([built.addressOf(entry)]);
        expect(result).toMatchObject({
          kind: "refused",
          refusal: { reason: "jump-into-region", to: built.addressOf(entry) + 1n },
        });
      });
    }
  }

  test("bytes that look like a branch inside another instruction do not count", () => {
    let entry!: Label;
    const built = build((asm) => {
      entry = asm.here("entry");
      asm.push(RAX);
      tail(asm);
      const end = asm.here();
      const start = asm.here("g");
      // mov rax, imm64 with e9 and the distance to entry + 1 as its last five bytes.
      const at = Number(12n + 10n);
      const rel = 1 - at;
      asm.bytes([0x48, 0xb8, 0, 0, 0, 0xe9, rel & 0xff, 0xff, 0xff, 0xff]);
      asm.ret();
      return {
        functions: [
          { name: "f", start: entry, end },
          { name: "g", start, end: asm.here() },
        ],
      };
    });
    const [result] = new ImageCode(built.image).jumpRegions([built.addressOf(entry)]);
    expect(result?.kind).toBe("region");
  });
});

describe("a function shorter than a jump", () => {
  const tails: readonly { name: string; behind: (asm: Assembler) => void; expect: string }[] = [
    { name: "with nops behind it", behind: (asm) => asm.align(16, "nop"), expect: "region" },
    { name: "with int3 behind it", behind: (asm) => asm.align(16, "int3"), expect: "region" },
    {
      name: "with another function right behind it",
      behind: () => {},
      expect: "region-crosses-function-end",
    },
    {
      name: "with unknown bytes behind it",
      behind: (asm) => asm.bytes([0x48, 0x89, 0xc8, 0x90, 0x90, 0x90]),
      expect: "region-crosses-function-end",
    },
  ];
  for (const { name, behind, expect: expected } of tails) {
    test(name, () => {
      let start!: Label;
      const built = build((asm) => {
        start = asm.here("f");
        asm.zero(RAX);
        asm.ret();
        const end = asm.here();
        behind(asm);
        const next = asm.here("g");
        tail(asm);
        return {
          functions: [
            { name: "f", start, end },
            { name: "g", start: next, end: asm.here() },
          ],
        };
      });
      const [result] = new ImageCode(built.image).jumpRegions([built.addressOf(start)]);
      if (expected === "region")
        expect(result).toMatchObject({ kind: "region", region: { lenBytes: 5, paddingBytes: 2 } });
      else expect(result).toMatchObject({ refusal: { reason: expected } });
    });
  }
});

test("of two sites within five bytes the first one is refused", () => {
  let first!: Label;
  let second!: Label;
  const built = build((asm) => {
    first = asm.here("f");
    asm.push(RAX);
    second = asm.here();
    tail(asm);
    return { functions: [{ name: "f", start: first, end: asm.here() }] };
  });
  const sites = [built.addressOf(first), built.addressOf(second)];
  const results = new ImageCode(built.image).jumpRegions(sites);
  expect(results.map((result) => result.kind)).toEqual(["refused", "region"]);
});

test("a site without a function gets one instruction and no jump", () => {
  const built = build((asm) => {
    tail(asm);
    return { functions: [] };
  });
  const code = new ImageCode(built.image);
  expect(code.jumpRegions([TEXT])[0]).toMatchObject({ refusal: { reason: "no-function" } });
  expect(code.trapRegion(TEXT)).toMatchObject({ kind: "region", region: { lenBytes: 10 } });
  expect(code.trapRegion(TEXT - 1n)).toMatchObject({ refusal: { reason: "no-text" } });
});

test("an offset inside an instruction names the two nearest boundaries", () => {
  const built = build((asm) => {
    const start = asm.here("f");
    tail(asm);
    return { functions: [{ name: "f", start, end: asm.here() }] };
  });
  expect(new ImageCode(built.image).trapRegion(TEXT + 3n)).toMatchObject({
    refusal: { reason: "inside-instruction", at: TEXT + 3n, before: TEXT, after: TEXT + 10n },
  });
});

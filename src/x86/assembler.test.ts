/**
 * The assembler against objdump: each case is assembled, disassembled, and compared with what was meant. The
 * sweeps cover every register in every operand position, so that each hole in ModRM and SIB is met.
 */
import { describe, expect, it } from "vitest";
import { disassemble } from "../../test/support/objdump.ts";
import { Assembler, AssemblerError, invertCondition, type Mem } from "./assembler.ts";
import { R8, R9, R12, R13, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, regNames } from "./registers.ts";

const BASE = 0x7f0000400000n;

function name(reg: number, size: number): string {
  const base = regNames[reg]!;
  if (reg >= 8) return base + { 8: "b", 16: "w", 32: "d", 64: "" }[size];
  if (size === 64) return base;
  if (size === 32) return `e${base.slice(1)}`;
  if (size === 16) return base.slice(1);
  return base.endsWith("x") ? `${base[1]}l` : `${base.slice(1)}l`;
}

const pointers = { 8: "BYTE", 16: "WORD", 32: "DWORD", 64: "QWORD" } as const;

const signedHex = (value: number) => `${value < 0 ? "-" : "+"}0x${Math.abs(value).toString(16)}`;

function memText(mem: Mem, size: 8 | 16 | 32 | 64): string {
  const prefix = `${pointers[size]} PTR `;
  if ("fs" in mem) return `${prefix}fs:0x${BigInt.asUintN(64, BigInt(mem.fs)).toString(16)}`;
  if ("ripTo" in mem) throw new Error("not in sweeps");
  const { base, index, scale = 1, disp = 0 } = mem;
  if (base === undefined && index === undefined)
    return `${prefix}ds:0x${BigInt.asUintN(64, BigInt(disp)).toString(16)}`;
  const parts = [
    ...(base === undefined ? [] : [regNames[base]!]),
    ...(index === undefined ? [] : [`${regNames[index]}*${scale}`]),
  ];
  // objdump shows displacement bytes that are there, so rbp and r13 without displacement read "+0x0".
  const shown = disp !== 0 || base === undefined || (base & 7) === 5;
  return `${prefix}[${parts.join("+")}${shown ? signedHex(disp) : ""}]`;
}

interface Case {
  readonly text: string;
  readonly emit: (a: Assembler) => void;
  /** Expected length, where the choice of the shortest form matters. */
  readonly lenBytes?: number;
}

function expectCases(cases: readonly Case[]): void {
  const a = new Assembler(BASE);
  for (const { emit } of cases) emit(a);
  const got = disassemble(a.finish(), BASE);
  expect(got.map(({ text }) => text)).toEqual(cases.map(({ text }) => text));
  for (const [i, { lenBytes, text }] of cases.entries()) {
    if (lenBytes !== undefined) expect(got[i]!.lenBytes, text).toBe(lenBytes);
  }
}

const allRegs = Array.from({ length: 16 }, (_, reg) => reg);
const sizes = [8, 16, 32, 64] as const;
const disps = [0, 1, -1, 127, 128, -128, -129, 0x7fffffff, -0x80000000];

describe("assembler sweeps", () => {
  it("every register pair at every size", () => {
    expectCases(
      sizes.flatMap((size) =>
        allRegs.flatMap((dst) =>
          allRegs.map((src) => ({
            text: `add ${name(dst, size)},${name(src, size)}`,
            emit: (a: Assembler) => a.add(dst, src, size),
          })),
        ),
      ),
    );
  });

  it("every base register with every kind of displacement, load and store", () => {
    expectCases(
      allRegs.flatMap((base) =>
        disps.flatMap((disp) => [
          {
            text: `mov r9,${memText({ base, disp }, 64)}`,
            emit: (a: Assembler) => a.mov(R9, { base, disp }),
          },
          {
            text: `mov ${memText({ base, disp }, 8)},sil`,
            emit: (a: Assembler) => a.mov({ base, disp }, RSI, 8),
          },
        ]),
      ),
    );
  });

  it("every base and index with every scale", () => {
    expectCases(
      [...allRegs, undefined].flatMap((base) =>
        allRegs
          .filter((index) => index !== RSP)
          .flatMap((index) =>
            ([1, 2, 4, 8] as const).flatMap((scale) =>
              [0, -8, 0x12345].map((disp) => {
                const mem: Mem = base === undefined ? { index, scale, disp } : { base, index, scale, disp };
                return {
                  text: `cmp ${memText(mem, 32)},${name(index, 32)}`,
                  emit: (a: Assembler) => a.cmp(mem, index, 32),
                };
              }),
            ),
          ),
      ),
    );
  });

  it("every byte register, with REX where it would be a high byte", () => {
    expectCases(
      allRegs.flatMap((reg) => [
        {
          text: `sete ${name(reg, 8)}`,
          emit: (a: Assembler) => a.set("e", reg),
          lenBytes: reg < 4 ? 3 : 4,
        },
        {
          text: `movzx ${name(reg, 32)},${name(reg, 8)}`,
          emit: (a: Assembler) => a.movzx(reg, reg, 8),
          lenBytes: reg < 4 ? 3 : 4,
        },
        { text: `movsx ${name(reg, 64)},${name(reg, 8)}`, emit: (a: Assembler) => a.movsx(reg, reg, 8) },
        {
          text: `mov ${name(reg, 8)},0x80`,
          emit: (a: Assembler) => a.movImm(reg, 0x80, 8),
          lenBytes: reg < 4 ? 2 : 3,
        },
        {
          text: `test ${name(reg, 8)},0x1`,
          emit: (a: Assembler) => a.testImm(reg, 1, 8),
          lenBytes: reg === 0 ? 2 : reg < 4 ? 3 : 4,
        },
      ]),
    );
  });

  it("one-operand forms on every register", () => {
    expectCases(
      allRegs.flatMap((reg) =>
        ([32, 64] as const).flatMap((size) => [
          { text: `neg ${name(reg, size)}`, emit: (a: Assembler) => a.neg(reg, size) },
          { text: `not ${name(reg, size)}`, emit: (a: Assembler) => a.not(reg, size) },
          { text: `mul ${name(reg, size)}`, emit: (a: Assembler) => a.mul(reg, size) },
          { text: `div ${name(reg, size)}`, emit: (a: Assembler) => a.div(reg, size) },
          { text: `idiv ${name(reg, size)}`, emit: (a: Assembler) => a.idiv(reg, size) },
          { text: `inc ${name(reg, size)}`, emit: (a: Assembler) => a.inc(reg, size) },
          { text: `dec ${name(reg, size)}`, emit: (a: Assembler) => a.dec(reg, size) },
          { text: `bswap ${name(reg, size)}`, emit: (a: Assembler) => a.bswap(reg, size) },
          { text: `shl ${name(reg, size)},1`, emit: (a: Assembler) => a.shl(reg, 1, size) },
          { text: `shr ${name(reg, size)},0x1f`, emit: (a: Assembler) => a.shr(reg, 31, size) },
          { text: `sar ${name(reg, size)},cl`, emit: (a: Assembler) => a.shiftCl("sar", reg, size) },
        ]),
      ),
    );
  });

  it("push, pop, indirect jumps and calls on every register and base", () => {
    expectCases(
      allRegs.flatMap((reg) => {
        const mem = { base: reg, disp: 0x10 };
        const text = memText(mem, 64);
        return [
          {
            text: `push ${regNames[reg]}`,
            emit: (a: Assembler) => a.push(reg),
            lenBytes: reg < 8 ? 1 : 2,
          },
          { text: `pop ${regNames[reg]}`, emit: (a: Assembler) => a.pop(reg), lenBytes: reg < 8 ? 1 : 2 },
          { text: `push ${text}`, emit: (a: Assembler) => a.push(mem) },
          { text: `pop ${text}`, emit: (a: Assembler) => a.pop(mem) },
          { text: `jmp ${regNames[reg]}`, emit: (a: Assembler) => a.jmpTo(reg) },
          { text: `call ${text}`, emit: (a: Assembler) => a.callTo(mem) },
        ];
      }),
    );
  });
});

describe("shortest encodings", () => {
  const cases: readonly Case[] = [
    { text: "mov eax,0x1", emit: (a) => a.movImm(RAX, 1), lenBytes: 5 },
    { text: "mov r9d,0xffffffff", emit: (a) => a.movImm(R9, 0xffffffff), lenBytes: 6 },
    { text: "mov rax,0xffffffffffffffff", emit: (a) => a.movImm(RAX, -1), lenBytes: 7 },
    { text: "mov rax,0xffffffff80000000", emit: (a) => a.movImm(RAX, 0xffffffff80000000n), lenBytes: 7 },
    { text: "movabs rax,0x123456789", emit: (a) => a.movImm(RAX, 0x123456789n), lenBytes: 10 },
    { text: "movabs r12,0x1", emit: (a) => a.movabs(R12, 1n), lenBytes: 10 },
    { text: "mov eax,0xffffffff", emit: (a) => a.movImm(RAX, -1, 32), lenBytes: 5 },
    {
      text: "mov QWORD PTR [rax],0xffffffffffffffff",
      emit: (a) => a.movImm({ base: RAX }, -1),
      lenBytes: 7,
    },
    { text: "mov WORD PTR [rsp],0xffff", emit: (a) => a.movImm({ base: RSP }, 0xffff, 16), lenBytes: 6 },
    { text: "mov BYTE PTR [r13+0x0],0xff", emit: (a) => a.movImm({ base: R13 }, -1, 8), lenBytes: 5 },
    { text: "add rax,0x7f", emit: (a) => a.addImm(RAX, 127), lenBytes: 4 },
    { text: "add rax,0xffffffffffffff80", emit: (a) => a.addImm(RAX, -128), lenBytes: 4 },
    { text: "add rax,0x80", emit: (a) => a.addImm(RAX, 128), lenBytes: 6 },
    { text: "add rcx,0x80", emit: (a) => a.addImm(RCX, 128), lenBytes: 7 },
    { text: "add al,0x80", emit: (a) => a.addImm(RAX, 128, 8), lenBytes: 2 },
    { text: "and ecx,0xffffffff", emit: (a) => a.andImm(RCX, 0xffffffff, 32), lenBytes: 3 },
    { text: "and cx,0xfff0", emit: (a) => a.andImm(RCX, 0xfff0, 16), lenBytes: 4 },
    { text: "cmp ax,0x1234", emit: (a) => a.cmpImm(RAX, 0x1234, 16), lenBytes: 4 },
    { text: "test eax,0x1234", emit: (a) => a.testImm(RAX, 0x1234, 32), lenBytes: 5 },
    { text: "test rdx,0x1234", emit: (a) => a.testImm(RDX, 0x1234), lenBytes: 7 },
    { text: "imul rax,rcx,0x7f", emit: (a) => a.imulImm(RAX, RCX, 127), lenBytes: 4 },
    { text: "imul rax,rcx,0x80", emit: (a) => a.imulImm(RAX, RCX, 128), lenBytes: 7 },
    { text: "imul r9d,DWORD PTR [rcx]", emit: (a) => a.imul(R9, { base: RCX }, 32), lenBytes: 4 },
    { text: "xchg rcx,rax", emit: (a) => a.xchg(RAX, RCX), lenBytes: 2 },
    { text: "xchg r9d,eax", emit: (a) => a.xchg(R9, RAX, 32), lenBytes: 2 },
    { text: "xchg eax,eax", emit: (a) => a.xchg(RAX, RAX, 32), lenBytes: 2 },
    { text: "xchg BYTE PTR [rax],dil", emit: (a) => a.xchg({ base: RAX }, RDI, 8) },
    { text: "push 0xffffffffffffffff", emit: (a) => a.pushImm(-1), lenBytes: 2 },
    { text: "push 0x12345678", emit: (a) => a.pushImm(0x12345678), lenBytes: 5 },
    { text: "xor r8d,r8d", emit: (a) => a.zero(R8), lenBytes: 3 },
    { text: "shl rax,1", emit: (a) => a.shl(RAX, 1), lenBytes: 3 },
    { text: "rol WORD PTR [rax],0x8", emit: (a) => a.rol({ base: RAX }, 8, 16) },
    { text: "mov rax,QWORD PTR ds:0x10", emit: (a) => a.mov(RAX, { disp: 0x10 }) },
    { text: "mov rax,QWORD PTR fs:0x10", emit: (a) => a.mov(RAX, { fs: 0x10 }) },
    { text: "mov ecx,DWORD PTR fs:0xfffffffffffffd00", emit: (a) => a.mov(RCX, { fs: -0x300 }, 32) },
  ];
  it.each(cases)("$text", (item) => expectCases([item]));
});

describe("remaining instructions", () => {
  const cases: readonly Case[] = [
    { text: "lea rdi,[rsp+0x8]", emit: (a) => a.lea(RDI, { base: RSP, disp: 8 }), lenBytes: 5 },
    {
      text: "lea eax,[rcx+rdx*8+0x40]",
      emit: (a) => a.lea(RAX, { base: RCX, index: RDX, scale: 8, disp: 0x40 }, 32),
    },
    { text: "movzx ecx,WORD PTR [rbp+0x0]", emit: (a) => a.movzx(RCX, { base: RBP }, 16) },
    { text: "movsx ecx,BYTE PTR [rdi]", emit: (a) => a.movsx(RCX, { base: RDI }, 8, 32) },
    { text: "movsx r9,r12w", emit: (a) => a.movsx(R9, R12, 16) },
    { text: "movsxd rdx,DWORD PTR [rsi+0x4]", emit: (a) => a.movsx(RDX, { base: RSI, disp: 4 }, 32) },
    { text: "cmovg r8,rax", emit: (a) => a.cmov("g", R8, RAX) },
    { text: "cmovb eax,DWORD PTR [r12]", emit: (a) => a.cmov("b", RAX, { base: R12 }, 32) },
    { text: "lock add QWORD PTR [rdi+0x8],0x1", emit: (a) => a.lock().addImm({ base: RDI, disp: 8 }, 1) },
    { text: "lock inc QWORD PTR [rdi]", emit: (a) => a.lock().inc({ base: RDI }) },
    { text: "lock xadd QWORD PTR [r13+0x0],rcx", emit: (a) => a.lock().xadd({ base: R13 }, RCX) },
    { text: "lock xadd DWORD PTR [r8],r9d", emit: (a) => a.lock().xadd({ base: R8 }, R9, 32) },
    { text: "lock cmpxchg QWORD PTR [rbx],r8", emit: (a) => a.lock().cmpxchg({ base: RBX }, R8) },
    { text: "lock cmpxchg DWORD PTR [rbx],ecx", emit: (a) => a.lock().cmpxchg({ base: RBX }, RCX, 32) },
    { text: "lock cmpxchg16b OWORD PTR [rdi]", emit: (a) => a.lock().cmpxchg16b({ base: RDI }) },
    { text: "lock or DWORD PTR fs:0x28,eax", emit: (a) => a.lock().or({ fs: 0x28 }, RAX, 32) },
    { text: "bt rax,rcx", emit: (a) => a.bt(RAX, RCX) },
    { text: "bt DWORD PTR [rax],0x1f", emit: (a) => a.btImm({ base: RAX }, 31, 32) },
    { text: "bts rax,0x3f", emit: (a) => a.btsImm(RAX, 63) },
    { text: "btr rax,0x3f", emit: (a) => a.btrImm(RAX, 63) },
    { text: "bsr rax,rdi", emit: (a) => a.bsr(RAX, RDI) },
    { text: "bsf eax,edi", emit: (a) => a.bsf(RAX, RDI, 32) },
    { text: "test BYTE PTR [rax],dil", emit: (a) => a.test({ base: RAX }, RDI, 8) },
    { text: "cqo", emit: (a) => a.cqo() },
    { text: "cdq", emit: (a) => a.cdq() },
    { text: "pushf", emit: (a) => a.pushfq() },
    { text: "popf", emit: (a) => a.popfq() },
    { text: "lahf", emit: (a) => a.lahf() },
    { text: "sahf", emit: (a) => a.sahf() },
    { text: "ret", emit: (a) => a.ret() },
    { text: "int3", emit: (a) => a.int3() },
    { text: "ud2", emit: (a) => a.ud2() },
    { text: "syscall", emit: (a) => a.syscall() },
    { text: "pause", emit: (a) => a.pause() },
    { text: "mfence", emit: (a) => a.mfence() },
    { text: "lfence", emit: (a) => a.lfence() },
    { text: "cpuid", emit: (a) => a.cpuid() },
    { text: "rdtsc", emit: (a) => a.rdtsc() },
    { text: "rdtscp", emit: (a) => a.rdtscp() },
    { text: "rdpid rax", emit: (a) => a.rdpid(RAX) },
    { text: "rdpid r12", emit: (a) => a.rdpid(R12) },
    { text: "lsl eax,ecx", emit: (a) => a.lsl(RAX, RCX) },
    { text: "rdfsbase r9", emit: (a) => a.rdfsbase(R9) },
    { text: "rdpkru", emit: (a) => a.rdpkru() },
    { text: "wrpkru", emit: (a) => a.wrpkru() },
    { text: "endbr64", emit: (a) => a.endbr64() },
  ];
  it("disassembles to what was meant", () => expectCases(cases));

  it("nops of every length are whole instructions", () => {
    for (let lenBytes = 1; lenBytes <= 32; lenBytes++) {
      const a = new Assembler(BASE);
      a.nop(lenBytes);
      const code = a.finish();
      expect(code.length).toBe(lenBytes);
      const got = disassemble(code, BASE);
      expect(got.every(({ text }) => /nop|xchg/.test(text))).toBe(true);
      expect(got.length).toBe(Math.ceil(lenBytes / 9));
    }
  });
});

describe("labels and targets", () => {
  const jumpCases = [
    { name: "forward within rel8", gap: 127, lenBytes: 2 },
    { name: "forward one past rel8", gap: 128, lenBytes: 5 },
  ];
  it.each(jumpCases)("jmp $name", ({ gap, lenBytes }) => {
    const a = new Assembler(BASE);
    const target = a.label("target");
    a.jmp(target);
    a.nop(gap);
    a.bind(target);
    a.ret();
    const got = disassemble(a.finish(), BASE);
    expect(got[0]).toEqual({ text: `jmp 0x${(BASE + BigInt(lenBytes + gap)).toString(16)}`, lenBytes });
    expect(a.offsetOf(target)).toBe(lenBytes + gap);
  });

  it.each([
    { name: "backward within rel8", gap: 126, lenBytes: 2 },
    { name: "backward one past rel8", gap: 127, lenBytes: 6 },
  ])("jcc $name", ({ gap, lenBytes }) => {
    const a = new Assembler(BASE);
    const target = a.here();
    a.nop(gap);
    a.jcc("ne", target);
    const got = disassemble(a.finish(), BASE);
    expect(got.at(-1)).toEqual({ text: `jne 0x${BASE.toString(16)}`, lenBytes });
  });

  it("growth of one jump pushes another out of reach", () => {
    const a = new Assembler(BASE);
    const [first, second] = [a.label("first"), a.label("second")];
    a.jmp(first); // reaches only while the jump inside its span is short
    a.nop(100);
    a.jcc("e", second);
    a.nop(25);
    a.bind(first);
    a.nop(200);
    a.bind(second);
    a.ret();
    const got = disassemble(a.finish(), BASE);
    expect(got[0]).toEqual({ text: `jmp 0x${a.addressOf(first).toString(16)}`, lenBytes: 5 });
    expect(got.find(({ text }) => text.startsWith("je"))!.text).toBe(
      `je 0x${a.addressOf(second).toString(16)}`,
    );
  });

  it("absolute targets near and far, forced rel32, call", () => {
    const a = new Assembler(BASE);
    a.jmp(BASE + 0x20n);
    a.jmp(BASE - 0x7ffffff0n);
    a.jmp32(BASE);
    a.call(BASE + 0x7fff0000n);
    const got = disassemble(a.finish(), BASE);
    expect(got).toEqual([
      { text: `jmp 0x${(BASE + 0x20n).toString(16)}`, lenBytes: 2 },
      { text: `jmp 0x${(BASE - 0x7ffffff0n).toString(16)}`, lenBytes: 5 },
      { text: `jmp 0x${BASE.toString(16)}`, lenBytes: 5 },
      { text: `call 0x${(BASE + 0x7fff0000n).toString(16)}`, lenBytes: 5 },
    ]);
  });

  it("rip-relative operands with an immediate behind them", () => {
    const a = new Assembler(BASE);
    const data = a.label("data");
    a.mov(RAX, { ripTo: data });
    a.cmpImm({ ripTo: data }, 1);
    a.movImm({ ripTo: data }, 0x12345678, 32);
    a.movImm({ ripTo: BASE + 0x100n }, 1, 8);
    a.lea(RDX, { ripTo: data, disp: 4 });
    a.align(16);
    a.bind(data);
    const code = a.finish();
    const got = disassemble(code, BASE);
    const target = a.addressOf(data);
    // objdump prints the displacement; recompute the target from the end of each instruction.
    let end = BASE;
    const targets = got.slice(0, 5).map(({ text, lenBytes }) => {
      end += BigInt(lenBytes);
      return end + BigInt(/rip\+(0x[0-9a-f]+)/.exec(text)![1]!);
    });
    expect(targets).toEqual([target, target, target, BASE + 0x100n, target + 4n]);
    expect(target % 16n).toBe(0n);
  });

  it("alignment and addresses as data", () => {
    const a = new Assembler(BASE + 3n);
    const entry = a.here("entry");
    a.ret();
    a.align(8, "int3");
    const table = a.here("table");
    a.dataAddress(entry);
    a.dataAddress(0x1122334455667788n);
    a.data64(0xffffffffffffffffn);
    a.data32(-2);
    const code = a.finish();
    const view = new DataView(code.buffer, code.byteOffset);
    expect([...code.subarray(0, 5)]).toEqual([0xc3, 0xcc, 0xcc, 0xcc, 0xcc]);
    expect(a.addressOf(table)).toBe(BASE + 8n);
    expect(view.getBigUint64(5, true)).toBe(BASE + 3n);
    expect(view.getBigUint64(13, true)).toBe(0x1122334455667788n);
    expect(view.getBigUint64(21, true)).toBe(0xffffffffffffffffn);
    expect(view.getInt32(29, true)).toBe(-2);
  });

  it("conditions invert in pairs", () => {
    expect(invertCondition("e")).toBe("ne");
    expect(invertCondition("a")).toBe("be");
    expect(invertCondition(invertCondition("l"))).toBe("l");
  });
});

describe("refusals", () => {
  const cases: readonly { name: string; emit: (a: Assembler) => void; message: RegExp }[] = [
    {
      name: "rsp as index",
      emit: (a) => a.mov(RAX, { base: RAX, index: RSP }),
      message: /rsp cannot be an index/,
    },
    { name: "33-bit immediate", emit: (a) => a.addImm(RAX, 0x80000000), message: /no 64-bit form/ },
    {
      name: "64-bit constant into memory",
      emit: (a) => a.movImm({ base: RAX }, 1n << 40n),
      message: /no 64-bit form/,
    },
    { name: "byte constant of nine bits", emit: (a) => a.movImm(RAX, 256, 8), message: /exceeds 8 bits/ },
    {
      name: "two memory operands",
      emit: (a) => a.mov({ base: RAX }, { base: RCX }),
      message: /no 64-bit form/,
    },
    {
      name: "displacement of 33 bits",
      emit: (a) => a.mov(RAX, { base: RAX, disp: 2 ** 31 }),
      message: /32 bits/,
    },
    { name: "shift by the width", emit: (a) => a.shl(RAX, 64), message: /count 64/ },
    { name: "lea of a register", emit: (a) => a.lea(RAX, RCX as unknown as Mem), message: /no 64-bit form/ },
    {
      name: "rel32 out of reach",
      emit: (a) => {
        a.call(BASE + 0x8000_0005n);
        a.finish();
      },
      message: /out of reach/,
    },
    {
      name: "label without a place",
      emit: (a) => {
        a.jmp(a.label("lost"));
        a.finish();
      },
      message: /"lost": never bound/,
    },
    {
      name: "label bound twice",
      emit: (a) => {
        const label = a.here("twice");
        a.bind(label);
      },
      message: /has a place already/,
    },
    {
      name: "label of another assembler",
      emit: (a) => a.jmp(new Assembler(0n).here("foreign")),
      message: /another assembler/,
    },
    {
      name: "code after finish",
      emit: (a) => {
        a.finish();
        a.ret();
      },
      message: /finished/,
    },
  ];
  it.each(cases)("$name", ({ emit, message }) => {
    const a = new Assembler(BASE);
    expect(() => emit(a)).toThrowError(message);
    expect(() => emit(new Assembler(BASE))).toThrowError(AssemblerError);
  });

  it("the farthest rel32 target is accepted", () => {
    const a = new Assembler(BASE);
    a.call(BASE + 5n + 0x7fff_ffffn);
    expect(() => a.finish()).not.toThrow();
  });
});

/**
 * The encodings that the assembler knows, one line each, in the notation of the manual (Intel SDM 2A, section
 * 3.1.1), and their compiled form.
 *
 *     mnemonic operands          encoding
 *     add      r/mX, imm8        83 /0 ib
 *
 * `X` stands for 16, 32 and 64, as prefix 66, none, and REX.W. `+r` puts a register into the opcode, `+cc` a
 * condition code; `/r` is ModRM with a register, `/n` ModRM with an opcode extension; `ib iw id io` are
 * immediates, `iX` one of the operand's size but never longer than 4 bytes, `+W` asks for REX.W.
 * Where several lines fit the operands, the first wins: shorter lines come first.
 */
import { AssemblerError } from "./assembler-operands.ts";

/** Operand sizes in bits. */
export type OpSize = 8 | 16 | 32 | 64;

/** What one operand may be. */
export type OperandPattern =
  | { readonly kind: "rm" | "r" | "m" }
  /** A fixed register that no byte names. */
  | { readonly kind: "fixed"; readonly reg: number }
  | { readonly kind: "imm"; readonly bits: 8 | 16 | 32 | 64 }
  | { readonly kind: "one" };

export interface Encoding {
  readonly operands: readonly OperandPattern[];
  /** Size of the operands, which decides about immediates' sign and byte registers. */
  readonly size: OpSize;
  /** Whether an r and an r/m operand is a byte register, in operand order. */
  readonly byteRegs: readonly boolean[];
  readonly prefix: readonly number[];
  readonly rexW: boolean;
  readonly opcode: readonly number[];
  readonly modrm: "none" | "reg" | number;
  readonly regInOpcode: boolean;
  readonly immBytes: 0 | 1 | 2 | 4 | 8;
}

/** The eight operations of "immediate group 1"; `n` is the opcode extension, `n * 8` the first opcode. */
const group1 = ["add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"].map((name, n) => {
  const op = (low: number) => (n * 8 + low).toString(16).padStart(2, "0");
  return `
    ${name}   al, imm8         ${op(4)} ib
    ${name}   r/m8, imm8       80 /${n} ib
    ${name}   r/mX, imm8       83 /${n} ib
    ${name}   raxX, immX       ${op(5)} iX
    ${name}   r/mX, immX       81 /${n} iX
    ${name}   r/m8, r8         ${op(0)} /r
    ${name}   r/mX, rX         ${op(1)} /r
    ${name}   r8, r/m8         ${op(2)} /r
    ${name}   rX, r/mX         ${op(3)} /r`;
});

/** Group 2, shifts and rotates. */
const group2 = (
  [
    ["rol", 0],
    ["ror", 1],
    ["shl", 4],
    ["shr", 5],
    ["sar", 7],
  ] as const
).map(
  ([name, n]) => `
    ${name}   r/m8, 1          d0 /${n}
    ${name}   r/m8, imm8       c0 /${n} ib
    ${name}   r/m8, cl         d2 /${n}
    ${name}   r/mX, 1          d1 /${n}
    ${name}   r/mX, imm8       c1 /${n} ib
    ${name}   r/mX, cl         d3 /${n}`,
);

/** Group 3 and the bit tests. */
const unary = (
  [
    ["not", "f6", "f7", 2],
    ["neg", "f6", "f7", 3],
    ["mul", "f6", "f7", 4],
    ["imul1", "f6", "f7", 5],
    ["div", "f6", "f7", 6],
    ["idiv", "f6", "f7", 7],
    ["inc", "fe", "ff", 0],
    ["dec", "fe", "ff", 1],
  ] as const
).map(
  ([name, byteOp, op, n]) => `
    ${name}   r/m8             ${byteOp} /${n}
    ${name}   r/mX             ${op} /${n}`,
);

const bitTests = (
  [
    ["bt", "a3", 4],
    ["bts", "ab", 5],
    ["btr", "b3", 6],
    ["btc", "bb", 7],
  ] as const
).map(
  ([name, op, n]) => `
    ${name}   r/mX, rX         0f ${op} /r
    ${name}   r/mX, imm8       0f ba /${n} ib`,
);

const others = `
    mov       r/m8, r8         88 /r
    mov       r/mX, rX         89 /r
    mov       r8, r/m8         8a /r
    mov       rX, r/mX         8b /r
    mov       r8, imm8         b0+r ib
    mov       r16, imm16       b8+r iw
    mov       r32, imm32       b8+r id
    mov       r/m8, imm8       c6 /0 ib
    mov       r/mX, immX       c7 /0 iX
    movabs    r64, imm64       +W b8+r io
    lea       rX, m            8d /r

    movzx8    rX, r/m8         0f b6 /r
    movzx16   rX, r/m16        0f b7 /r
    movsx8    rX, r/m8         0f be /r
    movsx16   rX, r/m16        0f bf /r
    movsx32   r64, r/m32       +W 63 /r
    bswap     r32              0f c8+r
    bswap     r64              +W 0f c8+r

    test      al, imm8         a8 ib
    test      r/m8, imm8       f6 /0 ib
    test      raxX, immX       a9 iX
    test      r/mX, immX       f7 /0 iX
    test      r/m8, r8         84 /r
    test      r/mX, rX         85 /r

    imul      rX, r/mX         0f af /r
    imul      rX, r/mX, imm8   6b /r ib
    imul      rX, r/mX, immX   69 /r iX

    xchgrax   rX               90+r
    xchg      r/m8, r8         86 /r
    xchg      r/mX, rX         87 /r
    xadd      r/m8, r8         0f c0 /r
    xadd      r/mX, rX         0f c1 /r
    cmpxchg   r/m8, r8         0f b0 /r
    cmpxchg   r/mX, rX         0f b1 /r
    cmpxchg16b m               +W 0f c7 /1

    set       r/m8             0f 90+cc /0
    cmov      rX, r/mX         0f 40+cc /r
    bsf       rX, r/mX         0f bc /r
    bsr       rX, r/mX         0f bd /r
    popcnt    rX, r/mX         f3 0f b8 /r

    push      r64              50+r
    push      r/m64            ff /6
    push      imm8             6a ib
    push      imm32            68 id
    pop       r64              58+r
    pop       r/m64            8f /0
    jmp       r/m64            ff /4
    call      r/m64            ff /2

    lsl       rX, r/m16        0f 03 /r
    rdpid     r64              f3 0f c7 /7
    rdfsbase  r64              +W f3 0f ae /0
`;

const encodings: ReadonlyMap<string, readonly Encoding[]> = compileTable(
  [...group1, ...group2, ...unary, ...bitTests, others].join("\n"),
);

/** The encodings of a mnemonic at an operand size, best first. Throws if there is none. */
export function getEncodings(mnemonic: string, size: OpSize): readonly Encoding[] {
  const found = encodings.get(mnemonic + size);
  if (found === undefined) throw new AssemblerError(`encode ${mnemonic}: no form with ${size}-bit operands`);
  return found;
}

function compileTable(text: string): Map<string, Encoding[]> {
  const table = new Map<string, Encoding[]>();
  for (const line of text.split("\n")) {
    if (line.trim() === "") continue;
    const [, mnemonic, operands, encoding] = /^\s*(\S+)\s+(\S.*?)\s{2,}(\S.*)$/.exec(line)!;
    const sizes: readonly OpSize[] = /X/.test(operands!) ? [16, 32, 64] : [sizeOfLine(operands!)];
    for (const size of sizes) {
      const key = mnemonic! + size;
      const compiled = compileLine(operands!, encoding!, size);
      table.set(key, [...(table.get(key) ?? []), compiled]);
    }
  }
  return table;
}

/** Size of a line without `X`: that of its first register operand, and 64 without one. */
function sizeOfLine(operands: string): OpSize {
  if (operands.startsWith("al")) return 8;
  const digits = /^r(?:\/m)?(8|16|32|64)/.exec(operands);
  return (digits === null ? 64 : Number(digits[1])) as OpSize;
}

function compileLine(operands: string, encoding: string, size: OpSize): Encoding {
  const patterns = operands.split(",").map((text) => text.trim());
  const isSized = /X/.test(operands);
  const prefix: number[] = isSized && size === 16 ? [0x66] : [];
  let rexW = isSized && size === 64;
  const opcode: number[] = [];
  let modrm: Encoding["modrm"] = "none";
  let regInOpcode = false;
  let immBytes: Encoding["immBytes"] = 0;
  for (const token of encoding.split(/\s+/)) {
    const immediate = { ib: 1, iw: 2, id: 4, io: 8, iX: size === 16 ? 2 : 4 }[token];
    if (immediate !== undefined) immBytes = immediate as Encoding["immBytes"];
    else if (token === "+W") rexW = true;
    else if (token === "/r") modrm = "reg";
    else if (token.startsWith("/")) modrm = Number(token.slice(1));
    else if (opcode.length === 0 && /^f[23]$/.test(token)) prefix.push(Number.parseInt(token, 16));
    else {
      opcode.push(Number.parseInt(token, 16));
      regInOpcode ||= token.endsWith("+r");
    }
  }
  // A 16-bit immediate move is the one line that has a fixed 16-bit form without X.
  if (!isSized && size === 16) prefix.push(0x66);
  return {
    operands: patterns.map((pattern) => compilePattern(pattern, size)),
    size,
    byteRegs: patterns.map((pattern) => /^r(\/m)?8$/.test(pattern)),
    prefix,
    rexW,
    opcode,
    modrm,
    regInOpcode,
    immBytes,
  };
}

function compilePattern(pattern: string, size: OpSize): OperandPattern {
  if (pattern === "1") return { kind: "one" };
  if (pattern === "al" || pattern === "raxX") return { kind: "fixed", reg: 0 };
  if (pattern === "cl") return { kind: "fixed", reg: 1 };
  if (pattern === "m") return { kind: "m" };
  if (pattern.startsWith("imm")) {
    const bits = pattern === "immX" ? Math.min(size, 32) : Number(pattern.slice(3));
    return { kind: "imm", bits: bits as 8 | 16 | 32 | 64 };
  }
  return { kind: pattern.startsWith("r/m") ? "rm" : "r" };
}

/**
 * Where the indirect jumps of a function may lead inside that function.
 *
 * Three shapes occur in compiled code:
 *  - a pointer: `jmp [rip+slot]`, `jmp [rax+0x18]`, `mov rax, [rdi]; jmp rax`: a tail call or a computed goto. Its
 *    targets are addresses that stand in data (which the image's relocations list) or are taken by `lea`;
 *  - an offset table, the switch of position-independent code: `lea T, [rip+table]; movsxd X, [T+I*4]; add X, T;
 *    jmp X`. The entries are 32-bit distances from the table. Only reading them tells the targets;
 *    A computed goto may count from a label of the function instead: `lea B, [rip+label]; add X, B`;
 *  - a pointer table at an absolute address, the switch of other code: `jmp [table+I*8]`.
 *
 * Strategy: for each `jmp reg` follow the register backwards through the function to all instructions that may have
 * set it, and name the shape. An address that is computed in any other way (a jump into unrolled code) stays
 * unresolved, and nobody may then rely on knowing the function's targets.
 *
 * A table is read until an entry leads out of the text or the next table of the function begins; entries that
 * are read too many only add targets.
 */
import { type CodeImage, inText } from "./code-image.ts";
import { type CodeBlock, effectsOf, int32At, ripTargetOf } from "./decode.ts";
import { type ModRmOperand, parseModRm } from "./modrm.ts";
import { hasReg, RAX, type Reg, regSet } from "./registers.ts";

export interface IndirectTargets {
  /** Addresses inside the function, with the jump that leads there. */
  readonly targets: readonly { readonly from: bigint; readonly to: bigint }[];
  /** The first indirect jump whose targets are unknown. */
  readonly unresolvedAt: bigint | undefined;
}

/** Entries of one table: more than any compiler makes, so that garbage ends somewhere. */
const MAX_ENTRIES = 16_384;

/** See the head of the file; `pointer-table` is a switch by a table at an absolute address. */
export type IndirectShape = "pointer" | "pointer-table" | "offset-table" | "unknown";

type Shape = Exclude<IndirectShape, "pointer-table">;

/** What the indirect jump with this index is. */
export function shapeOfIndirectJump(code: CodeBlock, jump: number): IndirectShape {
  const bytes = code.bytesAt(jump);
  if (absoluteTableDisp(bytes) !== undefined) return "pointer-table";
  const operand = parseModRm(bytes);
  if (operand === undefined) return "unknown";
  return operand.kind === "reg" ? new DefinitionTracer(code).shapeOf(jump, operand.reg) : "pointer";
}

export function resolveIndirectJumps(image: CodeImage, code: CodeBlock): IndirectTargets {
  const jumps: number[] = [];
  for (let i = 0; i < code.count; i++) if (code.flowAt(i) === "jump-indirect") jumps.push(i);
  const targets: { from: bigint; to: bigint }[] = [];
  if (jumps.length === 0) return { targets, unresolvedAt: undefined };

  let unresolvedAt: bigint | undefined;
  let offsetJump: number | undefined;
  const tracer = new DefinitionTracer(code);
  for (const jump of jumps) {
    const operand = parseModRm(code.bytesAt(jump));
    const shape =
      operand === undefined
        ? "unknown"
        : operand.kind === "reg"
          ? tracer.shapeOf(jump, operand.reg)
          : "pointer";
    if (shape === "offset-table") offsetJump ??= jump;
    if (shape === "unknown") unresolvedAt ??= code.insn(jump).addr;
  }

  if (offsetJump !== undefined) {
    const from = code.insn(offsetJump).addr;
    const found = offsetTableTargets(image, code);
    if (found.length === 0) unresolvedAt ??= from;
    for (const to of found) targets.push({ from, to });
  }
  for (const { from, to } of pointerTableTargets(image, code)) targets.push({ from, to });
  return { targets, unresolvedAt };
}

/** All entries of all offset tables whose address the function takes, that land in the function. */
function offsetTableTargets(image: CodeImage, code: CodeBlock): bigint[] {
  const found: bigint[] = [];
  for (const to of allOffsetTableTargets(image, code)) {
    if (to >= code.start && to < code.end) found.push(to);
  }
  return found;
}

/** Where the entries of all offset tables lead whose address the function takes, wherever that is. */
export function allOffsetTableTargets(image: CodeImage, code: CodeBlock): bigint[] {
  const { tables, labels } = takenAddresses(code);
  const targets: bigint[] = [];
  for (const [i, table] of tables.entries()) {
    const next = tables[i + 1];
    const gap = next === undefined ? MAX_ENTRIES * 4 : Number(next - table);
    const lenBytes = Math.min(gap, MAX_ENTRIES * 4);
    for (const base of [table, ...labels]) targets.push(...readOffsetTable(image, table, lenBytes, base));
  }
  return targets;
}

/** What the function's `lea reg, [rip+x]` take: addresses elsewhere, ascending, and addresses in its own code. */
function takenAddresses(code: CodeBlock): { tables: bigint[]; labels: bigint[] } {
  const tables = new Set<bigint>();
  const labels = new Set<bigint>();
  for (let i = 0; i < code.count; i++) {
    const bytes = code.bytesAt(i);
    // lea r64, [rip+disp32]: REX.W 8D /r with mod 00, rm 101.
    if (bytes.length < 7 || !isLeaRip(bytes)) continue;
    const target = ripTargetOf(code.insn(i));
    if (target === undefined) continue;
    if (target >= code.start && target < code.end) labels.add(target);
    else tables.add(target);
  }
  return { tables: [...tables].sort((a, b) => (a < b ? -1 : 1)), labels: [...labels] };
}

function isLeaRip(bytes: Uint8Array): boolean {
  const at = bytes.length - 7;
  return (bytes[at]! & 0xf8) === 0x48 && bytes[at + 1] === 0x8d && (bytes[at + 2]! & 0xc7) === 0x05;
}

function readOffsetTable(image: CodeImage, table: bigint, lenBytes: number, base: bigint): bigint[] {
  const targets: bigint[] = [];
  const CHUNK = 256;
  for (let done = 0; done + 4 <= lenBytes; ) {
    const want = Math.min(CHUNK, lenBytes - done) & ~3;
    const bytes = readSome(image, table + BigInt(done), want);
    if (bytes === undefined) return targets;
    for (let i = 0; i + 4 <= bytes.length; i += 4) {
      const to = base + BigInt(int32At(bytes, i));
      if (!inText(image, to)) return targets;
      targets.push(to);
    }
    if (bytes.length < want) return targets;
    done += bytes.length;
  }
  return targets;
}

/** As many bytes as there are, up to `want`. */
function readSome(image: CodeImage, addr: bigint, want: number): Uint8Array | undefined {
  for (let length = want; length >= 4; length >>= 1) {
    const bytes = image.readData(addr, length);
    if (bytes !== undefined) return bytes;
  }
  return undefined;
}

/** Entries of tables `[disp32 + index*8]`, whose address is part of an instruction. */
function pointerTableTargets(image: CodeImage, code: CodeBlock): { from: bigint; to: bigint }[] {
  const found: { from: bigint; to: bigint }[] = [];
  for (let i = 0; i < code.count; i++) {
    const bytes = code.bytesAt(i);
    const disp = absoluteTableDisp(bytes);
    if (disp === undefined) continue;
    const from = code.insn(i).addr;
    for (let entry = 0; entry < MAX_ENTRIES; entry++) {
      const word = image.readData(BigInt(disp) + BigInt(entry * 8), 8);
      if (word === undefined) break;
      const to = BigInt.asUintN(
        64,
        (BigInt(int32At(word, 4)) << 32n) | BigInt.asUintN(32, BigInt(int32At(word, 0))),
      );
      if (!inText(image, to)) break;
      if (to >= code.start && to < code.end) found.push({ from, to });
    }
  }
  return found;
}

/** Displacement of a memory operand `[disp32 + index*8]` without base, positive; else undefined. */
function absoluteTableDisp(bytes: Uint8Array): number | undefined {
  const operand = parseModRm(bytes);
  if (operand?.kind !== "mem" || operand.base !== undefined || operand.index === undefined) return undefined;
  return operand.scale === 8 && operand.disp > 0 ? operand.disp : undefined;
}

/** Registers that a called function may change (psABI, figure 3.4). */
const callClobbered = regSet(0, 1, 2, 6, 7, 8, 9, 10, 11);

/** Follows a register backwards to every instruction that may have set it. */
class DefinitionTracer {
  readonly #code: CodeBlock;
  #branchesTo: Map<number, number[]> | undefined;

  constructor(code: CodeBlock) {
    this.#code = code;
  }

  shapeOf(jump: number, reg: Reg): Shape {
    return this.#shape(jump, reg, new Set());
  }

  #shape(index: number, reg: Reg, seen: Set<number>): Shape {
    let result: Shape = "pointer";
    for (const def of this.#definitions(index, reg, seen)) {
      const shape = this.#shapeOfDefinition(def, reg, seen);
      if (shape === "unknown") return "unknown";
      if (shape === "offset-table") result = shape;
    }
    return result;
  }

  #shapeOfDefinition(def: number, reg: Reg, seen: Set<number>): Shape {
    const code = this.#code;
    const bytes = code.bytesAt(def);
    const { mnemonic, reads } = effectsOf(bytes);
    const operand = parseModRm(bytes);
    const flow = code.flowAt(def);
    if (flow === "call" || flow === "call-indirect" || flow === "syscall") return "pointer";
    switch (mnemonic) {
      case "pop":
      case "leave":
        return "pointer";
      case "mov": {
        // From memory, or a constant: an address either way.
        const source = movSource(bytes);
        return source === undefined ? "pointer" : this.#shape(def, source, seen);
      }
      case "lea":
        if (operand?.kind !== "mem") return "unknown";
        if (operand.base === "rip") return "pointer";
        if (
          operand.index !== undefined &&
          operand.scale === 1 &&
          operand.disp === 0 &&
          typeof operand.base === "number"
        )
          return this.#sumShapeOf(def, [operand.base, operand.index]);
        return "unknown";
      case "add":
        return this.#sumShapeOf(def, sumOperands(bytes, reg));
      case "xor":
      case "ror":
        // Pointers in saved contexts are mangled: `ror reg, 0x11; xor reg, fs:[0x30]`.
        return mnemonic === "ror" || operand?.kind === "mem" ? "pointer" : "unknown";
      case "cmove":
      case "cmovne":
      case "cmovb":
      case "cmovae":
      case "cmovbe":
      case "cmova":
      case "cmovs":
      case "cmovns":
      case "cmovl":
      case "cmovge":
      case "cmovle":
      case "cmovg": {
        let shape = this.#shape(def, reg, seen);
        for (let source = 0; source < 16; source++) {
          if (source === reg || !hasReg(reads, source)) continue;
          const other = this.#shape(def, source, seen);
          if (other === "unknown") return "unknown";
          if (other === "offset-table") shape = other;
        }
        return shape;
      }
      default:
        return "unknown";
    }
  }

  /** A sum leads somewhere known if one of its parts is an entry of an offset table. */
  #sumShapeOf(index: number, parts: readonly Reg[] | undefined): Shape {
    return parts?.some((reg) => this.#isTableEntry(index, reg)) ? "offset-table" : "unknown";
  }

  #isTableEntry(index: number, reg: Reg): boolean {
    const defs = this.#definitions(index, reg, new Set());
    return (
      defs.length > 0 &&
      defs.every((def) => {
        const bytes = this.#code.bytesAt(def);
        const { mnemonic } = effectsOf(bytes);
        if (mnemonic === "movsxd") {
          const operand = parseModRm(bytes);
          return operand?.kind === "mem" || (operand?.kind === "reg" && this.#isLoad(def, operand.reg));
        }
        return mnemonic === "cdqe" && this.#isLoad(def, RAX);
      })
    );
  }

  #isLoad(index: number, reg: Reg): boolean {
    const defs = this.#definitions(index, reg, new Set());
    return (
      defs.length > 0 &&
      defs.every((def) => {
        const bytes = this.#code.bytesAt(def);
        return effectsOf(bytes).mnemonic === "mov" && parseModRm(bytes)?.kind === "mem";
      })
    );
  }

  /** Instructions whose value of `reg` may reach the instruction at `index`. The function's entry is none of them. */
  #definitions(index: number, reg: Reg, seen: Set<number>): number[] {
    const code = this.#code;
    const found: number[] = [];
    const pending = this.#predecessors(index);
    while (pending.length > 0) {
      const at = pending.pop()!;
      const key = at * 16 + reg;
      if (seen.has(key)) continue;
      seen.add(key);
      const flow = code.flowAt(at);
      const isCall = flow === "call" || flow === "call-indirect";
      if (isCall ? hasReg(callClobbered, reg) : hasReg(effectsOf(code.bytesAt(at)).writes, reg))
        found.push(at);
      else pending.push(...this.#predecessors(at));
    }
    return found;
  }

  #predecessors(index: number): number[] {
    const code = this.#code;
    this.#branchesTo ??= this.#collectBranches();
    const before = [...(this.#branchesTo.get(code.offsets[index]!) ?? [])];
    if (index > 0 && code.fallsThrough(index - 1)) before.push(index - 1);
    return before;
  }

  #collectBranches(): Map<number, number[]> {
    const code = this.#code;
    const branches = new Map<number, number[]>();
    for (let i = 0; i < code.count; i++) {
      const flow = code.flowAt(i);
      if (flow !== "jump" && flow !== "branch") continue;
      const to = code.targets[i]!;
      const known = branches.get(to);
      if (known === undefined) branches.set(to, [i]);
      else known.push(i);
    }
    return branches;
  }
}

/** The source of `mov` between two registers (89 /r and 8b /r), or undefined. */
function movSource(bytes: Uint8Array): Reg | undefined {
  const operand = parseModRm(bytes);
  if (operand?.kind !== "reg") return undefined;
  const opcode = bytes[operand.modRmAt - 1];
  if (opcode === 0x8b) return operand.reg;
  return opcode === 0x89 ? regField(bytes, operand) : undefined;
}

/** The reg field of ModRM with its REX.R bit. */
function regField(bytes: Uint8Array, operand: ModRmOperand): Reg {
  const rex = operand.modRmAt >= 2 ? bytes[operand.modRmAt - 2]! : 0;
  return operand.field | ((rex & 0xf0) === 0x40 ? (rex & 4) << 1 : 0);
}

/** Both registers of `add dst, src` between registers (01 /r and 03 /r): dst first. */
function sumOperands(bytes: Uint8Array, dst: Reg): [Reg, Reg] | undefined {
  const operand = parseModRm(bytes);
  if (operand?.kind !== "reg") return undefined;
  const opcode = bytes[operand.modRmAt - 1];
  if (opcode !== 0x01 && opcode !== 0x03) return undefined;
  const field = regField(bytes, operand);
  return [dst, field === dst ? operand.reg : field];
}

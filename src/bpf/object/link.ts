/**
 * From the functions of an object to programs that can be proved one by one: each with the functions that it calls
 * behind it, as libbpf links them, and with map indexes where the object has relocations.
 *
 *     call    imm is the distance to the function, in slots behind the call; src 1
 *     ldimm64 of a map           src 1, imm its index
 *     ldimm64 of a global        src 2, imm the index of its section's map, second imm the offset
 *     ldimm64 of a function      src 4, imm the distance to it
 *
 * Invariant: every function stands in a program once, however often it is called.
 */
import { decodeInsns, INSN_BYTES, type Insn } from "../insn.ts";
import {
  ALU_MOV,
  CALL_HELPER,
  CALL_LOCAL,
  CLASS_ALU,
  CLASS_ALU64,
  classOf,
  isSrcReg,
  OP_CALL,
  OP_LDIMM64,
  opOf,
  PSEUDO_FUNCTION,
  PSEUDO_MAP_FD,
  PSEUDO_MAP_VALUE,
} from "../opcodes.ts";
import type { Btf } from "./btf.ts";
import type { BtfExt, CoreRelocation, SourceLine } from "./btf-ext.ts";
import { resolveCore } from "./core-types.ts";
import type { ElfObject, ObjectSymbol, Relocation, Section } from "./elf-object.ts";
import { fail } from "./object-error.ts";
import { findDeclared, type PlacedMap } from "./object-maps.ts";

const R_BPF_64_64 = 1;
const R_BPF_64_32 = 10;
const MAX_LINKED_SLOTS = 1_000_000;
/** The context has the same layout in every kernel; what programs read of it was compiled in. */
const PT_REGS_BYTES = 168;
/**
 * What libbpf calls where there is no such function: the verifier refuses it by its number, if a path leads there.
 */
const POISONED_CALL = 0xbad2310;

export interface LinkInput {
  readonly elf: ElfObject;
  readonly maps: readonly PlacedMap[];
  readonly btf: Btf | undefined;
  readonly ext: BtfExt | undefined;
}

export interface LinkedProgram {
  readonly insns: readonly Insn[];
  /** By slot, where a line begins. */
  readonly lines: ReadonlyMap<number, SourceLine>;
  /** Slots where a function begins, with its name. */
  readonly functions: ReadonlyMap<number, string>;
}

/** A function of the object. */
export interface ObjectFunction {
  readonly name: string;
  readonly section: Section;
  readonly isLocal: boolean;
  readonly start: number;
  readonly end: number;
}

/** All functions in sections of code, in the order of sections and offsets. */
export function findFunctions({ sections, symbols }: ElfObject): ObjectFunction[] {
  return sections
    .filter(({ isCode }) => isCode)
    .flatMap((section) => {
      const starts = symbols
        .filter(({ kind, section: index }) => kind === "function" && index === section.index)
        .sort((a, b) => a.value - b.value);
      return starts.map((symbol, i): ObjectFunction => {
        const next = starts[i + 1]?.value ?? section.sizeBytes;
        const end = symbol.sizeBytes > 0 ? symbol.value + symbol.sizeBytes : next;
        if (symbol.value % INSN_BYTES !== 0 || end % INSN_BYTES !== 0 || end > section.sizeBytes)
          fail(`function ${symbol.name}: it does not lie in section ${section.name} as instructions do`);
        return { name: symbol.name, section, isLocal: symbol.isLocal, start: symbol.value, end };
      });
    });
}

/** A function at its place in a program. */
interface Placed {
  readonly fn: ObjectFunction;
  readonly at: number;
}

/** Links one program. Throws ObjectError with what it needs that does not exist. */
export function linkProgram(
  input: LinkInput,
  functions: readonly ObjectFunction[],
  program: ObjectFunction,
): LinkedProgram {
  return new Link(input, functions, program).run();
}

class Link {
  readonly #input: LinkInput;
  readonly #functions: readonly ObjectFunction[];
  readonly #program: ObjectFunction;
  readonly #placed: Placed[] = [];
  readonly #insns: Insn[] = [];

  constructor(input: LinkInput, functions: readonly ObjectFunction[], program: ObjectFunction) {
    this.#input = input;
    this.#functions = functions;
    this.#program = program;
  }

  run(): LinkedProgram {
    this.#place(this.#program);
    // Grows while functions are found that are called.
    for (let i = 0; i < this.#placed.length; i++) this.#relocate(this.#placed[i]!);
    const lines = new Map<number, SourceLine>();
    for (const { fn, at } of this.#placed) {
      // Line 0 is code that the compiler made up.
      for (const { offset, line } of this.#input.ext?.lines.get(fn.section.name) ?? [])
        if (offset >= fn.start && offset < fn.end && line.line > 0)
          lines.set(at + (offset - fn.start) / INSN_BYTES, line);
    }
    return {
      insns: this.#insns,
      lines,
      functions: new Map(this.#placed.map(({ fn, at }) => [at, fn.name])),
    };
  }

  #place(fn: ObjectFunction): number {
    const known = this.#placed.find((placed) => placed.fn === fn);
    if (known !== undefined) return known.at;
    const at = this.#insns.length;
    const decoded = decodeInsns(
      fn.section.data.part(fn.start, fn.end - fn.start, `function ${fn.name}`).bytes,
    );
    if (decoded.kind === "bad") fail(decoded.message);
    if (at + decoded.insns.length > MAX_LINKED_SLOTS)
      fail(`it has more than ${MAX_LINKED_SLOTS} instructions`);
    for (const insn of decoded.insns) this.#insns.push(insn);
    this.#placed.push({ fn, at });
    return at;
  }

  #relocate({ fn, at }: Placed): void {
    const { elf, ext } = this.#input;
    for (const core of ext?.core.get(fn.section.name) ?? [])
      if (core.offset >= fn.start && core.offset < fn.end)
        this.#relocateCore(core, at + (core.offset - fn.start) / INSN_BYTES);
    const relocations = new Map<number, Relocation>();
    for (const relocation of elf.relocations.get(fn.section.index) ?? [])
      if (relocation.offset >= fn.start && relocation.offset < fn.end)
        relocations.set(at + (relocation.offset - fn.start) / INSN_BYTES, relocation);
    const end = at + (fn.end - fn.start) / INSN_BYTES;
    for (let slot = at; slot < end; slot++) {
      const insn = this.#insns[slot]!;
      const relocation = relocations.get(slot);
      relocations.delete(slot);
      if (insn.opcode === OP_LDIMM64) {
        if (relocation !== undefined) this.#loadAddress(slot, insn, relocation);
        slot++;
      } else if (insn.opcode === OP_CALL && (relocation !== undefined || insn.src === CALL_LOCAL)) {
        this.#call(slot, insn, relocation, fn, fn.start + (slot - at) * INSN_BYTES);
      } else if (relocation !== undefined) {
        this.#unknown(relocation, slot);
      }
    }
    for (const [slot, relocation] of relocations) this.#unknown(relocation, slot);
  }

  #loadAddress(slot: number, insn: Insn, relocation: Relocation): void {
    const { symbol, type } = relocation;
    if (type !== R_BPF_64_64) this.#unknown(relocation, slot);
    const high = this.#insns[slot + 1];
    if (high === undefined) fail(`instruction ${slot}: the second half of ldimm64 is missing`);
    if (symbol.section === 0) {
      const declared = findDeclared(this.#input.maps, symbol.name);
      if (declared !== undefined) {
        const low = { ...insn, src: PSEUDO_MAP_VALUE, imm: declared.map };
        this.#set(slot, low, { ...high, imm: declared.offset + insn.imm });
        return;
      }
      if (!symbol.isWeak) this.#undefined(symbol);
      this.#set(slot, { ...insn, src: 0, imm: 0 }, { ...high, imm: 0 });
      return;
    }
    const offset = symbol.value + insn.imm;
    const maps = this.#input.maps;
    const globals = maps.findIndex((map) => map.symbol === undefined && map.section === symbol.section);
    if (globals >= 0) {
      this.#set(slot, { ...insn, src: PSEUDO_MAP_VALUE, imm: globals }, { ...high, imm: offset | 0 });
      return;
    }
    const map = maps.findIndex(
      (candidate) => candidate.section === symbol.section && candidate.symbol?.value === offset,
    );
    if (map >= 0) {
      this.#set(slot, { ...insn, src: PSEUDO_MAP_FD, imm: map }, { ...high, imm: 0 });
      return;
    }
    const distance = this.#place(this.#functionAt(symbol.section, offset, symbol.name)) - slot - 1;
    this.#set(slot, { ...insn, src: PSEUDO_FUNCTION, imm: distance }, { ...high, imm: 0 });
  }

  #call(
    slot: number,
    insn: Insn,
    relocation: Relocation | undefined,
    fn: ObjectFunction,
    offset: number,
  ): void {
    if (relocation !== undefined && relocation.type !== R_BPF_64_32) this.#unknown(relocation, slot);
    const symbol = relocation?.symbol;
    if (symbol?.section === 0) {
      if (!symbol.isWeak) this.#undefined(symbol);
      this.#insns[slot] = { ...insn, src: CALL_HELPER, imm: POISONED_CALL };
      return;
    }
    const section = symbol?.section ?? fn.section.index;
    // With a relocation imm counts from the symbol, without from the call, and both from the slot behind.
    const target = (symbol?.value ?? offset) + (insn.imm + 1) * INSN_BYTES;
    const callee = this.#functionAt(section, target, symbol?.name ?? fn.section.name);
    this.#insns[slot] = { ...insn, src: CALL_LOCAL, imm: this.#place(callee) - slot - 1 };
  }

  #functionAt(section: number, offset: number, name: string): ObjectFunction {
    return (
      this.#functions.find((fn) => fn.section.index === section && fn.start === offset) ??
      fail(`it refers to ${name}+${offset}, which is neither map nor global nor function`)
    );
  }

  #set(slot: number, low: Insn, high: Insn): void {
    this.#insns[slot] = low;
    this.#insns[slot + 1] = high;
  }

  #undefined({ name }: ObjectSymbol): never {
    const { btf } = this.#input;
    const isIn = (section: string) => btf?.variablesIn(section).some((variable) => variable.name === name);
    if (isIn(".kconfig"))
      fail(`it asks for ${name} (__kconfig), which is of the kernel's configuration and version`);
    if (isIn(".ksyms")) fail(`it refers to ${name} (__ksym), a variable of the kernel's`);
    fail(`it refers to ${name}, which is not in the object: what the kernel has a process has not`);
  }

  #unknown({ type, symbol }: Relocation, slot: number): never {
    fail(`instruction ${slot}: a relocation of type ${type} to ${symbol.name} is not supported there`);
  }

  #relocateCore(relocation: CoreRelocation, slot: number): void {
    const { btf } = this.#input;
    if (btf === undefined) return;
    const value = resolveCore(btf, relocation, PT_REGS_BYTES);
    if (value === undefined) return;
    const insn = this.#insns[slot];
    const high = this.#insns[slot + 1];
    if (insn?.opcode === OP_LDIMM64 && high !== undefined)
      this.#set(slot, { ...insn, imm: value }, { ...high, imm: 0 });
    else if (insn !== undefined && isImmediateMove(insn)) this.#insns[slot] = { ...insn, imm: value };
    else fail(`instruction ${slot}: it takes no value of a type (CO-RE)`);
  }
}

function isImmediateMove({ opcode }: Insn): boolean {
  const cls = classOf(opcode);
  return (cls === CLASS_ALU || cls === CLASS_ALU64) && opOf(opcode) === ALU_MOV && !isSrcReg(opcode);
}

/**
 * Forms of instructions as they occur in images, and the comparison of a form with its relocated copy.
 *
 * A form is what matters to the one who moves an instruction: the encoding, its prefixes, which kinds of operands it has and
 * how its memory operand is addressed. Every form is a sample of bytes from an image, whose operands are led into memory of a
 * stepped machine: displacements by changing the bytes, registers by what they hold.
 */
import type { CodeImage } from "../../src/x86/code-image.ts";
import { decodeBlock, int32At, textOf } from "../../src/x86/decode.ts";
import {
  Code,
  Decoder,
  DecoderOptions,
  Instruction,
  InstructionInfoFactory,
  OpKind,
  Register,
} from "../../src/x86/iced.ts";
import { isLegacyPrefix } from "../../src/x86/modrm.ts";
import type { Region } from "../../src/x86/regions.ts";
import { RAX, RCX, RDX, RSP } from "../../src/x86/registers.ts";
import { relocate } from "../../src/x86/relocate.ts";
import { allEncodings } from "./instruction-encodings.ts";
import { SeededRandom } from "./seeded-random.ts";
import type { StepOutcome, SteppedMachine, StepState } from "./stepped-machine.ts";

export interface InstructionForm {
  readonly key: string;
  readonly bytes: Uint8Array;
  /** Where it was found. */
  readonly from: string;
}

const scratch = new Instruction();

/** Forms that `known` does not have yet are added to it. Returns how many instructions were looked at. */
export function collectForms(image: CodeImage, known: Map<string, InstructionForm>): number {
  const heads = new Set<number>();
  let count = 0;
  for (const { start, bytes } of image.text) {
    const decoder = new Decoder(64, bytes, DecoderOptions.None);
    try {
      let offset = 0;
      while (decoder.canDecode) {
        decoder.decodeOut(scratch);
        const end = decoder.position;
        if (scratch.code === Code.INVALID) {
          offset = end;
          continue;
        }
        count++;
        const head = headOf(bytes, offset, end);
        if (!heads.has(head)) {
          heads.add(head);
          const key = keyOf(bytes.subarray(offset, end));
          if (!known.has(key))
            known.set(key, {
              key,
              bytes: Uint8Array.from(bytes.subarray(offset, end)),
              from: `${image.name} 0x${(start + BigInt(offset)).toString(16)}`,
            });
        }
        offset = end;
      }
    } finally {
      decoder.free();
    }
  }
  return count;
}

/** Forms of all encodings that there are (`allEncodings`). */
export function collectEncodings(known: Map<string, InstructionForm>): void {
  const seen = new Set<number>();
  let batch: (readonly number[])[] = [];
  const bytes = new Uint8Array(BATCH * STRIDE);
  const look = () => {
    for (const [i, encoding] of batch.entries()) bytes.set(encoding, i * STRIDE);
    // The decoder takes a copy of the bytes.
    const decoder = new Decoder(64, bytes, DecoderOptions.None);
    for (const [i, encoding] of batch.entries()) {
      decoder.position = i * STRIDE;
      decoder.decodeOut(scratch);
      const code = scratch.code;
      if (code === Code.INVALID) continue;
      const first = encoding[0]!;
      const isPrefixed = isLegacyPrefix(first);
      const prefix = isPrefixed ? first * 256 + (isLegacyPrefix(encoding[1]!) ? encoding[1]! : 0) : 0;
      const evex = first === 0x62 ? encoding[3]! : 0;
      const cheap = ((code * 65536 + prefix) * 256 + evex) * 2 + (scratch.isIpRelMemoryOperand ? 1 : 0);
      if (seen.has(cheap)) continue;
      seen.add(cheap);
      const found = Uint8Array.from(encoding.slice(0, decoder.position - i * STRIDE));
      const key = `${keyOf(found)}${evex === 0 ? "" : ` | ${evex.toString(16)}`}`;
      if (!known.has(key)) known.set(key, { key, bytes: found, from: "the opcode maps" });
    }
    decoder.free();
    batch = [];
  };
  for (const encoding of allEncodings()) {
    batch.push(encoding);
    if (batch.length === BATCH) look();
  }
  look();
}

const BATCH = 65_536;
const STRIDE = 20;

/** A number for the bytes that may tell forms apart, so that not every instruction is looked at closely. */
function headOf(bytes: Uint8Array, from: number, end: number): number {
  const first = bytes[from]!;
  const isLong = first === 0x62 || first === 0xc4 || first === 0xc5 || isLegacyPrefix(first);
  const length = end - from;
  const isBranch = first === 0xe8 || first === 0xe9 || (first === 0x0f && (bytes[from + 1]! & 0xf0) === 0x80);
  let head = length;
  const taken = Math.min(length, isBranch ? 2 - (first & 0x80 ? 1 : 0) : isLong ? 6 : 4);
  for (let i = 0; i < taken; i++) head = head * 256 + bytes[from + i]!;
  return head;
}

function keyOf(bytes: Uint8Array): string {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  const insn = decoder.decode();
  try {
    const prefixes: string[] = [];
    let at = 0;
    for (; isLegacyPrefix(bytes[at]!); at++) prefixes.push(bytes[at]!.toString(16));
    const kinds = Array.from({ length: insn.opCount }, (_, i) => OpKind[insn.opKind(i)]);
    const memory = !kinds.includes("Memory")
      ? ""
      : insn.isIpRelMemoryOperand
        ? "rip"
        : [
            insn.memoryBase === Register.None ? "" : insn.memoryBase === Register.RSP ? "rsp" : "base",
            insn.memoryIndex === Register.None ? "" : "index",
            insn.memoryDisplSize,
          ].join("+");
    const usesRsp = Array.from(
      { length: insn.opCount },
      (_, i) => insn.opKind(i) === OpKind.Register && insn.opRegister(i) === Register.RSP,
    );
    return [
      Code[insn.code],
      prefixes.sort().join(" "),
      kinds.join(","),
      memory,
      usesRsp.includes(true) ? "rsp" : "",
    ].join(" | ");
  } finally {
    insn.free();
    decoder.free();
  }
}

/**
 * What is not run: what makes system calls, waits, or leaves the process; what reads clocks, randomness, processors or the
 * place of its code; what keeps the single step from stopping behind it, and what the kernel does instead (UMIP).
 */
const notRun =
  /^(Rdtscp?|Rdpmc|Rdrand|Rdseed|Rdpid|Cpuid|Sysenter|Syscall|Int|Iret|Vmm?call|Vmfunc|Monitorx?|Mwaitx?|Umonitor|Umwait|Tpause|S[gi]dt|Sldt|Smsw|Str_|Mov_Sreg|Pop[wq]_|Lss|Xbegin|Xsave|Xrstor|Fn?stenv|Fn?save|Fldenv|Frstor|Fx(save|rstor))/;

export interface FormVerdict {
  readonly key: string;
  /** `ran`: in at least one round it ran to its end, `faulted`: it faulted alike in all; `decoded`: compared by decoding only. */
  readonly how: "ran" | "faulted" | "decoded" | "refused";
  /** Undefined: no difference. */
  readonly difference?: string;
  readonly reason?: string;
}

export interface CompareOptions {
  readonly seed: number;
  readonly rounds?: number;
  /** What makes the copy. */
  readonly move?: typeof relocate;
}

/** Compares an instruction with its relocated copy, by running both where that can be done, and by decoding. */
export function compareForm(
  machine: SteppedMachine,
  form: InstructionForm,
  { seed, rounds = 3, move = relocate }: CompareOptions,
): FormVerdict {
  const { key } = form;
  const code = leadOperands(machine, form.bytes);
  const region = regionOf(machine.codeAt, code);
  const result = move(region, machine.copyAt);
  if (result.kind === "refused") {
    const { refusal } = result;
    return {
      key,
      how: "refused",
      reason: refusal.reason === "unrelocatable" ? refusal.what : refusal.reason,
    };
  }
  const decoded = compareDecoded(region, result.bytes, machine.copyAt);
  if (decoded !== undefined) return { key, how: "decoded", difference: decoded };
  if (notRun.test(key)) return { key, how: "decoded" };
  const random = new SeededRandom(seed);
  let ran = 0;
  for (let round = 0; round < rounds; round++) {
    const state = drawState(machine, code, random, round);
    const vectorSeed = random.below(2 ** 31);
    const before = (): StepState => ({ ...state, vectors: vectorWords(code, vectorSeed) });
    const expected = machine.runOriginal(code, before());
    const actual = machine.runCopy(result.bytes, before());
    const difference = differenceOf(expected, actual);
    if (difference !== undefined)
      return {
        key,
        how: "ran",
        difference: `${textOf({ addr: machine.codeAt, bytes: code })} (${hex(form.bytes)} of ${form.from}), round ${round} of seed ${seed}: ${difference}`,
      };
    if (expected.signal === undefined) ran++;
  }
  return { key, how: ran > 0 ? "ran" : "faulted" };
}

function differenceOf(expected: StepOutcome, actual: StepOutcome): string | undefined {
  if (expected.signal !== actual.signal) return `signal ${actual.signal} instead of ${expected.signal}`;
  // A fault is raised by both, at places of their own.
  if (expected.signal !== undefined) return undefined;
  if (expected.ip !== actual.ip)
    return `leads to 0x${actual.ip.toString(16)} instead of 0x${expected.ip.toString(16)}`;
  for (let i = 0; i < expected.registers.length; i++)
    if (expected.registers[i] !== actual.registers[i])
      return `word ${i} of the registers is 0x${actual.registers[i]!.toString(16)} instead of 0x${expected.registers[i]!.toString(16)}`;
  const vector = firstDifference(expected.vectors, actual.vectors);
  if (vector >= 0) return `byte ${vector} of the vector registers differs`;
  const word = firstDifference(expected.memory, actual.memory);
  return word >= 0 ? `byte ${word} of the memory differs` : undefined;
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  return Buffer.compare(a, b) === 0 ? -1 : a.findIndex((byte, i) => byte !== b[i]);
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

function regionOf(at: bigint, code: Uint8Array): Region {
  const block = decodeBlock(at, code);
  return {
    start: at,
    lenBytes: code.length,
    insns: block.insns(),
    paddingBytes: 0,
    fallsThrough: block.fallsThrough(block.count - 1),
  };
}

/** The bytes with displacements that lead into the machine: RIP-relative operands to the data, branches to the target. */
function leadOperands(machine: SteppedMachine, bytes: Uint8Array): Uint8Array {
  const code = Uint8Array.from(bytes);
  const view = new DataView(code.buffer);
  const end = machine.codeAt + BigInt(code.length);
  const decoder = new Decoder(64, code, DecoderOptions.None);
  const insn = decoder.decode();
  const constants = decoder.getConstantOffsets(insn);
  try {
    if (insn.isIpRelMemoryOperand)
      view.setInt32(constants.displacementOffset, Number(machine.dataAt + 256n - end), true);
    else if (constants.displacementSize === 8)
      view.setBigUint64(constants.displacementOffset, machine.dataAt + 256n, true);
    else if (
      constants.displacementSize === 4 &&
      insn.memoryBase === Register.None &&
      insn.memoryIndex === Register.None &&
      insn.segmentPrefix === Register.None
    )
      view.setUint32(constants.displacementOffset, Number(machine.dataAt + 256n), true);
    const branch = decodeBlock(machine.codeAt, code);
    if (
      branch.hasTarget(0) &&
      int32At(code, code.length - 4) !== 0 &&
      !(insn.isJmpShort || insn.isJccShort || insn.isJcxShort || insn.isLoop || insn.isLoopcc)
    )
      view.setInt32(code.length - 4, Number(machine.targetAt - end), true);
  } finally {
    constants.free();
    insn.free();
    decoder.free();
  }
  return code;
}

const factory = new InstructionInfoFactory();

/** Number of the 64-bit register that a register is part of. */
function regNumber(register: Register): number {
  if (register >= Register.RAX && register <= Register.R15) return register - Register.RAX;
  if (register >= Register.EAX && register <= Register.R15D) return register - Register.EAX;
  if (register >= Register.AX && register <= Register.R15W) return register - Register.AX;
  return -1;
}

/** Registers that lead every memory operand to the data, flags, and memory of code addresses or of anything. */
function drawState(
  machine: SteppedMachine,
  code: Uint8Array,
  random: SeededRandom,
  round: number,
): Omit<StepState, "vectors"> {
  const word = () => (BigInt(random.below(2 ** 32)) << 32n) | BigInt(random.below(2 ** 32));
  const regs = Array.from({ length: 16 }, word);
  // Small numbers now and then: for divisions, counts, bits.
  if (round % 3 === 1) for (let reg = 0; reg < 16; reg++) regs[reg] = BigInt(random.below(200) + 1);
  if (round % 3 !== 0) regs[RDX] = BigInt(round % 2);
  const decoder = new Decoder(64, code, DecoderOptions.None);
  const insn = decoder.decode();
  const info = factory.info(insn);
  const state = { fsBase: 0n, gsBase: 0n };
  const isString = insn.isStringInstruction;
  if (isString) regs[RCX] = BigInt(random.below(6));
  if (insn.isLoop || insn.isLoopcc || insn.isJcxShort) regs[RCX] = BigInt(random.below(4));
  if (Code[insn.code]!.startsWith("Xlat")) regs[RAX] = BigInt(random.below(256));
  // A bit offset in a register reaches 256 MiB far: into memory that is not put back between runs.
  if (/^Bt[src]?_rm/.test(Code[insn.code]!) && insn.opKind(1) === OpKind.Register)
    regs[regNumber(insn.opRegister(1))] = BigInt(random.below(4096));
  regs[RSP] = machine.stackAt;
  try {
    const leadsTo = [
      insn.opCount > 0 && insn.opKind(0) === OpKind.Register ? regNumber(insn.opRegister(0)) : -1,
    ];
    const flow = decodeBlock(machine.codeAt, code).flowAt(0);
    const isIndirect = flow === "jump-indirect" || flow === "call-indirect";
    for (const reg of leadsTo) if (isIndirect && reg >= 0 && reg !== RSP) regs[reg] = machine.targetAt;
    let place = 0n;
    for (const used of info.usedMemory()) {
      const { base, index, scale, displacement, segment } = used as {
        base: Register;
        index: Register;
        scale: number;
        displacement: bigint;
        segment: Register;
        free(): void;
      };
      (used as { free(): void }).free();
      const want = machine.dataAt + (place++ % 2n) * 4096n + BigInt(random.below(8) * 64);
      const baseReg = regNumber(base);
      const indexReg = regNumber(index);
      const disp = BigInt.asIntN(64, BigInt(displacement));
      const size = BigInt(scale);
      if (indexReg >= 0 && indexReg !== baseReg) regs[indexReg] = BigInt(random.below(64));
      const shift = indexReg >= 0 && indexReg !== baseReg ? regs[indexReg]! * size : 0n;
      if (segment === Register.FS || segment === Register.GS) {
        if (insn.isIpRelMemoryOperand) {
          state.fsBase = state.gsBase = BigInt(random.below(8) * 64);
          continue;
        }
        if (baseReg >= 0 && baseReg !== RSP) regs[baseReg] = BigInt(random.below(64) * 64);
        const rest =
          (baseReg >= 0 ? regs[baseReg]! : 0n) +
          shift +
          (indexReg >= 0 && indexReg === baseReg ? regs[baseReg]! * size : 0n);
        const segmentBase = want - disp - rest;
        if (segmentBase >= 0n && segment === Register.FS) state.fsBase = segmentBase;
        if (segmentBase >= 0n && segment === Register.GS) state.gsBase = segmentBase;
        continue;
      }
      if (baseReg === RSP) {
        if (insn.memoryBase === Register.RSP && (disp > 0x1000n || disp < -0x1000n))
          regs[RSP] = machine.stackAt - (disp & ~63n);
        continue;
      }
      if (baseReg >= 0)
        regs[baseReg] = indexReg === baseReg ? (want - disp) / (1n + size) : want - disp - shift;
      else if (indexReg >= 0) regs[indexReg] = (want - disp) / size;
    }
    // The stack holds addresses that may be returned to, and so does the data where it is jumped through.
    const memory = new BigUint64Array(machine.memoryWords).fill(machine.targetAt);
    if (!isIndirect) {
      const data = machine.memoryWords / 4;
      const isControl = round % 3 === 2;
      for (const at of [data, data + 512])
        for (let i = -40; i < 200; i++) memory[at + i] = isControl ? 0x1f80_0000_1f80n : word();
    }
    const flags = 0x202n | (word() & 0x8d5n);
    return { regs: regs.map((value) => BigInt.asUintN(64, value)), flags, ...state, memory };
  } finally {
    info.free();
    insn.free();
    decoder.free();
  }
}

/** Random vector registers; indices in them are small. */
function vectorWords(code: Uint8Array, seed: number): () => bigint {
  const random = new SeededRandom(seed);
  const decoder = new Decoder(64, code, DecoderOptions.None);
  const insn = decoder.decode();
  const [isVsib, is64] = [insn.isVsib, insn.isVsib64];
  insn.free();
  decoder.free();
  if (isVsib)
    return () =>
      is64 ? BigInt(random.below(16)) : (BigInt(random.below(16)) << 32n) | BigInt(random.below(16));
  return () => (BigInt(random.below(2 ** 32)) << 32n) | BigInt(random.below(2 ** 32));
}

/** Verdicts of many forms, counted. */
export class FormTally {
  readonly counts = { ran: 0, faulted: 0, decoded: 0, refused: 0 };
  readonly differences: string[] = [];
  readonly refusals = new Map<string, number>();

  add({ how, difference, reason }: FormVerdict): void {
    this.counts[how]++;
    if (difference !== undefined) this.differences.push(difference);
    if (reason !== undefined) this.refusals.set(reason, (this.refusals.get(reason) ?? 0) + 1);
  }
}

/** What the copy's instructions say, beside the original. A call becomes a push and a jump, a loop three jumps. */
function compareDecoded(region: Region, copy: Uint8Array, at: bigint): string | undefined {
  const [insn] = region.insns;
  if (insn === undefined) return "nothing was decoded";
  const block = decodeBlock(at, copy);
  const texts = block.insns().map((each) => plain(textOf(each)));
  const original = plain(textOf(insn));
  const back = `jmp 0x${(insn.addr + BigInt(insn.lenBytes)).toString(16)}`;
  const expected = expectedTexts(insn.flow, original, back, insn.target);
  if (expected === undefined) return undefined;
  const got = texts.slice(0, expected.length);
  return expected.every((text, i) => text === undefined || text === got[i])
    ? undefined
    : `${got.join("; ")} for ${original}`;
}

function expectedTexts(
  flow: string,
  original: string,
  back: string,
  target: bigint | undefined,
): (string | undefined)[] | undefined {
  const name = original.split(" ")[0]!;
  if (flow === "call") return [undefined, `jmp 0x${target!.toString(16)}`];
  if (flow === "call-indirect") return undefined;
  if (/^(a32 |addr32 )?(loop|jr?e?cxz)/.test(original))
    return [undefined, undefined, `jmp 0x${target!.toString(16)}`, back];
  if (flow === "return" || flow === "jump" || flow === "jump-indirect" || flow === "stop") return [original];
  return name === "" ? undefined : [original, back];
}

/** Without what may be another encoding of the same. */
function plain(text: string): string {
  return text
    .replace(/\b(short|near|bnd|hint-not-taken|hint-taken) /g, "")
    .replace(/\s+/g, " ")
    .trim();
}

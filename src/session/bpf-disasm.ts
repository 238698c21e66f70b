/**
 * `trapline bpf disasm`: the bytecode of an object's programs between the lines of its source, and with `--jit` the
 * machine code of each instruction beside it. Addresses of maps and of the code are made up: nothing is placed.
 */
import { type Bundle, type Insn, type MapSpec, printInsn, verifyProgram } from "../bpf/index.ts";
import { JitUnit, type LinkEnv } from "../bpf/jit/index.ts";
import { layoutMap } from "../bpf/maps/index.ts";
import type { BpfObject, ObjectProgram, SourceLine } from "../bpf/object/index.ts";
import { OP_LDIMM64 } from "../bpf/opcodes.ts";
import { hexBytes } from "../patch/index.ts";
import { Assembler } from "../x86/assembler.ts";
import { decodeBlock, textOf } from "../x86/decode.ts";
import { isSameLine, type LinkedCode, loadObject, printLine, selectPrograms } from "./object-file.ts";
import type { BpfDisasmOptions, SessionIo } from "./options.ts";
import { processorSource } from "./processor.ts";

const OPERATION = "bpf disasm";
const CODE_AT = 0x10_0000n;
const PID_CACHE_AT = 0x5a00_0000_0000n;
const MAPS_AT = 0x5a00_0001_0000n;
/** Width of the column of bytecode. */
const BYTECODE_COLUMNS = 44;
/** Bytes of an instruction that are shown on its line. */
const BYTES_COLUMNS = 31;

/** Machine code by the slot that it comes from; -1 is what comes before them, the number of slots what is out of line. */
type MachineCode = ReadonlyMap<number, readonly string[]>;
const BEFORE = -1;

/** Prints all programs. Returns 1 if one cannot be linked, or cannot be compiled because it is rejected. */
export async function disassembleObject(options: BpfDisasmOptions, io: SessionIo): Promise<number> {
  const object = loadObject(options.path, OPERATION);
  let code = 0;
  for (const program of selectPrograms(object, options.section, { operation: OPERATION, path: options.path }))
    if (!disassemble(program, object, options.jit, io)) code = 1;
  return code;
}

function disassemble(program: ObjectProgram, object: BpfObject, jit: boolean, io: SessionIo): boolean {
  const { name, section, code } = program;
  if (code.kind === "refused") {
    io.err.write(`trapline: ${OPERATION}: program ${name} (${section}): ${code.reason}\n`);
    return false;
  }
  const specs = object.maps.map(({ spec }) => spec);
  const verdict = jit ? verifyProgram(code, specs) : undefined;
  io.out.write(`program ${name} (${section}): ${code.insns.length} instructions\n`);
  const machine =
    verdict?.kind === "accepted" ? compile({ name, insns: code.insns }, verdict.proof, specs) : undefined;
  for (const line of listing(code, specs, machine)) io.out.write(`${line}\n`);
  io.out.write("\n");
  if (verdict?.kind !== "rejected") return true;
  io.err.write(
    `trapline: ${OPERATION}: program ${name} (${section}): not compiled: ` +
      `the verifier rejects instruction ${verdict.at}: ${verdict.message}\n`,
  );
  return false;
}

function* listing(
  code: LinkedCode,
  maps: readonly MapSpec[],
  machine: MachineCode | undefined,
): Generator<string> {
  const { insns, lines, functions } = code;
  yield* beside("", machine?.get(BEFORE) ?? []);
  let shown: SourceLine | undefined;
  for (let at = 0; at < insns.length; at++) {
    const fn = functions.get(at);
    if (fn !== undefined) yield `${fn}:`;
    const source = lines.get(at);
    if (source !== undefined && !isSameLine(source, shown)) yield printLine(source).trimEnd();
    shown = source ?? shown;
    const text = nameMaps(printInsn(insns, at), insns[at]!, maps);
    yield* beside(`${String(at).padStart(5)}: ${text}`, machine?.get(at) ?? []);
    if (insns[at]!.opcode === OP_LDIMM64) at++;
  }
  const tail = machine?.get(insns.length) ?? [];
  if (tail.length > 0) yield "out of line:";
  yield* beside("", tail);
}

/** `map[2]` says little: its name stands behind it. */
function nameMaps(text: string, insn: Insn, maps: readonly MapSpec[]): string {
  const map = insn.opcode === OP_LDIMM64 && /map\[/.test(text) ? maps[insn.imm] : undefined;
  return map === undefined ? text : `${text} (${map.name})`;
}

function* beside(left: string, right: readonly string[]): Generator<string> {
  if (right.length === 0 && left !== "") yield left;
  for (const [i, line] of right.entries()) yield `${(i === 0 ? left : "").padEnd(BYTECODE_COLUMNS)} ${line}`;
}

function compile(
  program: Bundle["programs"][number],
  proof: Parameters<JitUnit["emit"]>[1],
  maps: readonly MapSpec[],
): MachineCode {
  const addresses: bigint[] = [];
  let next = MAPS_AT;
  for (const spec of maps) {
    addresses.push(next);
    next += BigInt(layoutMap(spec).totalBytes);
  }
  const env: LinkEnv = {
    mapAddr: (index) => addresses[index]!,
    cpu: processorSource(),
    clockGettime: undefined,
    tidOffset: undefined,
    pidCache: PID_CACHE_AT,
  };
  const asm = new Assembler(CODE_AT);
  const unit = new JitUnit(asm, { maps, programs: [] }, env);
  const { slots, end } = unit.emit(program, proof, { marksSlots: true });
  unit.finish();
  const bytes = asm.finish().subarray(0, asm.offsetOf(end));

  const starts = new Map([...slots].map(([slot, label]) => [asm.offsetOf(label), slot] as const));
  const listed = new Map<number, string[]>();
  let slot = BEFORE;
  for (const insn of decodeBlock(CODE_AT, bytes).insns()) {
    const offset = Number(insn.addr - CODE_AT);
    slot = starts.get(offset) ?? slot;
    const line = `${offset.toString(16).padStart(4)}: ${hexBytes(insn.bytes).padEnd(BYTES_COLUMNS)} ${textOf(insn)}`;
    listed.set(slot, [...(listed.get(slot) ?? []), line]);
  }
  return listed;
}

/**
 * `trapline bpf disasm`: the bytecode of an object's programs between the lines of its source, and with `--jit` the
 * machine code of each instruction beside it. Addresses of maps and of the code are made up: nothing is placed.
 */
import {
  type Bundle,
  type Insn,
  type MapSpec,
  type Proof,
  printInsn,
  type Verdict,
  verifyProgram,
} from "../../bpf/index.ts";
import { JitUnit, type LinkEnv } from "../../bpf/jit/index.ts";
import { layoutMap } from "../../bpf/maps/index.ts";
import type { BpfObject, SourceLine } from "../../bpf/object/index.ts";
import { CALL_LOCAL, OP_CALL, OP_LDIMM64, PSEUDO_FUNCTION } from "../../bpf/opcodes.ts";
import { hexBytes } from "../../patch/index.ts";
import { Assembler } from "../../x86/assembler.ts";
import { decodeBlock, textOf } from "../../x86/decode.ts";
import { processorSource } from "../attach/processor.ts";
import type { BpfDisasmOptions, SessionIo } from "../options.ts";
import { bundleMaps, checkMapSizes, fitRings } from "./object-bundle.ts";
import { isSameLine, type LinkedCode, loadObject, printLine, selectPrograms } from "./object-file.ts";

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
  const { path, section, jit } = options;
  const object = loadObject(path, OPERATION);
  const selected = selectPrograms(object, section, { operation: OPERATION, path });
  const unit = jit ? proveObject(object) : undefined;
  if (unit !== undefined) checkMapSizes({ operation: OPERATION, path }, unit.bundle.maps);
  const maps = object.maps.map(({ spec }) => spec);
  let result = 0;
  for (const { name, section: place, code } of selected) {
    const refuse = (reason: string) => {
      io.err.write(`trapline: ${OPERATION}: program ${name} (${place}): ${reason}\n`);
      result = 1;
    };
    if (code.kind === "refused") {
      refuse(code.reason);
      continue;
    }
    const verdict = unit?.verdicts.get(name);
    const machine = unit !== undefined && verdict?.kind === "accepted" ? compile(unit, name) : undefined;
    io.out.write(`program ${name} (${place}): ${code.insns.length} instructions\n`);
    for (const line of listing(code, maps, machine)) io.out.write(`${line}\n`);
    io.out.write("\n");
    if (verdict?.kind === "rejected")
      refuse(`not compiled: the verifier rejects instruction ${verdict.at}: ${verdict.message}`);
  }
  return result;
}

/** All programs of an object that could run together. */
interface ProvedObject {
  readonly verdicts: ReadonlyMap<string, Verdict>;
  /** Of those that are accepted: a tail call may lead to any of them. */
  readonly bundle: Bundle;
  readonly proofs: readonly Proof[];
}

function proveObject(object: BpfObject): ProvedObject {
  const linked = object.programs.flatMap(({ name, code }) =>
    code.kind === "linked" ? [{ name, insns: code.insns }] : [],
  );
  const { specs, printk } = bundleMaps(object, linked);
  const verdicts = new Map(linked.map((program) => [program.name, verifyProgram(program, specs)] as const));
  const accepted = linked.flatMap((program) => {
    const verdict = verdicts.get(program.name)!;
    return verdict.kind === "accepted" ? [{ program, proof: verdict.proof }] : [];
  });
  const proofs = accepted.map(({ proof }) => proof);
  const maps = fitRings(object, specs, proofs);
  const programs = accepted.map(({ program }) => program);
  return {
    verdicts,
    bundle: { maps, programs, ...(printk === undefined ? {} : { printk }) },
    proofs,
  };
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
    const text = nameTarget(printInsn(insns, at), insns[at]!, at, code, maps);
    yield* beside(`${String(at).padStart(5)}: ${text}`, machine?.get(at) ?? []);
    if (insns[at]!.opcode === OP_LDIMM64) at++;
  }
  const tail = machine?.get(insns.length) ?? [];
  if (tail.length > 0) yield "out of line:";
  yield* beside("", tail);
}

/** `map[2]` and `call pc+9` say little: the name of what they mean stands behind them. */
function nameTarget(
  text: string,
  insn: Insn,
  at: number,
  { functions }: LinkedCode,
  maps: readonly MapSpec[],
) {
  const isLoad = insn.opcode === OP_LDIMM64;
  const isFunction = isLoad
    ? insn.src === PSEUDO_FUNCTION
    : insn.opcode === OP_CALL && insn.src === CALL_LOCAL;
  const isMap = isLoad && /map\[/.test(text);
  const name = isFunction ? functions.get(at + 1 + insn.imm) : isMap ? maps[insn.imm]?.name : undefined;
  return name === undefined ? text : `${text} (${name})`;
}

function* beside(left: string, right: readonly string[]): Generator<string> {
  if (right.length === 0 && left !== "") yield left;
  for (const [i, line] of right.entries()) yield `${(i === 0 ? left : "").padEnd(BYTECODE_COLUMNS)} ${line}`;
}

function compile({ bundle, proofs }: ProvedObject, name: string): MachineCode {
  const index = bundle.programs.findIndex((program) => program.name === name);
  const addresses: bigint[] = [];
  let next = MAPS_AT;
  for (const spec of bundle.maps) {
    addresses.push(next);
    next += BigInt(layoutMap(spec).totalBytes);
  }
  const env: LinkEnv = {
    mapAddr: (map) => addresses[map]!,
    cpu: processorSource(),
    clockGettime: undefined,
    tidOffset: undefined,
    pidCache: PID_CACHE_AT,
  };
  const asm = new Assembler(CODE_AT);
  const unit = new JitUnit(asm, bundle, env, proofs);
  const { slots, start, end } = unit.emit(bundle.programs[index]!, proofs[index]!, { marksSlots: true });
  unit.finish();
  const code = asm.finish();
  const first = asm.offsetOf(start);
  const bytes = code.subarray(first, asm.offsetOf(end));

  const starts = new Map([...slots].map(([slot, label]) => [asm.offsetOf(label), slot] as const));
  const listed = new Map<number, string[]>();
  let slot = BEFORE;
  for (const insn of decodeBlock(CODE_AT + BigInt(first), bytes).insns()) {
    const offset = Number(insn.addr - CODE_AT);
    slot = starts.get(offset) ?? slot;
    const line = `${offset.toString(16).padStart(4)}: ${hexBytes(insn.bytes).padEnd(BYTES_COLUMNS)} ${textOf(insn)}`;
    listed.set(slot, [...(listed.get(slot) ?? []), line]);
  }
  return listed;
}

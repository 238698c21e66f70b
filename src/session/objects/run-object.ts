/**
 * `trapline run`: the programs of an object file in running processes. They are linked and proved before anything is
 * touched; globals and slots of maps get their first values before anything is armed; records and prints are shown as they
 * come, maps and globals at the end.
 */
import type { BpfObject } from "../../bpf/object/index.ts";
import { Tracer } from "../../target/process/tracer.ts";
import type { RunObjectOptions, SessionIo } from "../options.ts";
import { printPlan } from "../reports/dry-run.ts";
import { type RunFront, runPrograms } from "../run.ts";
import type { Targets } from "../targets.ts";
import { loadObject } from "./object-file.ts";
import { createObjectOutput, type ObjectOutput } from "./object-output.ts";
import { type ObjectRunPrograms, prepareObject } from "./object-programs.ts";
import { recordValue, reportMaps } from "./object-report.ts";
import { PrintkReader } from "./printk-lines.ts";

const OPERATION = "run";

/** Runs until the targets or the user end it. Returns the exit code. */
export async function runObject(options: RunObjectOptions, io: SessionIo): Promise<number> {
  const object = loadObject(options.path, OPERATION);
  const programs = prepareObject(object, options, io);
  if (programs === undefined) return 1;
  if (!options.quiet) for (const note of object.notes) io.err.write(`note: ${note}\n`);
  if (options.dryRun) return printPlan(options, io, programs);
  const tracer = new Tracer();
  try {
    return await runPrograms(
      tracer,
      programs,
      options,
      io,
      (targets) => new ObjectFront({ options, io, object, programs, targets }),
    );
  } finally {
    await tracer.close();
  }
}

interface FrontInput {
  readonly options: RunObjectOptions;
  readonly io: SessionIo;
  readonly object: BpfObject;
  readonly programs: ObjectRunPrograms;
  readonly targets: Targets;
}

class ObjectFront implements RunFront {
  /** Programs of an object have no way to end the run. */
  readonly wantsExit = false;
  readonly #input: FrontInput;
  readonly #output: ObjectOutput;
  readonly #printk = new PrintkReader();

  constructor(input: FrontInput) {
    this.#input = input;
    this.#output = createObjectOutput(input.options.format, (text) => input.io.out.write(text));
  }

  begin(): boolean {
    fillMaps(this.#input);
    return true;
  }

  armed(): void {
    const { options, io, targets } = this.#input;
    if (options.quiet) return;
    const probes = targets.plannedProbes + targets.unresolved.length;
    this.#output.attached(probes);
    io.err.write(`attached ${probes} probes; Ctrl-C takes them out and shows the maps\n`);
  }

  poll(max: number): number {
    return this.#readRings((ring, print) => ring.poll(max, print));
  }

  finish(): void {
    const { object, targets } = this.#input;
    this.#readRings((ring, print) => ring.drain(print));
    targets.refreshImages();
    const describe = (at: bigint) => targets.describe(at);
    for (const report of reportMaps({ object, maps: targets.maps, describe })) this.#output.map(report);
    this.#reportLost();
  }

  /** Prints what programs have sent; returns how many records there were. */
  #readRings(read: (ring: Ring, print: (record: Uint8Array) => void) => number): number {
    const { object, programs, targets } = this.#input;
    let records = 0;
    for (const [index, ring] of targets.maps.rings)
      records += read(ring, (record) => {
        if (index === programs.bundle.printk) this.#output.printk(this.#printk.read(record));
        else this.#output.record(object.maps[index]!.spec.name, recordValue(object, index, record));
      });
    return records;
  }

  #reportLost(): void {
    const { io, programs, targets } = this.#input;
    for (const [index, { dropped }] of targets.maps.rings) {
      const { name, kind } = programs.bundle.maps[index]!;
      if (dropped === 0n) continue;
      const what = index === programs.bundle.printk ? "printed lines" : "records";
      const where = index === programs.bundle.printk ? "their buffer" : `${kind} ${name}`;
      io.err.write(`lost ${dropped} ${what}: ${where} was full\n`);
    }
  }
}

type Ring = Targets["maps"]["rings"] extends ReadonlyMap<number, infer R> ? R : never;

/** What the object says that its maps begin with; nothing runs yet. */
function fillMaps({ object, targets, programs }: FrontInput): void {
  const { maps } = targets.maps;
  const { usdt } = programs;
  const specs = usdt === undefined ? undefined : maps[usdt.map];
  if (specs?.kind === "array") usdt!.specs.writeTo(specs);
  for (const [index, { initial, slots, spec }] of object.maps.entries()) {
    const opened = maps[index];
    if (initial !== undefined && opened?.kind === "array") opened.update(new Uint8Array(4), initial, 0n);
    for (const { index: slot, target } of slots) {
      const key = keyOf(slot);
      const result =
        target.kind === "program"
          ? opened?.kind === "prog_array" &&
            opened.set(
              slot,
              programs.programs.findIndex(({ name }) => name === target.name),
            )
          : (opened?.kind === "array_of_maps" || opened?.kind === "hash_of_maps") &&
            opened.set(key, maps[target.map]!.byteOffset);
      if (result !== 0) throw new Error(`map ${spec.name}: slot ${slot} cannot be set: ${result}`);
    }
  }
}

function keyOf(index: number): Uint8Array {
  const key = new Uint8Array(4);
  new DataView(key.buffer).setUint32(0, index, true);
  return key;
}

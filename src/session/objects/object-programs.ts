/**
 * From an object file to what is run: which of its programs are wanted, where they go, and their proofs.
 */
import { basename } from "node:path";
import { type MapSpec, type Proof, verifyProgram } from "../../bpf/index.ts";
import {
  type BpfObject,
  type ObjectProgram,
  parseUsdtPlace,
  parseUserPlace,
  printUsdtPlace,
  printUserPlace,
  type UsdtPlace,
  type UserPlace,
} from "../../bpf/object/index.ts";
import type { AttachRequest } from "../attach/probe-resolution.ts";
import { UsdtSpecs, usdtFinder } from "../attach/usdt.ts";
import { USDT_SPEC_BYTES, USDT_SPECS_MAP } from "../attach/usdt-spec.ts";
import type { RunObjectOptions, SessionIo } from "../options.ts";
import { withGates } from "../probe-gates.ts";
import type { RunPrograms } from "../run.ts";
import { SessionError } from "../session-error.ts";
import { bundleMaps, checkMapSizes, fitRings } from "./object-bundle.ts";
import { annotateLog, type LinkedCode, lineAt, refusalOf } from "./object-file.ts";

const OPERATION = "run";

/** A program that is to be there, linked. */
interface WantedProgram {
  readonly program: ObjectProgram;
  readonly code: LinkedCode;
}

export interface ObjectRunPrograms extends RunPrograms {
  /** By index of the bundle's programs. */
  readonly programs: readonly ObjectProgram[];
  /** Descriptions of the arguments of static probes, and the index of the map that they go to. */
  readonly usdt: { readonly specs: UsdtSpecs; readonly map: number } | undefined;
}

/** Undefined: a program is rejected, which has been explained. Throws SessionError for what cannot be run at all. */
export function prepareObject(
  object: BpfObject,
  options: Pick<RunObjectOptions, "path" | "attach" | "probeGates">,
  io: SessionIo,
): ObjectRunPrograms | undefined {
  const wanted = wantedPrograms(object, options);
  const usdt = usdtSpecs(object);
  const requests = withGates(attachRequests(object, wanted, options, usdt?.specs), options.probeGates);
  const maps = bundleMaps(
    object,
    wanted.map(({ code }) => code),
  );
  const proofs = proveAll(wanted, maps.specs, io);
  if (proofs === undefined) return undefined;
  const fitted = fitRings(object, maps.specs, proofs);
  checkMapSizes({ operation: OPERATION, path: options.path }, fitted);
  return {
    bundle: {
      maps: fitted,
      programs: wanted.map(({ program, code }) => ({ name: program.name, insns: code.insns })),
      ...(maps.printk === undefined ? {} : { printk: maps.printk }),
    },
    proofs,
    requests,
    // Stacks are shown with the names of all images that they go through.
    followsLoads: object.maps.some(({ spec }) => spec.kind === "stack_trace"),
    usdt,
    programs: wanted.map(({ program }) => program),
  };
}

function usdtSpecs({ maps }: BpfObject): ObjectRunPrograms["usdt"] {
  const map = maps.findIndex(({ spec }) => spec.name === USDT_SPECS_MAP);
  const spec = maps[map]?.spec;
  if (spec === undefined) return undefined;
  if (spec.kind !== "array" || spec.valueBytes !== USDT_SPEC_BYTES)
    refuse(`map ${spec.name}`, "it is not like that of libbpf's usdt.bpf.h");
  return { specs: new UsdtSpecs(spec.maxEntries), map };
}

/** Those that are loaded by themselves, those that the command line names, and those that a program array begins with. */
function wantedPrograms(
  object: BpfObject,
  { path, attach }: Pick<RunObjectOptions, "path" | "attach">,
): WantedProgram[] {
  if (object.programs.length === 0) refuse(path, "it has no programs");
  const named = new Set(attach.map((text) => text.slice(0, Math.max(0, text.indexOf("=")))));
  const targets = tailCallTargets(object);
  const wanted = object.programs.filter(
    ({ name, isAutoloaded }) => isAutoloaded || named.has(name) || targets.has(name),
  );
  if (wanted.length === 0)
    refuse(
      path,
      "none of its programs is loaded unless it is asked for: all their sections begin with ?",
      `ask for one: --attach ${object.programs[0]!.name}=IMAGE:SYMBOL`,
    );
  return wanted.map((program) => {
    const refusal = refusalOf(program);
    if (refusal !== undefined) refuse(wordsFor(program), refusal);
    if (program.code.kind === "refused") throw new Error(program.code.reason);
    return { program, code: program.code };
  });
}

function tailCallTargets({ maps }: BpfObject): Set<string> {
  return new Set(
    maps.flatMap(({ slots }) =>
      slots.flatMap(({ target }) => (target.kind === "program" ? [target.name] : [])),
    ),
  );
}

/** Where each program goes: as the command line says, else as its section does. Throws SessionError. */
function attachRequests(
  object: BpfObject,
  wanted: readonly WantedProgram[],
  { attach }: Pick<RunObjectOptions, "attach">,
  specs: UsdtSpecs | undefined,
): AttachRequest[] {
  const given = attach.map((text) => parseAttach(text, object));
  const targets = tailCallTargets(object);
  return wanted.flatMap(({ program }, programIndex) => {
    const what = wordsFor(program);
    const { attach: target, name } = program;
    const own = given.filter((each) => each.name === name).map(({ text }) => text);
    if (target.kind === "usdt") {
      const places =
        own.length > 0 ? own.map(usdtPlace) : [target.place].filter((place) => place !== undefined);
      if (places.length === 0 && !targets.has(name))
        refuse(
          what,
          target.problem ?? "its section does not say where it belongs",
          `say it: --attach ${name}=IMAGE:PROVIDER:NAME`,
        );
      return places.map((place) => usdtRequest(place, programIndex, specs));
    }
    if (target.kind !== "uprobe" && target.kind !== "uretprobe")
      refuse(what, 'its section is none of those that a process has: SEC("uprobe"), SEC("uretprobe")');
    const places =
      own.length > 0 ? own.map(userPlace) : [target.place].filter((place) => place !== undefined);
    if (places.length === 0 && !targets.has(name))
      refuse(
        what,
        target.problem ?? "its section does not say where it belongs",
        `say it: --attach ${name}=IMAGE:SYMBOL`,
      );
    // As with libbpf, a cookie is 0 unless somebody sets it.
    return places.map((place) => ({
      attachPoint: attachPointOf(target.kind, place),
      programIndex,
      cookie: 0n,
    }));
  });
}

function attachPointOf(kind: "uprobe" | "uretprobe", place: UserPlace): AttachRequest["attachPoint"] {
  const { image, location } = place;
  return { kind, name: `${kind}:${printUserPlace(place)}`, image, location, span: { start: 0, end: 0 } };
}

/** A probe at the places of a static one. */
function usdtRequest(place: UsdtPlace, programIndex: number, specs: UsdtSpecs | undefined): AttachRequest {
  return {
    attachPoint: {
      kind: "uprobe",
      name: `usdt:${printUsdtPlace(place)}`,
      image: place.image,
      location: { kind: "address", address: 0n },
      span: { start: 0, end: 0 },
    },
    programIndex,
    usdt: usdtFinder(place, specs),
  };
}

/** `PROGRAM=PLACE`; how the place is read depends on the program. */
function parseAttach(text: string, object: BpfObject): { readonly name: string; readonly text: string } {
  const equals = text.indexOf("=");
  const name = text.slice(0, Math.max(0, equals));
  if (equals < 0 || name === "") refuseAttach(text, "PROGRAM=IMAGE:SYMBOL", "on_malloc=libc:malloc");
  if (!object.programs.some((program) => program.name === name))
    refuse(
      `--attach ${text}`,
      `there is no program ${name}`,
      `the programs are: ${object.programs.map((program) => program.name).join(", ")}`,
    );
  return { name, text };
}

function userPlace(text: string): UserPlace {
  const place = parseUserPlace(text.slice(text.indexOf("=") + 1));
  return place ?? refuseAttach(text, "PROGRAM=IMAGE:SYMBOL", "on_malloc=libc:malloc");
}

function usdtPlace(text: string): UsdtPlace {
  const place = parseUsdtPlace(text.slice(text.indexOf("=") + 1));
  return (
    place ?? refuseAttach(text, "PROGRAM=IMAGE:PROVIDER:NAME", "on_entry=python3:python:function__entry")
  );
}

function refuseAttach(text: string, form: string, example: string): never {
  return refuse(`--attach ${text}`, `it is not ${form}`, `for example: --attach ${example}`);
}

function wordsFor({ name, section }: ObjectProgram): string {
  return `program ${name} (${section})`;
}

function refuse(object: string, reason: string, hint?: string): never {
  throw new SessionError("cannot-run", { operation: OPERATION, object, reason }, hint);
}

/** Undefined: one is rejected, which has been explained. */
function proveAll(
  wanted: readonly WantedProgram[],
  maps: readonly MapSpec[],
  io: SessionIo,
): Proof[] | undefined {
  const proofs = wanted.map((each) => prove(each, maps, io));
  return proofs.every((proof) => proof !== undefined) ? proofs : undefined;
}

function prove({ program, code }: WantedProgram, maps: readonly MapSpec[], io: SessionIo): Proof | undefined {
  const verdict = verifyProgram(code, maps);
  if (verdict.kind === "accepted") return verdict.proof;
  const line = lineAt(code, verdict.at);
  const place = line === undefined ? "" : `${basename(line.file)}:${line.line}:${line.column}: `;
  io.err.write(annotateLog(verdict.log, code));
  io.err.write(
    `trapline: ${OPERATION}: ${wordsFor(program)}: ${place}` +
      `the verifier rejects instruction ${verdict.at}: ${verdict.message}\n`,
  );
  return undefined;
}

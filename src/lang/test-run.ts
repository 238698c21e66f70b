/**
 * For tests: runs compiled scripts. Every program must be accepted by the verifier and runs in the interpreter, on
 * real maps, with a host whose answers the test chooses.
 */
import { type HelperHost, interpret, printProgram, type SourcePlace, verifyProgram } from "../bpf/index.ts";
import { layoutMap, type OpenedMap, openMap, RingConsumer, sharedMemoryOf } from "../bpf/maps/index.ts";
import { type CompileOptions, compileScript } from "./compile.ts";
import {
  type DecodedMapValue,
  type DecodedValue,
  decodeEventId,
  decodeFields,
  decodeJoin,
  decodeKey,
  decodeMapValue,
} from "./decode.ts";
import { printDiagnostics } from "./diagnostics.ts";
import { byteString } from "./format.ts";
import type { Script, ScriptMap } from "./script.ts";

/** Size of `struct pt_regs`. */
const CTX_BYTES = 168;

export interface HitOptions {
  /** Values of context slots by byte offset. */
  readonly ctx?: ReadonlyMap<number, bigint>;
  readonly cpu?: number;
}

/** Compiles, asserting that there are no errors. */
export function compileOk(text: string, options: CompileOptions = {}): Script {
  const result = compileScript(text, options);
  if (result.kind === "errors") throw new Error(`compile ${text}:\n${printDiagnostics(result.diagnostics)}`);
  return result.script;
}

export class TestRun {
  readonly script: Script;
  /** User memory by address. */
  readonly user = new Map<bigint, Uint8Array>();
  readonly host: HelperHost;
  nowNs = 1_000_000_000n;
  cpu = 0;
  readonly #maps: OpenedMap[];
  readonly #ring: RingConsumer | undefined;

  constructor(text: string, options: CompileOptions = {}) {
    this.script = compileOk(text, options);
    const { maps, programs } = this.script.bundle;
    for (const program of programs) {
      const verdict = verifyProgram(program, maps);
      if (verdict.kind === "accepted") continue;
      const place = findPlace(program.places, verdict.at);
      throw new Error(`verify ${text}: at ${place}: ${verdict.log}\n${printProgram(program.insns)}`);
    }
    const layouts = maps.map((map) => layoutMap(map));
    const total = layouts.reduce((sum, layout) => sum + layout.totalBytes, 0);
    const memory = sharedMemoryOf(new SharedArrayBuffer(total));
    let at = 0;
    const offsets: number[] = [];
    this.#maps = maps.map((map, i) => {
      const opened = openMap(map, memory, at);
      offsets.push(at);
      at += layouts[i]!.totalBytes;
      return opened;
    });
    const { ringMap } = this.script;
    const ringLayout = ringMap === undefined ? undefined : layouts[ringMap];
    if (ringMap !== undefined && ringLayout?.kind === "ringbuf") {
      this.#ring = new RingConsumer(ringLayout, memory, offsets[ringMap]!, { nowMs: () => 0 });
    }
    this.host = {
      ktimeGetNs: () => this.nowNs,
      clockNs: () => this.nowNs,
      jiffies: () => this.nowNs / 4_000_000n,
      numaNode: () => 0,
      prandomU32: () => 0xdead_beef,
      cpu: () => this.cpu,
      pidTgid: () => (1234n << 32n) | 5678n,
      uidGid: () => (20n << 32n) | 10n,
      comm: () => new TextEncoder().encode("tester"),
      readUser: (addr, into) => this.#readUser(addr, into),
    };
  }

  /** Runs the program of the script's n-th block once. */
  hit(block = 0, options: HitOptions = {}): void {
    const probe = this.script.probes[block]!;
    const program = this.script.bundle.programs[probe.programIndex]!;
    const ctx = new Uint8Array(CTX_BYTES);
    const view = new DataView(ctx.buffer);
    for (const [offset, value] of options.ctx ?? [])
      view.setBigUint64(offset, BigInt.asUintN(64, value), true);
    this.cpu = options.cpu ?? 0;
    const result = interpret({
      insns: program.insns,
      maps: this.#maps,
      host: this.host,
      entry: { kind: "context", bytes: ctx },
      checkInitialised: true,
    });
    if (result.kind === "faulted") {
      throw new Error(
        `run ${probe.spec}: at ${result.at}: ${result.message}\n${printProgram(program.insns)}`,
      );
    }
  }

  /** What the program sent since the last call, as text: one line for each event. */
  events(): string[] {
    const lines: string[] = [];
    this.#ring?.drain((record) => lines.push(this.#printRecord(record)));
    return lines;
  }

  /** A map's content as text, by key. */
  map(name: string): Record<string, string> {
    const map = this.script.maps.find((candidate) => candidate.name === name)!;
    const opened = this.#maps[map.map]!;
    const content: Record<string, string> = {};
    for (const [key, value] of elementsOf(opened)) {
      const decoded = decodeMapValue([value], map);
      if (decoded) content[printKey(key, map)] = printMapValue(decoded);
    }
    return content;
  }

  get exitFlag(): boolean {
    const index = this.script.exitMap;
    return index !== undefined && elementsOf(this.#maps[index]!)[0]![1][0] !== 0;
  }

  #printRecord(record: Uint8Array): string {
    const event = this.script.events[Number(decodeEventId(record))]!;
    switch (event.kind) {
      case "printf":
        return `printf ${decodeFields(record, event.fields).map(printValue).join(" ")}`.trimEnd();
      case "print-value":
        return printValue(decodeFields(record, [event.field])[0]!);
      case "print-element": {
        const [value, ...keys] = decodeFields(record, [event.value, ...event.keys]);
        return `${this.script.maps[event.map]!.name}[${keys.map(printValue).join(", ")}]: ${printValue(value!)}`;
      }
      case "join":
        return decodeJoin(record, event).map(byteString).join(event.delimiter);
      case "print-map":
        return `print ${this.script.maps[event.map]!.name} ${event.top} ${event.div}`;
      case "clear":
      case "zero":
        return `${event.kind} ${this.script.maps[event.map]!.name}`;
      case "time":
        return `time ${event.format}`;
      case "exit":
        return "exit";
    }
  }

  #readUser(addr: bigint, into: Uint8Array): boolean {
    for (const [base, bytes] of this.user) {
      const at = addr - base;
      if (at < 0n || at + BigInt(into.length) > BigInt(bytes.length)) continue;
      into.set(bytes.subarray(Number(at), Number(at) + into.length));
      return true;
    }
    return false;
  }
}

/** Keys and values of a map. */
function elementsOf(map: OpenedMap): [Uint8Array, Uint8Array][] {
  if (map.kind !== "array" && map.kind !== "hash") return [];
  return [...map.entries()].map(({ key, value }) => [key, value]);
}

export function printValue(value: DecodedValue): string {
  switch (value.kind) {
    case "integer":
      return `${value.value}`;
    case "pointer":
      return `0x${value.address.toString(16)}`;
    case "symbol":
      return `sym:${value.address.toString(16)}`;
    case "probe":
      return `${value.shows}:${value.id}`;
    case "timestamp":
      return `${value.format}@${value.ns}`;
    case "string":
    case "buffer":
      return byteString(value.bytes);
    case "tuple":
      return `(${value.elements.map(printValue).join(", ")})`;
  }
}

function printKey(key: Uint8Array, map: ScriptMap): string {
  return decodeKey(key, map).map(printValue).join(", ");
}

function printMapValue(value: DecodedMapValue): string {
  switch (value.kind) {
    case "plain":
      return printValue(value.value);
    case "count":
    case "sum":
    case "min":
    case "max":
      return `${value.value}`;
    case "avg":
    case "stats":
      return `${value.total}/${value.count}`;
    case "hist":
    case "lhist":
      return value.counts.flatMap((count, bucket) => (count === 0n ? [] : [`${bucket}:${count}`])).join(" ");
  }
}

function findPlace(places: ReadonlyMap<number, SourcePlace> | undefined, at: number): string {
  const place = places?.get(at);
  return place ? `${place.line}:${place.column}` : "?";
}

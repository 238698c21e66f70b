/**
 * What programs ask the tracer to do: their records are performed one after the other, and the maps are read when they are
 * to be shown.
 *
 * The memory is shared with the targets: a record that makes no sense is passed over.
 */
import {
  type DecodedMapValue,
  type DecodedValue,
  decodeEventId,
  decodeFields,
  decodeJoin,
  decodeKey,
  decodeMapValue,
  type Script,
  type ScriptEvent,
  type ScriptMap,
  zeroedMapValue,
} from "../lang/index.ts";
import {
  byteString,
  encodeText,
  formatPrintf,
  formatTime,
  type MapEntry,
  type MapValue,
  type MapView,
  type Output,
  type OutputValue,
} from "../output/index.ts";
import type { ProbeNames } from "./attach/probe-resolution.ts";
import type { SharedMaps } from "./attach/shared-maps.ts";

export interface ActionsInput {
  readonly output: Output;
  readonly script: Script;
  readonly maps: SharedMaps;
  readonly names: ProbeNames;
  /** What the accounts of these programs say, as copies of a count. */
  readonly countsOf: (programs: readonly number[]) => readonly Uint8Array[];
  /** Name of the function at an address; undefined if it has none. */
  readonly findSymbol: (at: bigint) => string | undefined;
}

const FIRST_ELEMENT = new Uint8Array(4);

export class Actions {
  readonly output: Output;
  readonly #input: ActionsInput;
  #wantsExit = false;
  /** After `exit()` nothing more is performed until the run has ended, as in bpftrace. */
  #isExiting = false;
  #lostReported = 0n;

  constructor(input: ActionsInput) {
    this.#input = input;
    this.output = input.output;
  }

  /** Whether a program has called `exit()`. */
  get wantsExit(): boolean {
    return this.#wantsExit || this.#exitFlag();
  }

  /** Performs up to `max` records and returns how many there were. */
  poll(max: number): number {
    const count = this.#input.maps.ring?.poll(max, (record) => this.#perform(record)) ?? 0;
    this.#reportLost();
    return count;
  }

  /** Performs everything that is left. To be called when no program runs any more. */
  drain(): void {
    this.#input.maps.ring?.drain((record) => this.#perform(record));
    this.#reportLost();
  }

  /** No program runs any more; what END sends is performed again. */
  endOfRun(): void {
    this.#isExiting = false;
  }

  /** Shows all maps that hold something, as at the end of a run. */
  printMaps(): void {
    this.output.endOfEvents();
    for (const map of this.#input.script.maps) this.output.map(this.view(map));
  }

  #perform(record: Uint8Array): void {
    if (this.#isExiting) return;
    const event = this.#input.script.events[Number(decodeEventId(record))];
    if (event !== undefined) this.#performEvent(event, record);
  }

  #performEvent(event: ScriptEvent, record: Uint8Array): void {
    const { output } = this;
    switch (event.kind) {
      case "printf":
        output.printf(formatPrintf(event.format, this.#fields(record, event.fields)));
        break;
      case "print-value":
        output.value(this.#fields(record, [event.field])[0]!);
        break;
      case "print-map":
        output.map(this.view(this.#map(event.map)), { top: event.top, div: event.div });
        break;
      case "print-element": {
        const keys = this.#fields(record, event.keys);
        const value = this.#fields(record, [event.value])[0]!;
        output.element(this.#map(event.map).name, { keys, value: { kind: "plain", value } });
        break;
      }
      case "clear":
        this.#clear(this.#map(event.map));
        break;
      case "zero":
        this.#zero(this.#map(event.map));
        break;
      case "time":
        output.time(formatTime(event.format, new Date()));
        break;
      case "join":
        output.join(decodeJoin(record, event).map(byteString).join(event.delimiter));
        break;
      case "exit":
        this.#wantsExit = true;
        this.#isExiting = true;
        break;
      default:
        event satisfies never;
    }
  }

  #map(index: number): ScriptMap {
    return this.#input.script.maps[index]!;
  }

  #fields(record: Uint8Array, fields: Parameters<typeof decodeFields>[1]): OutputValue[] {
    return decodeFields(record, fields).map((value) => this.#shown(value));
  }

  /** A decoded value with its names looked up. */
  #shown(value: DecodedValue): OutputValue {
    switch (value.kind) {
      case "integer":
        return value;
      case "pointer":
        return { kind: "integer", value: value.address, signed: false };
      case "string":
        return { kind: "string", text: byteString(value.bytes) };
      case "buffer":
        return { kind: "bytes", bytes: value.bytes };
      case "symbol": {
        const name = this.#input.findSymbol(value.address) ?? `0x${value.address.toString(16)}`;
        return { kind: "symbol", address: value.address, text: encodeText(name) };
      }
      case "probe":
        return { kind: "probe", text: encodeText(this.#probeText(value)) };
      case "timestamp":
        return { kind: "timestamp", text: formatTime(value.format, wallTime(value.ns)) };
      case "tuple":
        return { kind: "tuple", elements: value.elements.map((element) => this.#shown(element)) };
      default:
        return value satisfies never;
    }
  }

  /** Pointers are shown in hex where they are keys, as in bpftrace. */
  #shownKey(value: DecodedValue): OutputValue {
    if (value.kind !== "pointer") return this.#shown(value);
    return { kind: "symbol", address: value.address, text: `0x${value.address.toString(16)}` };
  }

  #probeText(value: DecodedValue & { readonly kind: "probe" }): string {
    const name = this.#input.names.nameOf(value.id) ?? "";
    if (value.shows === "probe") return name;
    // The place at the end of `uprobe:/bin/x:main+4`.
    return name.slice(name.lastIndexOf(":") + 1).replace(/\+\d+$/, "");
  }

  /** A map as it is at this moment. */
  view(map: ScriptMap): MapView {
    const { name } = map;
    const valueKind = viewKind(map);
    const opened = this.#input.maps.maps[map.map];
    if (opened?.kind !== "array" && opened?.kind !== "hash")
      throw new Error(`map ${name} is no map of values`);
    if (map.keys.length > 0) {
      const entries: MapEntry[] = [];
      for (const { key, value } of opened.entries()) {
        const decoded = decodeMapValue([value], map);
        if (decoded !== undefined)
          entries.push({
            keys: decodeKey(key, map).map((part) => this.#shownKey(part)),
            value: this.#shownMapValue(decoded),
          });
      }
      return { kind: "keyed", name, valueKind, entries };
    }
    const [element] = opened.entries();
    const counted = this.#input.countsOf(map.countedBy);
    const decoded = element === undefined ? undefined : decodeMapValue([element.value, ...counted], map);
    return {
      kind: "scalar",
      name,
      valueKind,
      value: decoded === undefined ? undefined : this.#shownMapValue(decoded),
    };
  }

  #shownMapValue(value: DecodedMapValue): MapValue {
    switch (value.kind) {
      case "plain":
        return { kind: "plain", value: this.#shown(value.value) };
      case "count":
      case "sum":
      case "min":
      case "max":
        return { kind: "plain", value: { kind: "integer", value: value.value, signed: value.signed } };
      case "avg":
      case "stats":
      case "hist":
      case "lhist":
        return value;
      default:
        return value satisfies never;
    }
  }

  #clear(map: ScriptMap): void {
    const opened = this.#input.maps.maps[map.map];
    if (opened !== undefined && "clear" in opened) opened.clear();
  }

  #zero(map: ScriptMap): void {
    const opened = this.#input.maps.maps[map.map];
    if (opened?.kind !== "array" && opened?.kind !== "hash") return;
    const zeroed = zeroedMapValue(map, opened.spec.valueBytes);
    if (opened.kind === "array") opened.update(FIRST_ELEMENT, zeroed, 0n);
    // Programs add to the value where it lies.
    else for (const { key } of opened.entries()) opened.overwrite(key, zeroed);
  }

  /** `exit()` was called but found no room in the ring. */
  #exitFlag(): boolean {
    const { script, maps } = this.#input;
    const flag = script.exitMap === undefined ? undefined : maps.maps[script.exitMap];
    if (flag?.kind !== "array" && flag?.kind !== "hash") return false;
    const [element] = flag.entries();
    return element?.value.some((byte) => byte !== 0) ?? false;
  }

  /** Records that found the ring full, or whose thread died before it had written them. */
  #reportLost(): void {
    const { ring } = this.#input.maps;
    if (ring === undefined) return;
    const lost = ring.dropped;
    if (lost > this.#lostReported) this.output.lostEvents(lost - this.#lostReported);
    this.#lostReported = lost;
  }
}

function viewKind(map: ScriptMap): MapView["valueKind"] {
  if (map.value.kind === "plain") return "plain";
  const { fn } = map.value;
  return fn === "hist" || fn === "lhist" || fn === "avg" || fn === "stats" ? fn : "plain";
}

/** CLOCK_MONOTONIC to the time of day. */
function wallTime(ns: bigint): Date {
  const agoNs = process.hrtime.bigint() - ns;
  return new Date(Date.now() - Number(agoNs) / 1e6);
}

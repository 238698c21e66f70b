/**
 * Output for programs: one JSON object a line, in the shape of bpftrace's. Unlike there, timestamps are quoted and
 * text that is not ASCII is right, so that each line is valid JSON.
 */
import { histogramRows } from "./histogram.ts";
import type { Output, PrintMapOptions, Sink } from "./output.ts";
import { topEntries } from "./top-entries.ts";
import type { MapValue, MapView, OutputValue } from "./value.ts";
import { bytesOf, isAscii } from "./value.ts";
import { averageOf, divideForPrint, divideValue, printValue } from "./value-text.ts";

export function createJsonOutput(sink: Sink): Output {
  const line = (type: string, data: string) => sink(`{"type": "${type}", "data": ${data}}\n`);
  const output: Output = {
    attachedProbes: (probes) => line("attached_probes", `{"probes": ${probes}}`),
    map(view, options) {
      const data = mapJson(view, options);
      if (data !== undefined) line(messageTypes[view.valueKind], `{${quote(view.name)}: ${data}}`);
    },
    element: (name, entry) =>
      entry.value.kind === "plain"
        ? output.value(entry.value.value)
        : output.map({ kind: "keyed", name, valueKind: entry.value.kind, entries: [entry] }),
    value: (value) => line("value", valueJson(value)),
    printf: (text) => line("printf", quote(text)),
    time: (text) => line("time", quote(text)),
    join: (text) => line("join", quote(text)),
    lostEvents: (events) => line("lost_events", `{"events": ${events}}`),
    // A blank line is not JSON.
    endOfEvents() {},
  };
  return output;
}

const messageTypes: Record<MapValue["kind"], string> = {
  plain: "map",
  avg: "stats",
  stats: "stats",
  hist: "hist",
  lhist: "hist",
};

/** Undefined for an empty map: no line at all. */
function mapJson(view: MapView, { top = 0, div = 1n }: PrintMapOptions = {}): string | undefined {
  if (view.kind === "scalar") return view.value === undefined ? undefined : mapValueJson(view.value, div);
  if (view.entries.length === 0) return undefined;
  const members = topEntries(view.entries, top).map(
    ({ keys, value }) => `${quote(keys.map(printValue).join(","))}: ${mapValueJson(value, div)}`,
  );
  return `{${members.join(", ")}}`;
}

function mapValueJson(value: MapValue, div: bigint): string {
  switch (value.kind) {
    case "plain":
      return valueJson(divideValue(value.value, div));
    case "avg":
      return String(divideForPrint(averageOf(value), div));
    case "stats":
      return `{"count": ${value.count}, "average": ${averageOf(value)}, "total": ${value.total}}`;
    case "hist":
    case "lhist":
      return `[${histogramRows(value)
        .map(({ min, max, count }) => {
          const bounds = [
            min === undefined ? "" : `"min": ${min}, `,
            max === undefined ? "" : `"max": ${max}, `,
          ];
          return `{${bounds.join("")}"count": ${divideForPrint(count, div)}}`;
        })
        .join(", ")}]`;
  }
}

function valueJson(value: OutputValue): string {
  switch (value.kind) {
    case "integer":
      return String(value.value);
    case "string":
    case "bytes":
    case "symbol":
    case "probe":
    case "timestamp":
      return quote(printValue(value));
    case "tuple":
      return `[${value.elements.map(valueJson).join(",")}]`;
  }
}

/** A byte string as a JSON string. */
function quote(text: string): string {
  return JSON.stringify(
    isAscii(text) ? text : new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytesOf(text)),
  );
}

/** Output for people, as bpftrace writes it. */
import { histogramRows, printHistogramRows } from "./histogram.ts";
import type { Output, PrintMapOptions, Sink } from "./output.ts";
import { topEntries } from "./top-entries.ts";
import type { MapEntry, MapView } from "./value.ts";
import { bytesOf, isAscii } from "./value.ts";
import { averageOf, divideForPrint, divideValue, printKeys, printValue } from "./value-text.ts";

export function createTextOutput(sink: Sink): Output {
  const write = decodingSink(sink);
  const output: Output = {
    attachedProbes: (probes) => write(`Attaching ${probes} probe${probes === 1 ? "" : "s"}...\n`),
    map: (view, options) => write(printMap(view, options)),
    element: (name, entry) =>
      entry.value.kind === "plain"
        ? output.value(entry.value.value)
        : output.map({ kind: "keyed", name, valueKind: entry.value.kind, entries: [entry] }),
    value: (value) => write(`${printValue(value)}\n`),
    printf: write,
    time: write,
    join: (text) => write(`${text}\n`),
    lostEvents: (events) => write(`Lost ${events} events\n`),
    endOfEvents: () => write("\n\n"),
  };
  return output;
}

function printMap(view: MapView, { top = 0, div = 1n }: PrintMapOptions = {}): string {
  const entries =
    view.kind === "keyed"
      ? topEntries(view.entries, top)
      : view.value === undefined
        ? []
        : [{ keys: [], value: view.value }];
  const text = entries.map((entry) => printEntry(view.name, entry, div)).join("");
  switch (view.valueKind) {
    case "plain":
      return text || "\n";
    case "avg":
    case "stats":
      return `${text || "\n"}\n`;
    case "hist":
    case "lhist":
      return text || "\n";
  }
}

function printEntry(name: string, { keys, value }: MapEntry, div: bigint): string {
  const head = `${name}${printKeys(keys)}: `;
  switch (value.kind) {
    case "plain":
      return `${head}${printValue(divideValue(value.value, div))}\n`;
    case "avg":
      return `${head}${divideForPrint(averageOf(value), div)}\n`;
    case "stats":
      return `${head}count ${value.count}, average ${averageOf(value)}, total ${value.total}\n`;
    case "hist":
    case "lhist": {
      const rows = printHistogramRows(histogramRows(value), (count) => divideForPrint(count, div));
      return `${head}\n${rows}\n`;
    }
  }
}

/**
 * A sink for byte strings. A character that arrives in pieces (`printf("%c")` for each byte) is held back until it
 * is whole.
 */
function decodingSink(sink: Sink): Sink {
  let decoder: InstanceType<typeof TextDecoder> | undefined;
  return (text) => {
    if (text === "") return;
    if (decoder === undefined) {
      if (isAscii(text)) return sink(text);
      decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    }
    const decoded = decoder.decode(bytesOf(text), { stream: true });
    if (decoded !== "") sink(decoded);
  };
}

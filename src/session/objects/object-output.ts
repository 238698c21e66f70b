/** How what an object's programs send and collect is written: for people, and as one JSON object a line. */
import { type BtfValue, btfValueJson, printBtfValue, printHex } from "../../bpf/object/index.ts";
import type { OutputFormat } from "../options.ts";
import type { MapReport, ReportedValue } from "./object-report.ts";
import { formatPrintkLine, type PrintkLine } from "./printk-lines.ts";

export interface ObjectOutput {
  /** Also said to people where JSON is written. */
  attached(probes: number): void;
  record(map: string, value: BtfValue): void;
  printk(line: PrintkLine): void;
  map(report: MapReport): void;
}

export function createObjectOutput(format: OutputFormat, write: (text: string) => void): ObjectOutput {
  return format === "json" ? jsonOutput(write) : textOutput(write);
}

function textOutput(write: (text: string) => void): ObjectOutput {
  return {
    attached() {},
    record(map, value) {
      const text =
        value.kind === "bytes"
          ? `${printHex(value.bytes)}  ${printableText(value.bytes)}`
          : printBtfValue(value);
      write(`${`${map}: ${text}`.trimEnd()}\n`);
    },
    printk: (line) => write(`${formatPrintkLine(line)}\n`),
    map: (report) => write(mapText(report)),
  };
}

function jsonOutput(write: (text: string) => void): ObjectOutput {
  const line = (type: string, data: string) => write(`{"type": "${type}", "data": ${data}}\n`);
  return {
    attached: (probes) => line("attached_probes", `{"probes": ${probes}}`),
    record: (map, value) => line("record", `{"map": ${quote(map)}, "value": ${btfValueJson(value)}}`),
    printk: ({ comm, pid, tid, cpu, ns, text }) =>
      line(
        "printk",
        `{"comm": ${quote(comm)}, "pid": ${pid}, "tid": ${tid}, "cpu": ${cpu}, "ns": ${ns}, "text": ${quote(text)}}`,
      ),
    map(report) {
      const data = mapJson(report);
      if (data !== undefined) line(report.kind === "globals" ? "globals" : "map", data);
    },
  };
}

function printableText(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => (byte >= 0x20 && byte <= 0x7e ? String.fromCharCode(byte) : ".")).join(
    "",
  );
}

function mapText(report: MapReport): string {
  switch (report.kind) {
    case "globals":
      return report.variables.map(({ name, value }) => `${name} = ${printBtfValue(value)}\n`).join("");
    case "entries":
      return (
        headOf(report, report.entries.length) +
        report.entries.map(({ key, value }) => `  [${printBtfValue(key)}]: ${valueText(value)}\n`).join("")
      );
    case "list":
      return (
        headOf(report, report.values.length) +
        report.values.map((value) => `  ${printBtfValue(value)}\n`).join("")
      );
    case "stacks":
      return (
        headOf(report, report.stacks.length) +
        report.stacks
          .map(({ id, frames }) => `  [${id}]:\n${frames.map((frame) => `    ${frame}\n`).join("")}`)
          .join("")
      );
    default:
      return report satisfies never;
  }
}

function headOf({ map }: Extract<MapReport, { readonly map: unknown }>, count: number): string {
  return `map ${map.name} (${map.kind}, ${count} of ${map.maxEntries})\n`;
}

function valueText(value: ReportedValue): string {
  switch (value.kind) {
    case "value":
    case "sum":
      return printBtfValue(value.value);
    case "copies":
      return value.values.map(printBtfValue).join(", ");
    case "named":
      return value.text;
    default:
      return value satisfies never;
  }
}

/** Undefined: there is nothing in it. */
function mapJson(report: MapReport): string | undefined {
  switch (report.kind) {
    case "globals":
      return objectJson(report.variables.map(({ name, value }) => [name, btfValueJson(value)]));
    case "entries": {
      const entries = objectJson(report.entries.map(({ key, value }) => [keyText(key), reportedJson(value)]));
      return objectJson([[report.map.name, entries]]);
    }
    case "list":
      return objectJson([[report.map.name, `[${report.values.map(btfValueJson).join(", ")}]`]]);
    case "stacks": {
      const stacks = objectJson(
        report.stacks.map(({ id, frames }) => [`${id}`, `[${frames.map(quote).join(", ")}]`]),
      );
      return objectJson([[report.map.name, stacks]]);
    }
    default:
      return report satisfies never;
  }
}

function reportedJson(value: ReportedValue): string {
  switch (value.kind) {
    case "value":
    case "sum":
      return btfValueJson(value.value);
    case "copies":
      return `[${value.values.map(btfValueJson).join(", ")}]`;
    case "named":
      return quote(value.text);
    default:
      return value satisfies never;
  }
}

/** A key that is text stands without another pair of quotes. */
function keyText(key: BtfValue): string {
  return key.kind === "string" ? key.text : printBtfValue(key);
}

function objectJson(members: readonly (readonly [name: string, json: string])[]): string {
  return `{${members.map(([name, json]) => `${quote(name)}: ${json}`).join(", ")}}`;
}

const quote = (text: string): string => JSON.stringify(text);

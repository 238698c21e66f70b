import { describe, expect, it } from "vitest";
import { createJsonOutput } from "./json-output.ts";
import type { Output } from "./output.ts";
import { createTextOutput } from "./text-output.ts";
import type { MapEntry, MapValue, MapView, OutputValue } from "./value.ts";
import { byteString, encodeText } from "./value.ts";

const FULL = "@".repeat(52);
const NONE = " ".repeat(52);

const int = (value: bigint | number): OutputValue => ({
  kind: "integer",
  value: BigInt(value),
  signed: true,
});
const str = (text: string): OutputValue => ({ kind: "string", text });
const buf = (text: string): OutputValue => ({
  kind: "bytes",
  bytes: Uint8Array.from(text, (unit) => unit.charCodeAt(0)),
});
const tuple = (...elements: OutputValue[]): OutputValue => ({ kind: "tuple", elements });
const plain = (value: OutputValue): MapValue => ({ kind: "plain", value });
const avg = (count: number, total: number): MapValue => ({
  kind: "avg",
  count: BigInt(count),
  total: BigInt(total),
});
const stats = (count: number, total: number): MapValue => ({
  kind: "stats",
  count: BigInt(count),
  total: BigInt(total),
});
/** Bucket index → count. */
const hist = (counts: Readonly<Record<number, number>>): MapValue => ({
  kind: "hist",
  counts: Array.from({ length: 66 }, (_, index) => BigInt(counts[index] ?? 0)),
});
const lhist = (min: number, max: number, step: number, ...counts: number[]): MapValue => ({
  kind: "lhist",
  min: BigInt(min),
  max: BigInt(max),
  step: BigInt(step),
  counts: counts.map(BigInt),
});

const scalar = (name: string, value: MapValue): MapView => ({
  kind: "scalar",
  name,
  valueKind: value.kind,
  value,
});
const keyed = (name: string, ...entries: (readonly [readonly OutputValue[], MapValue])[]): MapView => ({
  kind: "keyed",
  name,
  valueKind: entries[0]![1].kind,
  entries: entries.map(([keys, value]): MapEntry => ({ keys, value })),
});
const emptyScalar = (name: string, valueKind: MapValue["kind"]): MapView => ({
  kind: "scalar",
  name,
  valueKind,
  value: undefined,
});
const emptyKeyed = (name: string, valueKind: MapValue["kind"]): MapView => ({
  kind: "keyed",
  name,
  valueKind,
  entries: [],
});

const map = (view: MapView) => (output: Output) => output.map(view);

const views = (valueKind: MapValue["kind"]) => [emptyScalar("@e", valueKind), emptyKeyed("@e", valueKind)];

const value = (printed: OutputValue) => (output: Output) => output.value(printed);

interface Case {
  readonly name: string;
  readonly print: (output: Output) => void;
  readonly text: string;
  /** What follows `{"type": ` in each line, without the closing brace. */
  readonly json: readonly string[];
}

function check(cases: readonly Case[]): void {
  it.each(cases)("$name: text", ({ print, text }) => {
    let written = "";
    print(createTextOutput((part) => (written += part)));
    expect(written).toBe(text);
  });
  it.each(cases)("$name: JSON", ({ print, json }) => {
    let written = "";
    print(createJsonOutput((part) => (written += part)));
    expect(written).toBe(json.map((line) => `{"type": ${line}}\n`).join(""));
    for (const line of written.split("\n").slice(0, -1)) expect(() => JSON.parse(line)).not.toThrow();
  });
}

// Expected as written by bpftrace 0.17, but for what its head says in json-output.ts.

describe("messages", () => {
  check([
    {
      name: "one probe",
      print: (output) => output.attachedProbes(1),
      text: "Attaching 1 probe...\n",
      json: ['"attached_probes", "data": {"probes": 1}'],
    },
    {
      name: "two probes",
      print: (output) => output.attachedProbes(2),
      text: "Attaching 2 probes...\n",
      json: ['"attached_probes", "data": {"probes": 2}'],
    },
    {
      name: "lost events",
      print: (output) => output.lostEvents(29644),
      text: "Lost 29644 events\n",
      json: ['"lost_events", "data": {"events": 29644}'],
    },
    {
      name: "printf",
      print: (output) => output.printf('hi 4\n"\\\t\x01'),
      text: 'hi 4\n"\\\t\x01',
      json: ['"printf", "data": "hi 4\\n\\"\\\\\\t\\u0001"'],
    },
    {
      name: "time",
      print(output) {
        output.time("19:27:27\n");
        output.time("19:27");
      },
      text: "19:27:27\n19:27",
      json: ['"time", "data": "19:27:27\\n"', '"time", "data": "19:27"'],
    },
    {
      name: "join",
      print: (output) => output.join('/bin/echo a "b"'),
      text: '/bin/echo a "b"\n',
      json: ['"join", "data": "/bin/echo a \\"b\\""'],
    },
    { name: "end of events", print: (output) => output.endOfEvents(), text: "\n\n", json: [] },
    {
      name: "text that is not ASCII",
      print: (output) => output.printf(encodeText("é\n")),
      text: "é\n",
      json: ['"printf", "data": "é\\n"'],
    },
    {
      name: "bytes that are no text",
      print: (output) => output.printf("a\xff\n"),
      text: "a\ufffd\n",
      json: ['"printf", "data": "a\ufffd\\n"'],
    },
  ]);

  it("puts a character together that is printed byte by byte", () => {
    let written = "";
    const output = createTextOutput((part) => (written += part));
    for (const byte of byteString(new TextEncoder().encode("€1"))) output.printf(byte);
    expect(written).toBe("€1");
  });
});

describe("values", () => {
  check([
    { name: "integer", print: value(int(5)), text: "5\n", json: ['"value", "data": 5'] },
    { name: "negative", print: value(int(-5)), text: "-5\n", json: ['"value", "data": -5'] },
    {
      name: "largest integer",
      print: value({ kind: "integer", value: 2n ** 64n - 1n, signed: false }),
      text: "18446744073709551615\n",
      json: ['"value", "data": 18446744073709551615'],
    },
    {
      name: "string",
      print: value(str('str\n"x\ty\\')),
      text: 'str\n"x\ty\\\n',
      json: ['"value", "data": "str\\n\\"x\\ty\\\\"'],
    },
    { name: "empty string", print: value(str("")), text: "\n", json: ['"value", "data": ""'] },
    {
      name: "bytes",
      print: value(buf('a\x01\xff\\b\n"')),
      text: 'a\\x01\\xff\\b\\x0a"\n',
      json: ['"value", "data": "a\\\\x01\\\\xff\\\\b\\\\x0a\\""'],
    },
    {
      name: "probe",
      print: value({ kind: "probe", text: "BEGIN" }),
      text: "BEGIN\n",
      json: ['"value", "data": "BEGIN"'],
    },
    {
      name: "symbol",
      print: value({ kind: "symbol", address: 1n, text: "0x1" }),
      text: "0x1\n",
      json: ['"value", "data": "0x1"'],
    },
    {
      name: "timestamp",
      print: value({ kind: "timestamp", text: "2026-11" }),
      text: "2026-11\n",
      json: ['"value", "data": "2026-11"'],
    },
    {
      name: "tuple",
      print: value(tuple(int(1), tuple(int(2), str('a"q')), int(-3))),
      text: '(1, (2, a"q), -3)\n',
      json: ['"value", "data": [1,[2,"a\\"q"],-3]'],
    },
    {
      name: "element of a map",
      print: (output) => output.element("@x", { keys: [int(1)], value: plain(int(7)) }),
      text: "7\n",
      json: ['"value", "data": 7'],
    },
    {
      name: "element of a map of histograms",
      print: (output) => output.element("@h", { keys: [int(1)], value: hist({ 4: 1 }) }),
      text: `@h[1]: \n[4, 8)                 1 |${FULL}|\n\n`,
      json: ['"hist", "data": {"@h": {"1": [{"min": 4, "max": 7, "count": 1}]}}'],
    },
  ]);
});

describe("maps", () => {
  check([
    {
      name: "integer",
      print: map(scalar("@x", plain(int(5)))),
      text: "@x: 5\n",
      json: ['"map", "data": {"@x": 5}'],
    },
    {
      name: "map without a name",
      print: map(scalar("@", plain(int(5)))),
      text: "@: 5\n",
      json: ['"map", "data": {"@": 5}'],
    },
    {
      name: "string",
      print: map(scalar("@str", plain(str("hello")))),
      text: "@str: hello\n",
      json: ['"map", "data": {"@str": "hello"}'],
    },
    {
      name: "bytes",
      print: map(scalar("@b", plain(buf("a\x01\xff\\b")))),
      text: "@b: a\\x01\\xff\\b\n",
      json: ['"map", "data": {"@b": "a\\\\x01\\\\xff\\\\b"}'],
    },
    {
      name: "tuple",
      print: map(scalar("@t", plain(tuple(int(1), str("x"), int(-3))))),
      text: "@t: (1, x, -3)\n",
      json: ['"map", "data": {"@t": [1,"x",-3]}'],
    },
    {
      name: "several keys",
      print: map(
        keyed(
          "@y",
          [[int(1), str("a")], plain(int(2))],
          [[int(2), str("z")], plain(int(7))],
          [[int(3), str("b")], plain(int(-1))],
        ),
      ),
      text: "@y[3, b]: -1\n@y[1, a]: 2\n@y[2, z]: 7\n",
      json: ['"map", "data": {"@y": {"3,b": -1, "1,a": 2, "2,z": 7}}'],
    },
    {
      name: "keys with quotes and bytes",
      print: map(keyed("@k", [[str('a"b'), buf("\x01")], plain(int(2))])),
      text: '@k[a"b, \\x01]: 2\n',
      json: ['"map", "data": {"@k": {"a\\"b,\\\\x01": 2}}'],
    },
    {
      name: "keys that are probes and symbols",
      print: map(
        keyed("@p", [
          [
            { kind: "probe", text: "BEGIN" },
            { kind: "symbol", address: 4096n, text: "0x1000" },
          ],
          plain(int(1)),
        ]),
      ),
      text: "@p[BEGIN, 0x1000]: 1\n",
      json: ['"map", "data": {"@p": {"BEGIN,0x1000": 1}}'],
    },
    {
      name: "average",
      print: map(scalar("@a", avg(2, 7))),
      text: "@a: 3\n\n",
      json: ['"stats", "data": {"@a": 3}'],
    },
    {
      name: "average, rounded towards 0",
      print: map(scalar("@a", avg(2, -3))),
      text: "@a: -1\n\n",
      json: ['"stats", "data": {"@a": -1}'],
    },
    {
      name: "average of nothing",
      print: map(scalar("@a", avg(0, 0))),
      text: "@a: 0\n\n",
      json: ['"stats", "data": {"@a": 0}'],
    },
    {
      name: "averages",
      print: map(keyed("@ak", [[int(1)], avg(1, 5)], [[int(2)], avg(2, 4)])),
      text: "@ak[2]: 2\n@ak[1]: 5\n\n",
      json: ['"stats", "data": {"@ak": {"2": 2, "1": 5}}'],
    },
    {
      name: "statistics",
      print: map(scalar("@s", stats(2, -3))),
      text: "@s: count 2, average -1, total -3\n\n",
      json: ['"stats", "data": {"@s": {"count": 2, "average": -1, "total": -3}}'],
    },
    {
      name: "statistics by key",
      print: map(keyed("@sk", [[int(1)], stats(1, 5)], [[int(2)], stats(2, 4)])),
      text: "@sk[2]: count 2, average 2, total 4\n@sk[1]: count 1, average 5, total 5\n\n",
      json: [
        '"stats", "data": {"@sk": {"2": {"count": 2, "average": 2, "total": 4}, "1": {"count": 1, "average": 5, "total": 5}}}',
      ],
    },
    {
      name: "histogram",
      print: map(scalar("@h", hist({ 0: 1, 1: 1, 2: 1, 5: 1 }))),
      text: `@h: \n(..., 0)               1 |${FULL}|\n[0]                    1 |${FULL}|\n[1]                    1 |${FULL}|\n[2, 4)                 0 |${NONE}|\n[4, 8)                 0 |${NONE}|\n[8, 16)                1 |${FULL}|\n\n`,
      json: [
        '"hist", "data": {"@h": [{"max": -1, "count": 1}, {"min": 0, "max": 0, "count": 1}, {"min": 1, "max": 1, "count": 1}, {"min": 2, "max": 3, "count": 0}, {"min": 4, "max": 7, "count": 0}, {"min": 8, "max": 15, "count": 1}]}',
      ],
    },
    {
      name: "histograms by key",
      print: map(keyed("@hk", [[str("a")], hist({ 4: 2 })], [[str("b")], hist({ 4: 1 })])),
      text: `@hk[b]: \n[4, 8)                 1 |${FULL}|\n\n@hk[a]: \n[4, 8)                 2 |${FULL}|\n\n`,
      json: [
        '"hist", "data": {"@hk": {"b": [{"min": 4, "max": 7, "count": 1}], "a": [{"min": 4, "max": 7, "count": 2}]}}',
      ],
    },
    {
      name: "linear histogram",
      print: map(scalar("@l", lhist(0, 20, 10, 1, 0, 1, 1))),
      text: `@l: \n(..., 0)               1 |${FULL}|\n[0, 10)                0 |${NONE}|\n[10, 20)               1 |${FULL}|\n[20, ...)              1 |${FULL}|\n\n`,
      json: [
        '"hist", "data": {"@l": [{"max": -1, "count": 1}, {"min": 0, "max": 9, "count": 0}, {"min": 10, "max": 19, "count": 1}, {"min": 20, "count": 1}]}',
      ],
    },
    {
      name: "linear histogram that begins above 0",
      print: map(scalar("@i", lhist(1024, 3072, 1024, 1, 0, 0, 0))),
      text: `@i: \n(..., 1K)              1 |${FULL}|\n\n`,
      json: ['"hist", "data": {"@i": [{"max": 1023, "count": 1}]}'],
    },
    {
      name: "the highest bucket",
      print: map(scalar("@h", hist({ 65: 1 }))),
      text: `@h: \n[8E, 16E)              1 |${FULL}|\n\n`,
      json: [
        '"hist", "data": {"@h": [{"min": 9223372036854775808, "max": 18446744073709551615, "count": 1}]}',
      ],
    },
    {
      name: "histogram of nothing",
      print: map(scalar("@z", hist({}))),
      text: "@z: \n\n",
      json: ['"hist", "data": {"@z": []}'],
    },
    {
      name: "histogram of nothing by key",
      print: map(keyed("@hk", [[int(1)], hist({})])),
      text: "@hk[1]: \n\n",
      json: ['"hist", "data": {"@hk": {"1": []}}'],
    },
  ]);
});

describe("empty maps", () => {
  const cases: readonly { readonly valueKind: MapValue["kind"]; readonly text: string }[] = [
    { valueKind: "plain", text: "\n" },
    { valueKind: "avg", text: "\n\n" },
    { valueKind: "stats", text: "\n\n" },
    { valueKind: "hist", text: "\n" },
    { valueKind: "lhist", text: "\n" },
  ];
  check(
    cases.flatMap(({ valueKind, text }) =>
      views(valueKind).map((view) => ({
        name: `${view.kind} ${valueKind}`,
        print: (output: Output) => output.map(view),
        text,
        json: [],
      })),
    ),
  );
});

describe("print with top and div", () => {
  const letters = keyed(
    "@y",
    [[str("a")], plain(int(10))],
    [[str("b")], plain(int(20))],
    [[str("c")], plain(int(30))],
    [[str("d")], plain(int(40))],
  );
  const histograms = keyed("@h", [[int(1)], hist({ 4: 1 })], [[int(2)], hist({ 5: 2 })]);
  check([
    {
      name: "top",
      print: (output) => output.map(letters, { top: 2 }),
      text: "@y[c]: 30\n@y[d]: 40\n",
      json: ['"map", "data": {"@y": {"c": 30, "d": 40}}'],
    },
    {
      name: "top and div",
      print: (output) => output.map(letters, { top: 2, div: 10n }),
      text: "@y[c]: 3\n@y[d]: 4\n",
      json: ['"map", "data": {"@y": {"c": 3, "d": 4}}'],
    },
    {
      name: "div alone",
      print: (output) => output.map(letters, { top: 0, div: 7n }),
      text: "@y[a]: 1\n@y[b]: 2\n@y[c]: 4\n@y[d]: 5\n",
      json: ['"map", "data": {"@y": {"a": 1, "b": 2, "c": 4, "d": 5}}'],
    },
    {
      name: "div 0 changes nothing",
      print: (output) => output.map(scalar("@c", plain(int(3))), { div: 0n }),
      text: "@c: 3\n",
      json: ['"map", "data": {"@c": 3}'],
    },
    {
      name: "div rounds towards 0",
      print: (output) =>
        output.map(keyed("@n", [[int(1)], plain(int(-5))], [[int(2)], plain(int(-25))]), {
          top: 5,
          div: 10n,
        }),
      text: "@n[2]: -2\n@n[1]: 0\n",
      json: ['"map", "data": {"@n": {"2": -2, "1": 0}}'],
    },
    {
      name: "text is not divided",
      print: (output) => output.map(scalar("@s", plain(str("x"))), { div: 10n }),
      text: "@s: x\n",
      json: ['"map", "data": {"@s": "x"}'],
    },
    {
      name: "averages",
      print: (output) =>
        output.map(keyed("@a", [[int(1)], avg(1, 100)], [[int(2)], avg(1, 200)]), { top: 1, div: 3n }),
      text: "@a[2]: 66\n\n",
      json: ['"stats", "data": {"@a": {"2": 66}}'],
    },
    {
      name: "statistics take neither",
      print: (output) =>
        output.map(keyed("@s", [[int(1)], stats(1, 10)], [[int(2)], stats(1, 20)]), { top: 1, div: 2n }),
      text: "@s[1]: count 1, average 10, total 10\n@s[2]: count 1, average 20, total 20\n\n",
      json: [
        '"stats", "data": {"@s": {"1": {"count": 1, "average": 10, "total": 10}, "2": {"count": 1, "average": 20, "total": 20}}}',
      ],
    },
    {
      name: "histograms, top",
      print: (output) => output.map(histograms, { top: 1 }),
      text: `@h[2]: \n[8, 16)                2 |${FULL}|\n\n`,
      json: ['"hist", "data": {"@h": {"2": [{"min": 8, "max": 15, "count": 2}]}}'],
    },
    {
      name: "histograms, div leaves the bars",
      print: (output) => output.map(histograms, { div: 2n }),
      text: `@h[1]: \n[4, 8)                 0 |${FULL}|\n\n@h[2]: \n[8, 16)                1 |${FULL}|\n\n`,
      json: [
        '"hist", "data": {"@h": {"1": [{"min": 4, "max": 7, "count": 0}], "2": [{"min": 8, "max": 15, "count": 1}]}}',
      ],
    },
  ]);
});

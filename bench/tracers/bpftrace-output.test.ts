/** Counting hits in JSON lines as bpftrace 0.17 and trapline print them. */
import { expect, test } from "vitest";
import { hitsIn } from "./bpftrace-output.ts";

const cases: readonly { readonly name: string; readonly lines: readonly string[]; readonly hits: number }[] =
  [
    { name: "nothing", lines: [], hits: 0 },
    {
      name: "a count, after lines that are no results",
      lines: [
        "Attaching 1 probe...",
        '{"type": "attached_probes", "data": {"probes": 1}}',
        '{"type": "map", "data": {"@": 30000}}',
      ],
      hits: 30000,
    },
    {
      name: "a histogram, the sum of its buckets",
      lines: [
        '{"type": "hist", "data": {"@": [{"min": 2, "max": 3, "count": 5}, {"min": 4, "max": 7, "count": 8}]}}',
      ],
      hits: 13,
    },
    {
      name: "printed texts, one each",
      lines: ['{"type": "printf", "data": "a\\n"}', '{"type": "printf", "data": "b\\n"}'],
      hits: 2,
    },
    {
      name: "maps with names are the script's own",
      lines: ['{"type": "map", "data": {"@s": {"4242": 17}}}', '{"type": "map", "data": {"@": 3}}'],
      hits: 3,
    },
    { name: "a line that is cut off", lines: ['{"type": "map", "data": {"@": 3'], hits: 0 },
  ];

test.each(cases)("hits: $name", ({ lines, hits }) => {
  expect(hitsIn(lines)).toBe(hits);
});

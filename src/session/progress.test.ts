import { describe, expect, it } from "vitest";
import { recordIo } from "../../test/support/session-io.ts";
import { Progress } from "./progress.ts";

const ERASE = "\r\u001b[K";

describe("progress line", () => {
  const cases: readonly {
    readonly name: string;
    readonly columns: number | undefined;
    /** When `show` is called, in milliseconds after the start. */
    readonly shownAtMs: readonly number[];
    readonly text: string;
  }[] = [
    { name: "short work shows nothing", columns: 80, shownAtMs: [0, 100, 240], text: "" },
    {
      name: "long work appears and is taken away",
      columns: 80,
      shownAtMs: [0, 300],
      text: `${ERASE}load (300 of 999)${ERASE}`,
    },
    {
      name: "is not rewritten more often than one can see",
      columns: 80,
      shownAtMs: [300, 310, 320, 390],
      text: `${ERASE}load (300 of 999)${ERASE}load (390 of 999)${ERASE}`,
    },
    { name: "is cut to the terminal's width", columns: 7, shownAtMs: [300], text: `${ERASE}load (${ERASE}` },
    { name: "without a terminal nothing is written", columns: undefined, shownAtMs: [300, 600], text: "" },
  ];
  it.each(cases)("$name", ({ columns, shownAtMs, text }) => {
    const io = recordIo(columns);
    let nowMs = 0;
    {
      using progress = new Progress(io, () => nowMs);
      for (nowMs of shownAtMs) progress.show("load", nowMs, 999);
    }
    expect(io.errText()).toBe(text);
    expect(io.outText()).toBe("");
  });
});

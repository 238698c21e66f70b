import { describe, expect, it } from "vitest";
import { DEFAULT_TIME_FORMAT, formatTime } from "./time-format.ts";

// In local time, so that the expectations hold in every time zone.
const evening = new Date(2026, 10, 22, 19, 26, 53);
const night = new Date(2026, 10, 23, 0, 56, 53);

describe("strftime", () => {
  const cases: readonly {
    readonly name: string;
    readonly format: string;
    readonly date: Date;
    readonly text: string;
    readonly microseconds?: number;
  }[] = [
    { name: "default", format: DEFAULT_TIME_FORMAT, date: evening, text: "19:26:53\n" },
    {
      name: "numbers and names",
      format: "%H:%M:%S|%Y|%m|%d|%y|%j|%a|%A|%b|%B|%e",
      date: night,
      text: "00:56:53|2026|11|23|26|327|Mon|Monday|Nov|November|23",
    },
    {
      name: "dates and times",
      format: "%F|%T|%D|%R|%r|%c|%x|%X|%h",
      date: evening,
      text: "2026-11-22|19:26:53|11/22/26|19:26|07:26:53 PM|Sun Nov 22 19:26:53 2026|11/22/26|19:26:53|Nov",
    },
    {
      name: "twelve hours, weeks: Sunday evening",
      format: "%k|%l|%u|%w|%U|%W|%V|%G|%g|%r|%P|%p|%I",
      date: evening,
      text: "19| 7|7|0|47|46|47|2026|26|07:26:53 PM|pm|PM|07",
    },
    {
      name: "twelve hours, weeks: Monday after midnight",
      format: "%k|%l|%u|%w|%U|%W|%V|%G|%g|%r|%P|%p|%I",
      date: night,
      text: " 0|12|1|1|47|47|48|2026|26|12:56:53 AM|am|AM|12",
    },
    { name: "century and characters", format: "%C%%%n%t|", date: evening, text: "20%\n\t|" },
    {
      name: "flags and widths",
      format: "%-d|%_d|%5d|%^a|%5Y|%05e",
      date: night,
      text: "23|23|00023|MON|02026|00023",
    },
    {
      name: "days below ten",
      format: "%d|%e|%-d|%_d|%0e|%j",
      date: new Date(2026, 0, 5),
      text: "05| 5|5| 5|05|005",
    },
    {
      name: "modifiers change nothing",
      format: "%Ey|%Od|%Ec",
      date: night,
      text: "26|23|Mon Nov 23 00:56:53 2026",
    },
    { name: "unknown stays", format: "%q|%v|%J|%Q|%E|%", date: evening, text: "%q|%v|%J|%Q|%E|%" },
    { name: "microseconds", format: "%S.%f", date: evening, microseconds: 4257, text: "53.004257" },
    { name: "microseconds of the date", format: "%f", date: new Date(1500), text: "500000" },
    { name: "seconds since the epoch", format: "%s", date: new Date(1_700_000_000_999), text: "1700000000" },
    {
      name: "last days of a year in the first week of the next",
      format: "%G-%V",
      date: new Date(2024, 11, 30),
      text: "2025-01",
    },
    {
      name: "first days of a year in the last week of the one before",
      format: "%G-%V",
      date: new Date(2023, 0, 1),
      text: "2022-52",
    },
    { name: "leap day", format: "%j", date: new Date(2024, 11, 31), text: "366" },
    { name: "noon", format: "%I %p", date: new Date(2026, 0, 1, 12), text: "12 PM" },
    { name: "no conversions", format: "now\n", date: evening, text: "now\n" },
  ];
  it.each(cases)("$name: $format", ({ format, date, text, microseconds }) => {
    expect(formatTime(format, date, microseconds)).toBe(text);
  });

  it("shows the time zone", () => {
    expect(formatTime("%z %Z", evening)).toMatch(/^[-+][0-9]{4} \S+$/);
  });
});

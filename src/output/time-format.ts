/**
 * strftime, with the conversions of ISO C 7.29.3.5 in the C locale, and of glibc's extensions `%k %l %P %s %h`, the
 * flags `-` `_` `0` `^` `#`, and widths. `%f` is bpftrace's: microseconds. What is not known stays as it is written.
 */

export const DEFAULT_TIME_FORMAT = "%H:%M:%S\n";

const WEEKDAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

/**
 * The time in the local time zone. `microseconds` are those within the second, for `%f`: a Date has only
 * milliseconds.
 */
export function formatTime(
  format: string,
  date: Date,
  microseconds: number = date.getMilliseconds() * 1000,
): string {
  return format.replace(
    /%([-_0^#]*)([0-9]{0,3})[EO]?([a-zA-Z%])/g,
    (written: string, flags: string, width: string, conversion: string) => {
      const field = findField(conversion, date, microseconds);
      if (field === undefined) return written;
      return pad(field, flags, Number(width));
    },
  );
}

/** Text, and how it is filled to its usual width. */
interface Field {
  readonly text: string;
  readonly fill: "0" | " ";
  readonly width: number;
}

const number = (value: number, width = 2, fill: "0" | " " = "0"): Field => ({
  text: String(value),
  fill,
  width,
});
const words = (text: string): Field => ({ text, fill: " ", width: 0 });

function findField(conversion: string, date: Date, microseconds: number): Field | undefined {
  const nested = (format: string) => words(formatTime(format, date, microseconds));
  const hour12 = date.getHours() % 12 || 12;
  switch (conversion) {
    case "H":
      return number(date.getHours());
    case "k":
      return number(date.getHours(), 2, " ");
    case "I":
      return number(hour12);
    case "l":
      return number(hour12, 2, " ");
    case "M":
      return number(date.getMinutes());
    case "S":
      return number(date.getSeconds());
    case "f":
      return number(microseconds, 6);
    case "p":
      return words(date.getHours() < 12 ? "AM" : "PM");
    case "P":
      return words(date.getHours() < 12 ? "am" : "pm");
    case "Y":
      return number(date.getFullYear(), 1);
    case "C":
      return number(Math.floor(date.getFullYear() / 100));
    case "y":
      return number(date.getFullYear() % 100);
    case "G":
      return number(isoWeek(date).year, 1);
    case "g":
      return number(isoWeek(date).year % 100);
    case "m":
      return number(date.getMonth() + 1);
    case "d":
      return number(date.getDate());
    case "e":
      return number(date.getDate(), 2, " ");
    case "j":
      return number(dayOfYear(date) + 1, 3);
    case "U":
      return number(Math.floor((dayOfYear(date) + 7 - date.getDay()) / 7));
    case "W":
      return number(Math.floor((dayOfYear(date) + 7 - mondayBased(date)) / 7));
    case "V":
      return number(isoWeek(date).week);
    case "u":
      return number(mondayBased(date) + 1, 1);
    case "w":
      return number(date.getDay(), 1);
    case "a":
      return words(WEEKDAYS[date.getDay()]!.slice(0, 3));
    case "A":
      return words(WEEKDAYS[date.getDay()]!);
    case "b":
    case "h":
      return words(MONTHS[date.getMonth()]!.slice(0, 3));
    case "B":
      return words(MONTHS[date.getMonth()]!);
    case "s":
      return number(Math.floor(date.getTime() / 1000), 1);
    case "z":
      return words(utcOffset(date));
    case "Z":
      return words(zoneName(date));
    case "F":
      return nested("%Y-%m-%d");
    case "D":
    case "x":
      return nested("%m/%d/%y");
    case "T":
    case "X":
      return nested("%H:%M:%S");
    case "R":
      return nested("%H:%M");
    case "r":
      return nested("%I:%M:%S %p");
    case "c":
      return nested("%a %b %e %H:%M:%S %Y");
    case "n":
      return words("\n");
    case "t":
      return words("\t");
    case "%":
      return words("%");
    default:
      return undefined;
  }
}

function pad(field: Field, flags: string, width: number): string {
  let { text, fill } = field;
  if (flags.includes("^")) text = text.toUpperCase();
  if (flags.includes("#")) text = text === text.toUpperCase() ? text.toLowerCase() : text.toUpperCase();
  if (flags.includes("0")) fill = "0";
  if (flags.includes("_")) fill = " ";
  return text.padStart(width || (flags.includes("-") ? 0 : field.width), fill);
}

/** From 0. */
function dayOfYear(date: Date): number {
  const dayMs = 86_400_000;
  const today = Date.UTC(date.getFullYear(), date.getMonth(), date.getDate());
  return Math.round((today - Date.UTC(date.getFullYear(), 0, 1)) / dayMs);
}

/** Monday is 0. */
function mondayBased(date: Date): number {
  return (date.getDay() + 6) % 7;
}

/** ISO 8601: weeks begin on Monday and belong to the year that has their Thursday. */
function isoWeek(date: Date): { readonly year: number; readonly week: number } {
  const thursday = new Date(date.getFullYear(), date.getMonth(), date.getDate() - mondayBased(date) + 3);
  return { year: thursday.getFullYear(), week: Math.floor(dayOfYear(thursday) / 7) + 1 };
}

/** `+0530`. */
function utcOffset(date: Date): string {
  const minutes = -date.getTimezoneOffset();
  const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
  return `${minutes < 0 ? "-" : "+"}${String(hours).padStart(2, "0")}${String(rest).padStart(2, "0")}`;
}

/** Zones whose abbreviation English does not know are named `GMT+5:30`. */
function zoneName(date: Date): string {
  const parts = new Intl.DateTimeFormat("en-US", { timeZoneName: "short" }).formatToParts(date);
  return parts.find(({ type }) => type === "timeZoneName")?.value ?? "";
}

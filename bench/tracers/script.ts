/** The work in the language that bpftrace and trapline share. */
import type { Work } from "./tracer.ts";

export function scriptFor(work: Work, image: string, symbol: string): string {
  const place = `${image}:${symbol}`;
  switch (work) {
    case "count":
      return `uprobe:${place} { @ = count(); }`;
    case "hist":
      return `uprobe:${place} { @ = hist(arg0); }`;
    case "printf":
      return `uprobe:${place} { printf("%lx\\n", arg0); }`;
    case "latency":
      return (
        `uprobe:${place} { @s[tid] = nsecs; } ` +
        `uretprobe:${place} /@s[tid]/ { @ = hist(nsecs - @s[tid]); delete(@s[tid]); }`
      );
    case "return":
      return `uretprobe:${place} { @ = count(); }`;
  }
}

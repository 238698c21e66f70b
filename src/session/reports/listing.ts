/** `trapline -l`: the probes that could be planted, one a line, as attach points. */
import { describePlaceRefusal, Glob } from "../../elf/index.ts";
import { ElfCache } from "../../target/process/elf-cache.ts";
import { findImageFiles, resolveInFile } from "../../target/process/image-search.ts";
import { ProcessImages } from "../../target/process/images.ts";
import { describeLocationRefusal } from "../../target/process/location-refusal.ts";
import type { ListOptions, SessionIo } from "../options.ts";
import { SessionError } from "../session-error.ts";

const kinds = ["uprobe", "uretprobe"] as const;

/** Lists functions: of the processes that are named, else of files. Returns 1 if nothing matches. */
export async function listProbes(options: ListOptions, io: SessionIo): Promise<number> {
  const pattern = parsePattern(options.pattern ?? "uprobe:*:*");
  if (pattern.kinds.length === 0)
    throw new SessionError("unknown-probe", {
      operation: "list",
      object: options.pattern ?? "",
      reason: "only uprobe and uretprobe can be listed",
    });
  const names = options.pids.length > 0 ? namesInProcesses(options.pids, pattern) : namesInFiles(pattern);
  for (const name of names)
    for (const kind of pattern.kinds)
      io.out.write(
        options.format === "json"
          ? `${JSON.stringify({ type: "probe", data: `${kind}:${name}` })}\n`
          : `${kind}:${name}\n`,
      );
  return names.length === 0 ? 1 : 0;
}

interface Pattern {
  readonly kinds: readonly string[];
  readonly image: string;
  readonly symbol: string;
}

/** `KIND:IMAGE:SYMBOL`, or just a part of a symbol's name, as with bpftrace. */
function parsePattern(text: string): Pattern {
  const [kind, image, ...symbol] = text.split(":");
  if (image === undefined) return { kinds: ["uprobe"], image: "*", symbol: text };
  const glob = new Glob(kind === "u" ? "uprobe" : kind === "ur" ? "uretprobe" : kind!);
  return {
    kinds: kinds.filter((name) => glob.matches(name)),
    image: image === "" ? "*" : image,
    symbol: symbol.length === 0 || symbol.join(":") === "" ? "*" : symbol.join(":"),
  };
}

function namesInProcesses(pids: readonly number[], pattern: Pattern): string[] {
  const names = new Set<string>();
  for (const pid of pids) {
    using images = ProcessImages.open(pid);
    const { locations, refusal } = images.resolve(pattern.image, { kind: "symbol", symbol: pattern.symbol });
    if (refusal !== undefined && !isWildcard(pattern))
      throw refusalError(pattern, describeLocationRefusal(refusal));
    for (const { image, symbol } of locations) if (symbol !== undefined) names.add(`${image.path}:${symbol}`);
  }
  return [...names].sort();
}

function namesInFiles(pattern: Pattern): string[] {
  if (pattern.image.includes("*"))
    throw new SessionError(
      "no-image",
      { operation: "list", object: pattern.image, reason: "a wildcard for images needs a process" },
      "name a process with -p PID, or one image: uprobe:libc:*",
    );
  using cache = new ElfCache();
  const paths = findImageFiles(pattern.image);
  if (paths.length === 0)
    throw refusalError(pattern, { message: `there is no image ${pattern.image}`, hint: "give its path" });
  const names = new Set<string>();
  for (const path of paths) {
    const found = resolveInFile(cache, path, { kind: "symbol", symbol: pattern.symbol });
    if (found.kind === "refused") {
      if (!isWildcard(pattern)) throw refusalError(pattern, describePlaceRefusal(found.refusal));
      continue;
    }
    for (const { symbol } of found.locations) if (symbol !== undefined) names.add(`${path}:${symbol.name}`);
  }
  return [...names].sort();
}

const isWildcard = (pattern: Pattern) => /[*?[]/.test(pattern.image + pattern.symbol);

function refusalError(
  pattern: Pattern,
  { message, hint }: { message: string; hint: string | undefined },
): SessionError {
  return new SessionError(
    "unknown-probe",
    { operation: "list", object: `${pattern.image}:${pattern.symbol}`, reason: message },
    hint,
  );
}

/**
 * Something real to look into: reads files, hashes and compresses them, checks its own results, and rests most of
 * the time. Runs until it is asked to end; then it says how much it has done and whether all of it was right.
 */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gunzipSync, gzip } from "node:zlib";

// Relative paths are short enough to be shown whole.
process.chdir(fileURLToPath(new URL("../dist/", import.meta.url)));
const PAUSE_MS = 4;
const MOST_FILES = 40;

const paths = readdirSync(".", { recursive: true, encoding: "utf8" })
  .filter((name) => name.endsWith(".js"))
  .sort()
  .slice(0, MOST_FILES);
const digestOf = (bytes) => createHash("sha256").update(bytes).digest("hex");
const expected = new Map(paths.map((path) => [path, digestOf(readFileSync(path))]));
const compress = promisify(gzip);

let rounds = 0;
let mistakes = 0;
const ending = new AbortController();
process.on("SIGTERM", () => ending.abort());
process.stdout.write("ready\n");

while (!ending.signal.aborted) {
  // Low numbers come up most: some files are read far more often than others.
  const path = paths[Math.floor(Math.random() ** 3 * paths.length)];
  const bytes = rounds % 2 === 0 ? await readFile(path) : readFileSync(path);
  const back = gunzipSync(await compress(bytes));
  if (digestOf(bytes) !== expected.get(path) || !back.equals(bytes)) mistakes++;
  rounds++;
  await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
}
process.stdout.write(`${rounds} rounds, ${mistakes} wrong results\n`);

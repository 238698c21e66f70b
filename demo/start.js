/**
 * The demo: a Node process at work, and probes in it and in its C library, planted while it runs and taken out again.
 *
 * The tracing is done by the command `trapline`, as anybody would run it. This script chooses the probes, shows what
 * the command did to the code, and compares the code before and after.
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** How long it is traced. */
const SECONDS = Number(process.argv[2] ?? 8);
const root = fileURLToPath(new URL("../", import.meta.url));
const command = `${root}dist/cli/main.js`;
const say = (text = "") => process.stdout.write(`${text}\n`);
const hex = (bytes) => Buffer.from(bytes).toString("hex").replace(/../g, "$& ").trimEnd();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

if (!existsSync(command)) {
  process.stderr.write("the demo needs the built program: npm run build\n");
  process.exit(1);
}
const { compareText, readChangedSites, readTextFingerprint } = await import("../dist/session/index.js");

const workload = spawn(
  process.execPath,
  ["--import", `${root}demo/allow-tracer.js`, `${root}demo/workload.js`],
  { stdio: ["ignore", "pipe", "inherit"] },
);
process.on("exit", () => workload.kill("SIGKILL"));
let lastWords = "";
await new Promise((resolve, reject) => {
  workload.stdout.on("data", (text) => {
    lastWords = String(text).trim();
    resolve();
  });
  workload.once("exit", (code) => reject(new Error(`the workload ended with ${code}`)));
});
const pid = workload.pid;
say(`process ${pid} is a Node program that reads files, hashes and compresses them. It knows of no tracer.`);
const before = readTextFingerprint(pid);
say(`its text: ${describe(before)}`);
say();

/** What a function is called in the program or in a library that it uses: the first of these names that is there. */
function findProbe(kind, names) {
  for (const name of names) {
    const list = spawnSync(command, ["-l", `uprobe:*:${name}`, "-p", `${pid}`], { encoding: "utf8" });
    if (list.status !== 0 && list.stdout === "" && list.stderr.includes("attach")) fail(list.stderr);
    const line = list.stdout.split("\n").find((text) => text.startsWith("uprobe:"));
    // The base name of the image says enough.
    if (line !== undefined) return line.trim().replace(/^uprobe:.*\//, `${kind}:`);
  }
  return undefined;
}

function fail(text) {
  process.stderr.write(text);
  process.stderr.write("hint: trapline doctor says what this machine allows\n");
  process.exit(1);
}

/** Times the calls of a function, in microseconds, if there is such a function. */
function timeCalls(names, map, condition) {
  const entry = findProbe("uprobe", names);
  if (entry === undefined) return [];
  startTimes.push(`@${map}_since`);
  return [
    `${entry}${condition} { @${map}_since[tid] = nsecs; }`,
    `${entry.replace(/^uprobe/, "uretprobe")} /@${map}_since[tid]/ {`,
    `  @${map}_us = hist((nsecs - @${map}_since[tid]) / 1000);`,
    `  delete(@${map}_since[tid]);`,
    "}",
  ];
}

function onCall(names, action) {
  const entry = findProbe("uprobe", names);
  return entry === undefined ? [] : [`${entry}${action}`];
}

/** Maps that only help. */
const startTimes = [];
// Threads wake each other by reads of up to 1 KiB: not of interest.
const isFileRead = " /arg2 > 1024/";
const program = [
  ...onCall(["open64", "open"], " { @opened[str(arg0)] = count(); }"),
  ...onCall(["uv_fs_read", "uv__fs_read"], " { @node_reads = count(); }"),
  ...onCall(["read"], `${isFileRead} { @read_asks_bytes = hist(arg2); }`),
  ...timeCalls(["read"], "read", isFileRead),
  ...timeCalls(["deflate", "Cr_z_deflate"], "deflate", ""),
  ...onCall(["EVP_DigestUpdate"], " { @hashed_bytes = hist(arg2); @hashed_total = sum(arg2); }"),
  ...onCall(["malloc"], " { @mallocs = count(); }"),
  'interval:s:1 { time("%H:%M:%S "); print(@node_reads); }',
  `interval:s:${SECONDS} { exit(); }`,
  `END { print(@opened, 10); clear(@opened); ${startTimes.map((map) => `clear(${map}); `).join("")}}`,
].join("\n");

say(`trapline -p ${pid} -e '${program}'`);
say();
const tracer = spawn(command, ["-p", `${pid}`, "-e", program], {
  stdio: ["ignore", "inherit", "inherit"],
});
const ended = new Promise((resolve) => tracer.once("close", resolve));
process.on("SIGINT", () => {}); // The tracer gets it as well, and ends cleanly.

const sites = await waitForSites();
if (sites.length > 0) say(`what was done to the code of process ${pid}:`);
for (const { name, mechanism, before: old, now, detour } of sites) {
  say(`  ${name}`);
  say(`      ${hex(old)}  ->  ${hex(now)}   ${mechanism} to 0x${detour.toString(16)}`);
}
const during = readTextFingerprint(pid);
if (during.digest !== before.digest) say(`its text: ${describe(during)}: differs`);
say();

const code = await ended;
const after = readTextFingerprint(pid);
const { changed } = compareText(before, after);
const isRestored = changed.length === 0 && readChangedSites(pid).length === 0;
say();
say(`its text: ${describe(after)}${after.digest === before.digest ? ": the same as before" : ""}`);
for (const { path } of changed) say(`  differs: ${path}`);
workload.kill("SIGTERM");
await new Promise((resolve) => workload.once("exit", resolve));
say(`process ${pid} went on all the time: ${lastWords}`);
say();
say("now your turn:  trapline ps, trapline doctor, trapline --help");
process.exit(code === 0 && isRestored && lastWords.endsWith(" 0 wrong results") ? 0 : 1);

function describe({ digest, totalBytes, mappings }) {
  return `sha256 ${digest.slice(0, 16)}... of ${totalBytes} bytes in ${mappings.length} mappings`;
}

/** Waits until the command has armed its sites and adds no more. */
async function waitForSites() {
  let known = [];
  for (let unchanged = 0; unchanged < 4 && tracer.exitCode === null; ) {
    await sleep(50);
    const now = readChangedSites(pid);
    unchanged = now.length > 0 && now.length === known.length ? unchanged + 1 : 0;
    known = now;
  }
  return known;
}

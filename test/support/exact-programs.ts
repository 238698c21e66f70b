/**
 * Programs of one thread that do the same every time, and how often each of their instructions is then executed. Each
 * starts by waiting for a line on standard input; what comes behind that is counted.
 *
 * The counts come from single steps (test/fixtures/step-counter.c), which take a minute; they are kept in the temporary
 * folder until a program or the work changes.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, realpathSync, renameSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ProcessImages } from "../../src/target/process/images.ts";
import { readMaps } from "../../src/target/process/proc-fs.ts";
import { buildFixture } from "./fixtures.ts";
import { UnmanagedChild } from "./unmanaged-child.ts";

export interface ExactProgram {
  readonly name: string;
  readonly argv: readonly string[];
  /** What is sent to it. */
  readonly input: string;
}

const sql = `create table t(a integer primary key, b text, c real);
with recursive n(i) as (select 1 union all select i+1 from n where i<12) insert into t select i, 'row ' || (i*7919 % 101), i*1.5 from n;
select count(*), sum(a), max(b), total(c) from t where b like 'row 1%';
delete from t where a % 7 = 3;
select group_concat(b, ',') from (select distinct b from t order by b limit 12);
.quit
`;

const python = `
import os, sys
sys.stdin.readline()
class Node:
    def __init__(self, value, rest): self.value, self.rest = value, rest
def walk(node):
    while node is not None:
        yield node.value
        node = node.rest
chain = None
for i in range(12): chain = Node(i * 7 % 11, chain)
try:
    raise ValueError(sum(walk(chain)))
except ValueError as error:
    print(error, sorted({'k%d' % v: v * 1.5 for v in walk(chain)}.items())[:5], 'a-b-c'.split('-'), 12345678901234567890 ** 3, flush=True)
os._exit(4)
`;

const bash = `total=0; for ((i = 0; i < 8; i++)); do s="item $i"; case $s in *3) total=$((total + i));; *) total=$((total ^ i));; esac; a[i]=\${s//item/x}; done; echo "$total \${a[*]:3:4}"; exit 3
`;

/** The programs that are installed. */
export function exactPrograms(): ExactProgram[] {
  const all: ExactProgram[] = [
    { name: "sqlite3", argv: ["/usr/bin/sqlite3", ":memory:"], input: sql },
    { name: "python3", argv: ["/usr/bin/python3", "-S", "-s", "-c", python], input: "go\n" },
    { name: "bash", argv: ["/bin/bash", "--norc", "-s"], input: bash },
    { name: "C++ exceptions", argv: [buildFixture("exact", { compiler: "g++" })], input: "go\n" },
  ];
  return all.filter(({ argv }) => existsSync(argv[0]!));
}

/** An instruction of a file: its address there and how often it is executed. */
export interface ExactCount {
  readonly path: string;
  readonly fileAddr: bigint;
  readonly count: number;
}

export interface ExactReference {
  readonly output: readonly string[];
  readonly counts: readonly ExactCount[];
}

const SLOTS = 1 << 18;

/** Counts appear here while steps are counted; elsewhere, under a name as long, when they are not: all runs are alike. */
const folder = join(tmpdir(), `trapline-counts-${process.getuid?.() ?? 0}`);
mkdirSync(folder, { recursive: true });
const running = join(folder, `running-${`${process.pid}`.padStart(8, "0")}`);
const unused = join(folder, `nothing-${`${process.pid}`.padStart(8, "0")}`);
process.on("exit", () => rmSync(unused, { force: true }));

const stepCounter = (): string =>
  buildFixture("step-counter", { flags: ["-shared", "-fPIC"], variant: "preload" });

/** A program that waits for its input, where every run finds the same addresses. */
export async function startExact({ argv }: ExactProgram, countsFile = unused): Promise<UnmanagedChild> {
  const variables = [
    `LD_PRELOAD=${stepCounter()}`,
    `STEP_COUNTS=${countsFile}`,
    "PYTHONHASHSEED=0",
    "PYTHONMALLOC=malloc",
    "LC_ALL=C",
  ];
  const child = await UnmanagedChild.start(["setarch", "-R", "env", "-i", ...variables, ...argv], {
    ready: false,
  });
  await untilReading(child.pid);
  return child;
}

/** Waits until a process sleeps in read(0, ...). */
async function untilReading(pid: number): Promise<void> {
  for (let tries = 0; ; tries++) {
    const call = readFileSync(`/proc/${pid}/syscall`, "latin1");
    if (call.startsWith("0 0x0 ")) return;
    if (tries > 2000) throw new Error(`process ${pid} does not read: ${call}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Sends the work; returns what the program prints, and how it ends. */
export async function finishExact(
  child: UnmanagedChild,
  { input }: ExactProgram,
  timeoutMs: number,
): Promise<string[]> {
  child.send(input);
  const lines: string[] = [];
  for (;;) {
    const line = await child.line(timeoutMs);
    lines.push(line);
    if (line.startsWith("status ")) return lines;
  }
}

export async function referenceOf(program: ExactProgram): Promise<ExactReference> {
  const { argv, input } = program;
  const facts = [
    2,
    argv,
    input,
    // Where things lie in memory depends on how long the names are that a program is given.
    stepCounter(),
    process.cwd(),
    statSync(realpathSync(argv[0]!)).mtimeMs,
    statSync("/lib/x86_64-linux-gnu/libc.so.6").mtimeMs,
  ];
  const digest = createHash("sha256").update(JSON.stringify(facts)).digest("hex").slice(0, 16);
  const kept = join(folder, digest);
  // Where everything lies does not depend on whether steps are counted.
  using plain = await startExact(program);
  const maps = readMaps(plain.pid);
  using images = ProcessImages.open(plain.pid);
  const biases = new Map<string, bigint | undefined>();
  const biasOf = (path: string) => {
    if (!biases.has(path)) biases.set(path, images.find(path)[0]?.bias);
    return biases.get(path);
  };
  for (const { path } of maps) if (path.startsWith("/")) biasOf(path);
  const output = await finishExact(plain, program, 30_000);
  if (!existsSync(kept)) {
    using stepped = await startExact(program, running);
    stepped.kill("SIGUSR2");
    await finishExact(stepped, program, 600_000);
    renameSync(running, kept);
  }
  const bytes = readFileSync(kept);
  const words = new BigUint64Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const counts: ExactCount[] = [];
  for (let slot = 0; slot < SLOTS; slot++) {
    const at = words[slot]!;
    const place = at === 0n ? undefined : maps.find((map) => at >= map.start && at < map.end);
    if (place === undefined || !place.path.startsWith("/") || place.path.includes("step-counter")) continue;
    const bias = biasOf(place.path);
    if (bias === undefined) continue;
    counts.push({ path: place.path, fileAddr: at - bias, count: Number(words[SLOTS + slot]!) });
  }
  return { output, counts };
}

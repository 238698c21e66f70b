/** A proof, printed for people or as one line of JSON. */

import { SIGTRAP } from "../../patch/index.ts";
import type { OutputFormat } from "../options.ts";
import { type DescribeAddress, type DetachProof, describeAction, signalName } from "./proof.ts";
import type { TextDifference } from "./text-snapshot.ts";

/** More threads than this are counted, not listed. */
const MOST_THREADS = 16;

export function printProof(proof: DetachProof, format: OutputFormat, describe: DescribeAddress): string {
  return format === "json"
    ? `${JSON.stringify({ type: "proof", data: proofJson(proof) })}\n`
    : proofText(proof, describe);
}

/** A process that has ended leaves nothing to be proved. */
export function printNoProof(pid: number, format: OutputFormat): string {
  return format === "json"
    ? `${JSON.stringify({ type: "proof", data: { pid, ended: true, holds: true, reasons: [] } })}\n`
    : `proof: process ${pid} has ended, or runs another program: nothing is left of what it was\n`;
}

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const address = (at: bigint): string => `0x${at.toString(16)}`;
const plural = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? "" : "s"}`;

function proofText(proof: DetachProof, describe: DescribeAddress): string {
  const { text, threads, memory, actions } = proof;
  const rows: [string, string][] = [];
  const say = (head: string, line: string) => rows.push([head, line]);
  say(
    "text",
    `${plural(text.ranges, "range")}, ${text.totalBytes} bytes: ${text.digestBefore === text.digestAfter ? "equal" : "DIFFERENT"}`,
  );
  say("", `sha256 ${proof.basis === "before" ? "before" : "by the journal"} ${text.digestBefore}`);
  say("", `sha256 now ${text.digestAfter}`);
  if (text.unlikeFilesBefore > 0)
    say("", `${plural(text.unlikeFilesBefore, "byte")} differed from the files before: by others`);
  if (text.added.length > 0)
    say(
      "",
      `loaded meanwhile: ${text.added.join(", ")}: ` +
        (text.addedDifferences.length === 0
          ? "as in the file"
          : `${plural(text.addedDifferences.length, "place")} not as in the file`),
    );
  if (text.gone.length > 0) say("", `unloaded meanwhile: ${text.gone.join(", ")}`);
  const inside = threads.filter(({ isInside }) => isInside).length;
  const frames = threads.reduce((sum, { signalFrames }) => sum + signalFrames, 0);
  const framesInside = threads.reduce((sum, { signalFramesInside }) => sum + signalFramesInside, 0);
  say(
    "threads",
    `${threads.length} stood, ${inside} in our memory; ` +
      `${plural(frames, "signal frame")}, ${framesInside} into our memory`,
  );
  for (const { tid, where } of threads.slice(0, MOST_THREADS)) say("", `${tid} at ${where}`);
  if (threads.length > MOST_THREADS) say("", `and ${threads.length - MOST_THREADS} more`);
  say(
    "stacks",
    `${plural(proof.stackWords, "word")} above the stack pointers, ${proof.lookAlikes} of them look like addresses of ours` +
      (proof.lookAlikes === 0 ? "" : ": left over from calls that are done; nothing returns to them"),
  );
  for (const { tid, at, value } of proof.shownLookAlikes)
    say("", `thread ${tid}, ${address(at)}: ${describe(value)}`);
  say(
    "memory",
    `${plural(memory.ranges, "range")}, ${memory.totalBytes} bytes: ` +
      (memory.left.length === 0 ? "all unmapped" : `${memory.left.length} LEFT`) +
      `; ${plural(proof.descriptors.length, "descriptor")} of ours open`,
  );
  if (proof.otherTracers.length > 0)
    say(
      "others",
      `what ${proof.otherTracers.map((tracer) => `process ${tracer}`).join(", ")} has changed is not looked at`,
    );
  for (const { signal, before, after } of actions) {
    const isSame = hexOf(before) === hexOf(after);
    // Those that are as ever are one line.
    if (signal !== SIGTRAP && isSame) continue;
    say(signalName(signal), `${describeAction(after, describe)}${isSame ? ", as before" : ": DIFFERENT"}`);
  }
  const same = actions.filter(
    ({ signal, before, after }) => signal !== SIGTRAP && hexOf(before) === hexOf(after),
  );
  if (same.length > 0) say("faults", `${same.map(({ signal }) => signalName(signal)).join(", ")}: as before`);
  const verdict = proof.holds ? "is as it was before" : "is NOT as it was before";
  const lines = rows.map(([head, line]) => `  ${head.padEnd(9)}${line}\n`).join("");
  return `proof: process ${proof.pid} ${verdict}\n${lines}${proof.reasons.map((reason) => `  NOT      ${reason}\n`).join("")}`;
}

const actionJson = ({ before, after }: DetachProof["actions"][number]) => ({
  before: hexOf(before),
  after: hexOf(after),
  equal: hexOf(before) === hexOf(after),
});

function proofJson(proof: DetachProof): unknown {
  const { pid, holds, reasons, basis, text, actions, memory } = proof;
  const places = (differences: readonly TextDifference[]) =>
    differences.map(({ at, path, expected, found }) => ({
      at: address(at),
      path,
      before: hexOf(expected),
      after: hexOf(found),
    }));
  return {
    pid,
    holds,
    reasons,
    text: {
      basis,
      ranges: text.ranges,
      bytes: text.totalBytes,
      before: text.digestBefore,
      after: text.digestAfter,
      equal: text.digestBefore === text.digestAfter,
      differences: places(text.differences),
      moreDifferences: text.moreDifferences,
      unlikeFilesBefore: text.unlikeFilesBefore,
      loaded: text.added,
      loadedUnlikeFiles: places(text.addedDifferences),
      unloaded: text.gone,
    },
    threads: proof.threads.map(({ ip, isInside, ...rest }) => ({
      ...rest,
      ip: address(ip),
      inside: isInside,
    })),
    stacks: {
      words: proof.stackWords,
      lookAlikes: proof.lookAlikes,
      shown: proof.shownLookAlikes.map(({ tid, at, value }) => ({
        tid,
        at: address(at),
        value: address(value),
      })),
    },
    occupants: proof.occupants.map(({ tid, ip, how }) => ({ tid, ip: address(ip), how })),
    memory: {
      ranges: memory.ranges,
      bytes: memory.totalBytes,
      left: memory.left.map(({ start, end }) => ({ start: address(start), end: address(end) })),
    },
    descriptors: proof.descriptors.map(Number),
    otherTracers: proof.otherTracers,
    sigtrap: actionJson(actions.find(({ signal }) => signal === SIGTRAP)!),
    signals: Object.fromEntries(actions.map((action) => [signalName(action.signal), actionJson(action)])),
  };
}

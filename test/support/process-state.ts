/**
 * What a tracer could leave behind in a process, as plain data to be compared: its text, mappings, descriptors, threads
 * and what happens on SIGTRAP.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { expect } from "vitest";
import {
  compareText,
  readTextFingerprint,
  type TextFingerprint,
} from "../../src/session/leave/fingerprint.ts";
import { readMaps } from "../../src/target/process/proc-fs.ts";

export interface ProcessState {
  readonly text: TextFingerprint;
  /** All mappings; only the ends of heap and stack, which grow by themselves, are left out. */
  readonly mappings: readonly string[];
  readonly descriptors: readonly string[];
  readonly threads: readonly string[];
  /** Whether SIGTRAP is caught, ignored, blocked. */
  readonly sigtrap: readonly boolean[];
  readonly tracerPid: number;
}

export function readProcessState(pid: number): ProcessState {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  const field = (name: string) => new RegExp(`^${name}:\\s+(\\S+)`, "m").exec(status)?.[1] ?? "";
  return {
    text: readTextFingerprint(pid),
    mappings: readMaps(pid).map(({ start, end, perms, offset, path }) => {
      const shownEnd = path === "[heap]" || path === "[stack]" ? "" : end.toString(16);
      const shownStart = path === "[stack]" ? "" : start.toString(16);
      return `${shownStart}-${shownEnd} ${perms} ${offset.toString(16)} ${path}`;
    }),
    descriptors: readDescriptors(pid),
    threads: readdirSync(`/proc/${pid}/task`),
    sigtrap: ["SigCgt", "SigIgn", "SigBlk"].map((name) => ((BigInt(`0x${field(name)}`) >> 4n) & 1n) === 1n),
    tracerPid: Number(field("TracerPid")),
  };
}

/** Numbers of a process's descriptors and what they lead to. */
export function readDescriptors(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return `${fd} ${readlinkSync(`/proc/${pid}/fd/${fd}`)}`;
    } catch {
      return `${fd} closed`;
    }
  });
}

/** The process is exactly as it was: for programs that map, open and start nothing by themselves meanwhile. */
export function expectUnchanged(pid: number, before: ProcessState): void {
  const after = readProcessState(pid);
  expect(after.mappings).toEqual(before.mappings);
  expect({ ...after, mappings: [], text: after.text.digest }).toEqual({
    ...before,
    mappings: [],
    text: before.text.digest,
  });
}

/** Nothing of ours is in the process and its text is as it was: for programs that go on with their own business. */
export function expectNoTrace(pid: number, before: ProcessState): void {
  const after = readProcessState(pid);
  expect(compareText(before.text, after.text).changed).toEqual([]);
  expect(findOurMappings(pid)).toEqual(before.mappings.filter(isAnonymousCode));
  expect(after.descriptors.filter((line) => line.includes("memfd:trapline"))).toEqual([]);
  // Not whether it is blocked: while it starts a thread, glibc blocks all signals by itself.
  const handled = ({ sigtrap, tracerPid }: ProcessState) => ({ sigtrap: sigtrap.slice(0, 2), tracerPid });
  expect(handled(after)).toEqual(handled(before));
}

/** Shared memory with our name, and executable memory without a file. */
export function findOurMappings(pid: number): string[] {
  return readMaps(pid)
    .map(
      ({ start, end, perms, offset, path }) =>
        `${start.toString(16)}-${end.toString(16)} ${perms} ${offset.toString(16)} ${path}`,
    )
    .filter((line) => line.includes("memfd:trapline") || isAnonymousCode(line));
}

function isAnonymousCode(line: string): boolean {
  return /^\S+ r-xp 0 $/.test(line);
}

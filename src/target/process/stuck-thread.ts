/** Why a thread cannot be stopped, in words: for whoever waits for it. */
import { readFileSync } from "node:fs";
import { findVforkChild } from "./address-space.ts";

export function describeStuckThread(pid: number, tid: number): string {
  const state = /^State:\s+(\S)/m.exec(readIfThere(`/proc/${pid}/task/${tid}/status`))?.[1] ?? "gone";
  const child = findVforkChild(pid);
  if (child !== undefined)
    return `it waits in vfork for process ${child.pid} (${child.name}) to execute a program or to end`;
  const frozen = findFrozenGroup(pid);
  if (frozen !== undefined) return `its control group ${frozen} is frozen`;
  return state === "D"
    ? "it waits in the kernel, for a disk perhaps (state D)"
    : `the kernel does not stop it (state ${state})`;
}

/** The control group of a process if it is frozen, in either version of them (cgroups(7)). */
export function findFrozenGroup(pid: number): string | undefined {
  for (const line of readIfThere(`/proc/${pid}/cgroup`).split("\n")) {
    const [id, controllers, path] = line.split(":");
    if (path === undefined) continue;
    const folders =
      id === "0" ? ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] : [`/sys/fs/cgroup/${controllers}`];
    for (const folder of folders)
      for (const [file, isFrozen] of [
        ["freezer.state", /^FR/],
        ["cgroup.events", /^frozen 1$/m],
      ] as const)
        if (isFrozen.test(readIfThere(`${folder}${path}/${file}`))) return path;
  }
  return undefined;
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}

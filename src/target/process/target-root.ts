/**
 * Paths inside a process's own view of the file system, as paths that the tracer can open.
 *
 * `/proc/PID/root/…` leads into the target's mount namespace, but the kernel resolves an absolute symbolic link behind
 * it from the tracer's root: `/proc/PID/root/lib/libc.so -> /usr/lib/libc.so` would end in the tracer's own libc. So
 * links are followed here, one component at a time.
 */
import { type BigIntStats, readlinkSync, statSync } from "node:fs";
import { processFolder, readProcLink } from "./proc-fs.ts";

/** As many as the kernel follows. */
const MAX_LINKS = 40;

export class TargetRoot {
  /** What to put before a path of the target. */
  readonly prefix: string;
  /** Where the target's root lies in its mount namespace: not `/` for a process that has called chroot. */
  readonly inNamespace: string;

  constructor(prefix: string, inNamespace = "/") {
    this.prefix = prefix;
    this.inNamespace = inNamespace;
  }

  static of(pid: number): TargetRoot {
    let inNamespace = "/";
    try {
      inNamespace = readProcLink(pid, "root");
    } catch {
      // Without permission for the link, paths are taken as they are.
    }
    return new TargetRoot(`${processFolder(pid)}/root`, inNamespace);
  }

  /** A path as the kernel shows it in maps (from the root of the mount namespace), from the target's root. */
  fromNamespace(path: string): string {
    const root = this.inNamespace;
    return root !== "/" && path.startsWith(`${root}/`) ? path.slice(root.length) : path;
  }

  /** A path that the tracer can open for an absolute path of the target; links followed, none left. */
  toOpen(path: string): string {
    const done: string[] = [];
    const left = path
      .split("/")
      .filter((part) => part !== "" && part !== ".")
      .reverse();
    for (let links = 0; left.length > 0; ) {
      const part = left.pop()!;
      if (part === "..") {
        done.pop();
        continue;
      }
      const link = readLink(`${this.prefix}/${[...done, part].join("/")}`);
      if (link === undefined || ++links > MAX_LINKS) {
        done.push(part);
        continue;
      }
      if (link.startsWith("/")) done.length = 0;
      left.push(
        ...link
          .split("/")
          .filter((piece) => piece !== "" && piece !== ".")
          .reverse(),
      );
    }
    return `${this.prefix}/${done.join("/")}`;
  }

  /** What is at an absolute path of the target; undefined when nothing is or it may not be seen. */
  findStat(path: string): BigIntStats | undefined {
    return findStat(this.toOpen(path));
  }
}

export function findStat(path: string): BigIntStats | undefined {
  try {
    return statSync(path, { bigint: true });
  } catch {
    return undefined;
  }
}

function readLink(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}

/** A device number as /proc/PID/maps prints it. */
export function deviceText(dev: bigint): string {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n);
  const minor = (dev & 0xffn) | ((dev >> 12n) & 0xffffff00n);
  return `${major.toString(16).padStart(2, "0")}:${minor.toString(16).padStart(2, "0")}`;
}

/**
 * Images that a target has not loaded yet, or may unload: which attach points are to wait for one, and which mapped images
 * may go and come back.
 *
 * An attach point waits if the loader would find a file for it: by its path, or by its name where the loader looks for this
 * process (its own LD_LIBRARY_PATH, the folders that its images name, the configured ones). If that file does not have the
 * function, it never will, and that is said at once. What no file is found for is a mistake of the user's.
 */
import { readFileSync } from "node:fs";
import { dirname } from "node:path";
import { isGlob } from "../../elf/index.ts";
import type { ElfCache } from "../../target/process/elf-cache.ts";
import { findImageFiles, resolveInFile } from "../../target/process/image-search.ts";
import type { ProcessImages } from "../../target/process/images.ts";
import { describeLocationRefusal } from "../../target/process/location-refusal.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import { processFolder } from "../../target/process/proc-fs.ts";
import { TargetRoot } from "../../target/process/target-root.ts";
import { type AttachRequest, type ProbeProblem, placeOf } from "./probe-resolution.ts";

/** Files of a pattern that are looked into for a function: there may be thousands in a folder. */
const MOST_FILES = 200;

export type PendingImage =
  /** The file that is waited for. */
  | { readonly kind: "file"; readonly path: string }
  /** There are files, and none has the place. */
  | { readonly kind: "refused"; readonly reason: string; readonly hint: string | undefined }
  | { readonly kind: "none" };

/** What an attach point whose image is not mapped may wait for. */
export function findPendingImage(
  images: ProcessImages,
  cache: ElfCache,
  { attachPoint, usdt }: AttachRequest,
): PendingImage {
  const root = TargetRoot.of(images.pid);
  const files = findImageFiles(attachPoint.image, {
    root,
    env: environmentOf(images.pid),
    folders: foldersOf(images),
  });
  let refused: PendingImage = { kind: "none" };
  for (const path of files.slice(0, MOST_FILES)) {
    if (usdt !== undefined) return { kind: "file", path };
    try {
      const place = placeOf(attachPoint);
      const found = resolveInFile(cache, root.toOpen(path), place);
      // Which implementation a name stands for is decided when it is loaded.
      if (found.kind === "found" || found.refusal.reason === "resolver") return { kind: "file", path };
      if (refused.kind === "none" && !isGlob(attachPoint.image)) {
        const { refusal } = found;
        const { message, hint } = describeLocationRefusal({
          kind: "place",
          image: path,
          refusal,
          definedIn: [],
          fileAddress: undefined,
        });
        refused = { kind: "refused", reason: message, hint };
      }
    } catch {
      // No image that could be loaded.
    }
  }
  return refused;
}

/**
 * How a target comes: `running`: what is not there must be a file that it may load. `starting`: a command that has loaded nothing
 * yet. `replaced`: a target that has become another program, which may have nothing of what the script names.
 */
export type Arrival = "running" | "starting" | "replaced";

export interface SortedProblems {
  /** What ends the attempt. */
  readonly fatal: readonly ProbeProblem[];
  readonly pending: readonly AttachRequest[];
  /** What the user is to be told. */
  readonly notices: readonly string[];
}

/** What becomes of attach points that were not found in a target. */
export function sortProblems(
  images: ProcessImages,
  cache: ElfCache,
  requests: readonly AttachRequest[],
  problems: readonly ProbeProblem[],
  arrival: Arrival,
): SortedProblems {
  const fatal: ProbeProblem[] = [];
  const pending: AttachRequest[] = [];
  const notices: string[] = [];
  for (const problem of problems) {
    const request = requests.find(({ attachPoint }) => attachPoint.name === problem.probe);
    const mayCome = problem.isMissingImage && request !== undefined;
    if (mayCome && arrival !== "running") pending.push(request);
    else if (arrival === "replaced") notices.push(`${problem.probe}: ${problem.reason}`);
    else if (!mayCome || !hasLoader(images)) fatal.push(problem);
    else {
      const found = findPendingImage(images, cache, request);
      if (found.kind === "none") fatal.push(problem);
      else if (found.kind === "refused") fatal.push({ ...problem, reason: found.reason, hint: found.hint });
      else {
        pending.push(request);
        notices.push(`${problem.probe} waits until ${found.path} is loaded`);
      }
    }
  }
  return { fatal, pending, notices };
}

/** A statically linked program loads nothing. */
function hasLoader(images: ProcessImages): boolean {
  try {
    const { program } = images;
    return program === undefined || program.elf.interpreter !== undefined || images.list.length > 1;
  } catch {
    return true;
  }
}

function environmentOf(pid: number): Readonly<Record<string, string>> {
  try {
    const text = readFileSync(`${processFolder(pid)}/environ`, "utf8");
    return Object.fromEntries(
      text
        .split("\0")
        .filter((entry) => entry.includes("="))
        .map((entry) => [entry.slice(0, entry.indexOf("=")), entry.slice(entry.indexOf("=") + 1)]),
    );
  } catch {
    return {};
  }
}

/** Where the mapped images have their libraries from, by what they say and by where they are. */
function foldersOf(images: ProcessImages): string[] {
  const folders = images.list.flatMap((image) => {
    const own = dirname(image.path);
    try {
      const named = image.elf.searchFolders.map((folder) => folder.replace(/\$ORIGIN|\$\{ORIGIN\}/g, own));
      return [...named, own];
    } catch {
      return [own];
    }
  });
  return [...new Set(folders)].filter((folder) => folder.startsWith("/"));
}

/**
 * Images that the process can unload: all but the program, its loader, and the libraries that those ask for, directly or
 * through others.
 */
export function findUnloadable(images: ProcessImages): Set<MappedImage> {
  const unloadable = new Set(images.list);
  const bySoname = new Map<string, MappedImage>();
  for (const image of images.list)
    for (const name of [image.name, image.soname()]) if (name !== undefined) bySoname.set(name, image);
  const pending = [images.program];
  for (let image = pending.pop(); image !== undefined || pending.length > 0; image = pending.pop()) {
    if (image === undefined || !unloadable.delete(image)) continue;
    try {
      const { needed, interpreter } = image.elf;
      for (const name of needed) pending.push(bySoname.get(name));
      if (interpreter !== undefined) pending.push(...images.find(interpreter));
    } catch {
      // Unreadable: what it asks for counts as unloadable.
    }
  }
  return unloadable;
}

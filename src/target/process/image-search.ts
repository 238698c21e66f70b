/**
 * Images by name on disk, where no process has mapped them: to list what could be probed, and to check a probe on a
 * library that a command will load later.
 *
 * Programs are looked for along PATH and libraries where the loader looks: LD_LIBRARY_PATH, the folders of
 * /etc/ld.so.conf, the standard folders, and musl's. The order is the loader's, so the first match of a plain name is
 * what a program without its own search path would get; RPATH and RUNPATH are not followed.
 */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { resolve } from "node:path";
import {
  type ElfFile,
  type FileLocation,
  findPlace,
  type Place,
  type PlaceRefusal,
} from "../../elf/index.ts";
import type { ElfCache } from "./elf-cache.ts";
import { kindOfName, selectByName } from "./image-name.ts";
import { TargetRoot } from "./target-root.ts";

const STANDARD_FOLDERS = [
  "/lib/x86_64-linux-gnu",
  "/usr/lib/x86_64-linux-gnu",
  "/lib64",
  "/usr/lib64",
  "/lib",
  "/usr/lib",
  "/usr/local/lib",
];

/** Includes in ld.so.conf can include again; deeper than this is a loop. */
const MAX_INCLUDES = 8;

export interface ImageSearchOptions {
  /** Where `/` of the searched system is; the tracer's own without it. */
  readonly root?: TargetRoot;
  readonly env?: { readonly PATH?: string | undefined; readonly LD_LIBRARY_PATH?: string | undefined };
  /** Folders to look in before the configured ones: those that a program itself names. */
  readonly folders?: readonly string[];
}

/**
 * Paths (as seen from the root) of the files that an image name means: for a path itself if it exists, for a plain
 * name the first folder's, for a pattern all; a file reachable by several paths comes once.
 */
export function findImageFiles(name: string, options: ImageSearchOptions = {}): string[] {
  const root = options.root ?? new TargetRoot("");
  const env = options.env ?? process.env;
  const kind = kindOfName(name);
  if (kind === "path") {
    const path = resolve(name);
    return root.findStat(path)?.isFile() ? [path] : [];
  }
  const folders =
    kind === "pattern" && name.includes("/")
      ? [name.slice(0, name.lastIndexOf("/")) || "/"]
      : [
          ...splitPath(env.PATH),
          ...splitPath(env.LD_LIBRARY_PATH),
          ...(options.folders ?? []),
          ...configuredFolders(root),
          ...STANDARD_FOLDERS,
        ];
  const seen = new Set<string>();
  const found: string[] = [];
  for (const folder of new Set(folders)) {
    const files = listFolder(root, folder).map((file) => ({
      path: `${folder === "/" ? "" : folder}/${file}`,
    }));
    const selected = selectByName(name, files).filter(({ path }) => {
      const stat = root.findStat(path);
      // Among the libraries are linker scripts: /usr/lib/x86_64-linux-gnu/libc.so is text.
      if (!stat?.isFile() || !beginsAsElf(root.toOpen(path)) || seen.has(`${stat.dev}:${stat.ino}`))
        return false;
      seen.add(`${stat.dev}:${stat.ino}`);
      return true;
    });
    found.push(...selected.map(({ path }) => path));
    if (kind === "name" && found.length > 0) break;
  }
  return found;
}

function beginsAsElf(path: string): boolean {
  let fd: number | undefined;
  try {
    fd = openSync(path, "r");
    const magic = Buffer.alloc(4);
    return readSync(fd, magic, 0, 4, 0) === 4 && magic.toString("latin1") === "\x7fELF";
  } catch {
    return false;
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

function splitPath(path: string | undefined): string[] {
  return (path ?? "").split(":").filter((folder) => folder.startsWith("/"));
}

function listFolder(root: TargetRoot, folder: string): string[] {
  try {
    return readdirSync(root.toOpen(folder)).sort();
  } catch {
    return [];
  }
}

/** The folders that /etc/ld.so.conf names, with its includes. */
function configuredFolders(root: TargetRoot, path = "/etc/ld.so.conf", depth = 0): string[] {
  let text: string;
  try {
    text = readFileSync(root.toOpen(path), "utf8");
  } catch {
    return [];
  }
  return text.split("\n").flatMap((line) => {
    const content = line.replace(/#.*/, "").trim();
    const include = /^include\s+(\S+)/.exec(content)?.[1];
    if (include === undefined) return content.startsWith("/") ? [content] : [];
    if (depth >= MAX_INCLUDES) return [];
    const pattern = include.startsWith("/") ? include : `/etc/${include}`;
    const folder = pattern.slice(0, pattern.lastIndexOf("/"));
    const files = listFolder(root, folder).map((file) => ({ path: `${folder}/${file}` }));
    return selectByName(pattern, files).flatMap((file) => configuredFolders(root, file.path, depth + 1));
  });
}

/** Places in a file that no process has mapped; addresses are file addresses. */
export type FileResolution =
  | { readonly kind: "found"; readonly elf: ElfFile; readonly locations: readonly FileLocation[] }
  | { readonly kind: "refused"; readonly refusal: PlaceRefusal };

/** Finds a place in a file. Throws what opening throws, and `ElfError`. */
export function resolveInFile(cache: ElfCache, path: string, place: Place): FileResolution {
  const { elf } = cache.open(path, path)!;
  const { locations, refusal } = findPlace(elf, place);
  return refusal ? { kind: "refused", refusal } : { kind: "found", elf, locations };
}

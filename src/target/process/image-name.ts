/**
 * How a probe names an image, and which images that means.
 *
 * From the most to the least literal: a path; a base name (`libc.so.6`); a short name, which is the base name without
 * version and extension (`libc` for `libc.so.6` and `libc-2.31.so`, `libstdc++` for `libstdc++.so.6.0.30`); a soname.
 * A pattern with `*`, `?` or `[` is matched against the path when it has a slash, else against the base name.
 * musl's loader is its libc, so `libc` means `ld-musl-*.so.1` too.
 */
import { Glob, isGlob } from "../../elf/index.ts";

/** What an image is known by. */
export interface ImageNames {
  /** Path as the target sees it. */
  readonly path: string;
  /** Asked for only when the path does not match. */
  readonly soname?: () => string | undefined;
}

export type NameKind = "pattern" | "path" | "name";

/** How a probe's image name is to be understood. */
export function kindOfName(name: string): NameKind {
  return isGlob(name) ? "pattern" : name.includes("/") ? "path" : "name";
}

export function baseName(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** `libc` for `libc.so.6`, `libc-2.31.so`, `ld-musl-x86_64.so.1`; the name itself when it is not a library's. */
export function shortName(name: string): string {
  if (/^ld-musl-.*\.so\.1$/.test(name)) return "libc";
  const match = /^(.+?)(?:-\d+(?:\.\d+)+)?\.so(?:\..+)?$/.exec(name);
  return match?.[1] ?? name;
}

/** Whether a name without wildcards and slashes means a file of this base name. */
export function namesFile(name: string, fileName: string): boolean {
  return name === fileName || name === shortName(fileName);
}

/**
 * The images that a name means: of the ways of naming, the first that selects any decides. Paths are compared as text;
 * whoever can look at files also compares what the paths lead to.
 */
export function selectByName<T extends ImageNames>(name: string, images: readonly T[]): T[] {
  if (kindOfName(name) === "pattern") {
    const glob = new Glob(name);
    return images.filter((image) => glob.matches(name.includes("/") ? image.path : baseName(image.path)));
  }
  if (name.includes("/")) return images.filter((image) => image.path === name);
  const rules: ReadonlyArray<(image: T) => boolean> = [
    (image) => baseName(image.path) === name,
    (image) => shortName(baseName(image.path)) === name,
    (image) => {
      const soname = image.soname?.();
      return soname !== undefined && namesFile(name, soname);
    },
  ];
  for (const rule of rules) {
    const selected = images.filter(rule);
    if (selected.length > 0) return selected;
  }
  return [];
}

/** Names by which the images could have been meant, for suggestions. */
export function nameableAs(images: readonly ImageNames[]): string[] {
  const names = images.flatMap(({ path }) => [baseName(path), shortName(baseName(path))]);
  return [...new Set(names)];
}

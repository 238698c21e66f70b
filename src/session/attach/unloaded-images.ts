/**
 * Points of images that a target has unloaded. Their text is gone, their detours are not: when the same file is loaded at the
 * same address again, which loaders like to do, they are armed again as they were. So a library that is loaded and unloaded
 * without end takes neither more code memory nor more of the journal for it.
 */
import type { ProbePoint } from "../../probe/probe-set.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import type { BuiltPoint } from "./point-builder.ts";

export interface UnloadedPoints {
  readonly points: readonly ProbePoint[];
  readonly built: readonly BuiltPoint[];
}

export class UnloadedImages {
  readonly #unloaded = new Map<string, UnloadedPoints>();

  keep(image: MappedImage, points: UnloadedPoints): void {
    if (points.points.length > 0) this.#unloaded.set(placeOf(image), points);
  }

  /** What an image had when it last lay where it lies now; it is no longer unloaded, then. */
  take(image: MappedImage): UnloadedPoints | undefined {
    const key = placeOf(image);
    const points = this.#unloaded.get(key);
    this.#unloaded.delete(key);
    return points;
  }
}

const placeOf = ({ dev, inode, start }: MappedImage): string => `${dev} ${inode} ${start}`;

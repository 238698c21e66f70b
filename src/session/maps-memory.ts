/**
 * The memory of a session's maps: made once, by huge pages of the machine or in the first target, and shared by all of them.
 * Without a target the tracer has its own.
 */
import { closeSync } from "node:fs";
import type { MapSpec } from "../bpf/index.ts";
import { type HugePages, hugePageBytes } from "../target/process/huge-memory.ts";
import type { Mapping } from "../target/process/libc.ts";
import { provideHugeMaps } from "./attach/arena-pages.ts";
import { layoutSharedMaps, SharedMaps, type SharedMapsLayout } from "./attach/shared-maps.ts";
import type { ArenaChoice } from "./options.ts";

export interface MapsMemoryInput {
  readonly specs: readonly MapSpec[];
  /** How many accounts are needed from the beginning, and how many at most come later; undefined: the usual number. */
  readonly accounts: number;
  readonly laterAccounts?: number | undefined;
  readonly arena: ArenaChoice;
}

export class MapsMemory implements Disposable {
  readonly layout: SharedMapsLayout;
  readonly #input: MapsMemoryInput;
  #maps: SharedMaps | undefined;
  #shared: { readonly mapping: Mapping; readonly fd: number } | undefined;
  #hugePages: HugePages | undefined;

  constructor(input: MapsMemoryInput) {
    this.#input = input;
    this.layout = layoutSharedMaps(input.specs, input.accounts, input.laterAccounts);
  }

  get maps(): SharedMaps {
    this.#maps ??= this.#open(new ArrayBuffer(this.layout.totalBytes));
    return this.#maps;
  }

  /** For a target to share; undefined: the first one makes it (`take`). */
  get fd(): number | undefined {
    return this.#shared?.fd;
  }

  /** The kind of huge pages that the maps lie in; undefined: none. */
  get hugePages(): HugePages | undefined {
    return this.#hugePages;
  }

  /** Size of those pages in bytes; undefined: 4 KiB. */
  get pageBytes(): number | undefined {
    return this.#hugePages && hugePageBytes[this.#hugePages];
  }

  /** Makes it if it is to be of huge pages. To be asked before a target is attached to. */
  provideHuge(): void {
    if (this.#maps !== undefined) return;
    const huge = provideHugeMaps(this.#input.arena, this.layout.totalBytes);
    if (huge === undefined) return;
    this.#hugePages = huge.pages;
    this.take(huge);
  }

  /** Takes over what was made. */
  take(shared: { readonly mapping: Mapping; readonly fd: number }): void {
    this.#shared = shared;
    this.#maps = this.#open(shared.mapping.buffer);
  }

  #open(buffer: ArrayBuffer): SharedMaps {
    return new SharedMaps(this.#input.specs, this.layout, buffer);
  }

  [Symbol.dispose](): void {
    if (this.#shared === undefined) return;
    this.#shared.mapping.unmap();
    closeSync(this.#shared.fd);
  }
}

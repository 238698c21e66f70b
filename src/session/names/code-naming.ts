/**
 * When the names of a target's code are given, and who learns of them: perf and a file for gdb as soon as there is time, a gdb
 * that is attached through the process's own list of code made at run time, where it has one.
 */
import { writeFileSync } from "node:fs";
import type { Journal } from "../../probe/journal.ts";
import type { ProcessImages } from "../../target/process/images.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import type { BuiltPoint, PointBuilder } from "../attach/point-builder.ts";
import { CODE_NAME_PREFIX, CodeNames, type NamedCode } from "./code-names.ts";
import { findDebugDescriptors, linkDebugEntry } from "./gdb-jit.ts";
import { symbolFileOf } from "./gdb-symbols.ts";
import { PerfMap, type PerfMapResult } from "./perf-map.ts";

/** Each is private memory of its own. */
const MOST_DEBUG_ENTRIES = 16;

export interface CodeNamingInput {
  readonly target: ProcessTarget;
  readonly images: ProcessImages;
  readonly journal: Journal;
  readonly journalMemory: AddrRange;
  readonly builder: () => Pick<PointBuilder, "programs" | "returnRuntime">;
  /** Whether perf, and a gdb that is attached, are to know them. */
  readonly perfMap: boolean;
  /** A file for gdb, written whenever there is new code. */
  readonly symbols?: string | undefined;
}

export class CodeNaming implements Disposable {
  /** Those that were given; `names` gives the others first. */
  readonly given = new CodeNames();
  /** Why gdb does not know the names, though the process has a list of such code. */
  gdbRefusal: string | undefined;
  readonly #input: CodeNamingInput;
  readonly #perfMap: PerfMap | undefined;
  #perfMapResult: PerfMapResult | undefined;
  /** Points whose code has no names yet. */
  readonly #unnamed: BuiltPoint[] = [];
  /** Names that gdb does not know yet. */
  readonly #unlinked: NamedCode[] = [];
  #debugEntries = 0;
  #isEnded = false;

  constructor(input: CodeNamingInput) {
    this.#input = input;
    this.#perfMap = input.perfMap ? PerfMap.find(input.target.pid) : undefined;
  }

  /** Gives names to what was built, soon: it takes longer than the rest of what is done before a target runs on. */
  add(built: readonly BuiltPoint[]): void {
    if (this.#unnamed.length === 0) setImmediate(() => this.#giveNow());
    this.#unnamed.push(...built);
  }

  /** What our code is called. */
  get names(): CodeNames {
    this.#giveNow();
    return this.given;
  }

  /** How far perf knows the names; undefined: it does not, or there are none yet. */
  get perfMapResult(): PerfMapResult | undefined {
    this.#giveNow();
    return this.#perfMapResult;
  }

  #giveNow(): void {
    const unnamed = this.#unnamed.splice(0);
    if (unnamed.length === 0) return;
    for (const point of unnamed) this.given.addPoint(point);
    const { programs, returnRuntime } = this.#input.builder();
    this.given.addPrograms(programs);
    if (returnRuntime !== undefined)
      this.given.add({ ...returnRuntime, name: `${CODE_NAME_PREFIX}return-table` });
    const fresh = this.given.takeFresh();
    this.#unlinked.push(...fresh);
    const { symbols } = this.#input;
    if (symbols !== undefined) writeFileSync(symbols, symbolFileOf(this.given.list));
    // What is taken out already is not announced any more.
    if (this.#perfMap !== undefined && !this.#isEnded) this.#perfMapResult = this.#perfMap.append(fresh);
  }

  /** Makes names that are new known to gdb, where the process has a list of code made at run time. */
  async link(): Promise<void> {
    if (this.#perfMap === undefined || this.#debugEntries >= MOST_DEBUG_ENTRIES) return;
    const { target, images, journal, journalMemory } = this.#input;
    const descriptors = findDebugDescriptors(images);
    if (descriptors.length === 0) return;
    this.#giveNow();
    const codes = this.#unlinked.splice(0);
    if (codes.length === 0) return;
    for (const descriptor of descriptors) {
      this.#debugEntries++;
      try {
        const why = await linkDebugEntry(target, journal, journalMemory, descriptor, codes);
        if (why !== undefined) this.gdbRefusal = why;
      } catch (error) {
        // Names are no reason to fail; a process that has ended is noticed elsewhere.
        this.gdbRefusal = error instanceof Error ? error.message : String(error);
      }
    }
  }

  /** The code is being taken out: nothing more is announced. */
  end(): void {
    this.#isEnded = true;
  }

  /** Takes back what perf was told. */
  withdraw(): void {
    this.end();
    this.#perfMap?.remove();
  }

  [Symbol.dispose](): void {
    this.#perfMap?.[Symbol.dispose]();
  }
}

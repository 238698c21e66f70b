/** What a run prints, one call for each thing; how it looks is the output's business. */
import type { MapEntry, MapView, OutputValue } from "./value.ts";

/** Gets ordinary text, whole lines or parts of them; to be written as UTF-8. */
export type Sink = (text: string) => void;

export interface PrintMapOptions {
  /** Only the largest so many entries; 0: all. */
  readonly top?: number;
  /** Integers are divided by this; 0 and 1: as they are. */
  readonly div?: bigint;
}

export interface Output {
  /** All probes are armed. */
  attachedProbes(probes: number): void;
  map(view: MapView, options?: PrintMapOptions): void;
  /** One element of a map: `print(@x[key])`. `name` with the `@`. */
  element(name: string, entry: MapEntry): void;
  /** `print()` of a value that is not a map. */
  value(value: OutputValue): void;
  /** Byte strings, complete: no newline is added. */
  printf(text: string): void;
  time(text: string): void;
  /** The joined words as a byte string, without the newline. */
  join(text: string): void;
  lostEvents(events: number | bigint): void;
  /** All events are printed; what follows are the maps that are left at the end. */
  endOfEvents(): void;
}

/**
 * Which bytes of the text belong to which probe point: those that it changes, those that it needs as they are, and the first
 * byte of each site, which may become an `int3` at any time. The one place where points that are planned together keep
 * out of each other's way.
 */
export class TextClaims {
  readonly #sites: Set<number>;
  readonly #written = new Set<number>();
  readonly #kept = new Set<number>();

  constructor(sites: Iterable<bigint>) {
    this.#sites = new Set(Array.from(sites, Number));
  }

  /** May these bytes be changed for the point at `site`? */
  mayWrite(start: bigint, lenBytes: number, site?: bigint): boolean {
    const own = site === undefined ? -1 : Number(site);
    for (let at = Number(start); at < Number(start) + lenBytes; at++)
      if (this.#written.has(at) || this.#kept.has(at) || (at !== own && this.#sites.has(at))) return false;
    return true;
  }

  /** Will these bytes stay as they are? */
  mayKeep(start: bigint, lenBytes: number): boolean {
    for (let at = Number(start); at < Number(start) + lenBytes; at++)
      if (this.#written.has(at) || this.#sites.has(at)) return false;
    return true;
  }

  write(start: bigint, lenBytes: number): void {
    for (let at = Number(start); at < Number(start) + lenBytes; at++) this.#written.add(at);
  }

  keep(start: bigint, lenBytes: number): void {
    for (let at = Number(start); at < Number(start) + lenBytes; at++) this.#kept.add(at);
  }
}

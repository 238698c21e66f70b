/**
 * Names close to one that was not found, for error messages.
 *
 * Closeness is the optimal string alignment distance (insert, delete, replace, swap of neighbours), computed with
 * a limit so that most of a large symbol table is dropped by length alone. A name that contains the wanted one
 * counts as close too: `thread_create` should suggest `pthread_create`.
 */

/** The distance of two names, or a number above `limit` when it is larger than that. */
export function editDistance(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) > limit) return limit + 1;
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    let smallest = i;
    for (let j = 1; j <= b.length; j++) {
      const same = a.charCodeAt(i - 1) === b.charCodeAt(j - 1);
      let cost = Math.min(row[j - 1]! + (same ? 0 : 1), row[j]! + 1, next[j - 1]! + 1);
      const swapped =
        i > 1 &&
        j > 1 &&
        a.charCodeAt(i - 1) === b.charCodeAt(j - 2) &&
        a.charCodeAt(i - 2) === b.charCodeAt(j - 1);
      if (swapped) cost = Math.min(cost, before[j - 2]! + 1);
      next.push(cost);
      smallest = Math.min(smallest, cost);
    }
    if (smallest > limit) return limit + 1;
    before = row;
    row = next;
  }
  return row[b.length]!;
}

/** How far a suggestion may be from a wanted name of this length. */
export function distanceLimit(wanted: string): number {
  return Math.min(4, Math.max(1, Math.ceil(wanted.length / 3)));
}

/** The characters of a name, folded into 32 bits. */
function lettersOf(name: string): number {
  let letters = 0;
  for (let i = 0; i < name.length; i++) letters |= 1 << (name.charCodeAt(i) & 31);
  return letters;
}

function countBits(bits: number): number {
  let count = 0;
  for (let rest = bits; rest !== 0; rest &= rest - 1) count++;
  return count;
}

/** Collects the closest names seen; names may repeat. */
export class NearestNames {
  readonly #wanted: string;
  readonly #letters: number;
  readonly #limit: number;
  readonly #found = new Map<string, number>();

  constructor(wanted: string) {
    this.#wanted = wanted.toLowerCase();
    this.#letters = lettersOf(this.#wanted);
    this.#limit = distanceLimit(wanted);
  }

  /** Whether a name of this length can be close at all: a name that contains the wanted one is never too long. */
  canTake(nameLength: number): boolean {
    return nameLength >= this.#wanted.length - this.#limit && nameLength <= this.#wanted.length + 24;
  }

  offer(name: string): void {
    if (this.#found.has(name) || !this.canTake(name.length)) return;
    const folded = name.toLowerCase();
    // Each letter of the wanted name that is nowhere in the other costs at least one edit.
    const missing = this.#letters & ~lettersOf(folded);
    if (countBits(missing) > this.#limit) return;
    const distance = editDistance(this.#wanted, folded, this.#limit);
    if (distance <= this.#limit) {
      this.#found.set(name, distance);
    } else if (this.#wanted.length >= 3 && folded.includes(this.#wanted)) {
      this.#found.set(name, 2 + (folded.length - this.#wanted.length) / 12);
    }
  }

  /** The closest names, best first. */
  best(count: number): string[] {
    return [...this.#found]
      .sort(([a, x], [b, y]) => x - y || a.length - b.length || (a < b ? -1 : 1))
      .slice(0, count)
      .map(([name]) => name);
  }
}

/** The names closest to `wanted`, best first. */
export function nearestNames(wanted: string, names: Iterable<string>, count = 3): string[] {
  const nearest = new NearestNames(wanted);
  for (const name of names) nearest.offer(name);
  return nearest.best(count);
}

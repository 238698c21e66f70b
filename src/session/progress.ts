/**
 * One line on the terminal that says what takes so long. It appears only when something takes longer than a moment,
 * is rewritten in place, and is gone when the work is done. Without a terminal nothing is written.
 *
 * Other messages must not be written while the line stands: `clear` first.
 */
import type { SessionIo } from "./options.ts";

/** Nothing is shown for work that is done by then. */
const APPEAR_AFTER_MS = 250;
const REWRITE_EVERY_MS = 80;
const ERASE_LINE = "\r\u001b[K";

export class Progress implements Disposable {
  readonly #io: SessionIo;
  readonly #now: () => number;
  #nextWriteMs: number;
  #isShown = false;

  constructor(io: SessionIo, now: () => number = () => performance.now()) {
    this.#io = io;
    this.#now = now;
    this.#nextWriteMs = now() + APPEAR_AFTER_MS;
  }

  /** Says what is being done, and how far it is: `load symbols (12 of 40)`. May be called as often as one likes. */
  show(what: string, done?: number, total?: number): void {
    const columns = this.#io.terminalColumns;
    if (columns === undefined) return;
    const nowMs = this.#now();
    if (nowMs < this.#nextWriteMs) return;
    this.#nextWriteMs = nowMs + REWRITE_EVERY_MS;
    const amount = done === undefined ? "" : total === undefined ? ` (${done})` : ` (${done} of ${total})`;
    // The last column stays free: some terminals go to the next line after it.
    this.#io.err.write(ERASE_LINE + `${what}${amount}`.slice(0, Math.max(columns - 1, 0)));
    this.#isShown = true;
  }

  /** Takes the line away. The next piece of work again has a moment before it is shown. */
  clear(): void {
    if (this.#isShown) this.#io.err.write(ERASE_LINE);
    this.#isShown = false;
    this.#nextWriteMs = this.#now() + APPEAR_AFTER_MS;
  }

  [Symbol.dispose](): void {
    this.clear();
  }
}

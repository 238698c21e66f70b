/** What actions print, as events that somebody waits for: an iterator with a queue behind it. */
import { type MapView, type Output, type OutputValue, printValue } from "../output/index.ts";

export type SessionEvent =
  /** `printf`, `time` and `join`: the text. */
  | { readonly kind: "text"; readonly probe: string; readonly text: string }
  /** `print` of a value. */
  | { readonly kind: "value"; readonly probe: string; readonly text: string }
  /** `print` of a map: read it with `Probe.map`. */
  | { readonly kind: "map"; readonly probe: string; readonly name: string }
  /** The probe's program has raised a fault, and the probe is disarmed; or the process has touched memory of the session. */
  | { readonly kind: "violation"; readonly probe: string; readonly text: string }
  /** So many events have found no room since the last time. */
  | { readonly kind: "lost"; readonly probe: string; readonly events: bigint };

/** Events that wait for a consumer that is slower than the program; the oldest go first. */
const MOST_WAITING = 100_000;

type Result = IteratorResult<SessionEvent, undefined>;

export class EventQueue implements AsyncIterableIterator<SessionEvent> {
  readonly #events: SessionEvent[] = [];
  readonly #waiting: ((result: Result) => void)[] = [];
  readonly #onEnd: () => void;
  #hasEnded = false;

  constructor(onEnd: () => void) {
    this.#onEnd = onEnd;
  }

  push(event: SessionEvent): void {
    const waiting = this.#waiting.shift();
    if (waiting !== undefined) waiting({ done: false, value: event });
    else {
      if (this.#events.length >= MOST_WAITING) this.#events.shift();
      this.#events.push(event);
    }
  }

  /** No more come; what waits is still delivered. */
  end(): void {
    this.#hasEnded = true;
    this.#onEnd();
    for (const waiting of this.#waiting.splice(0)) waiting({ done: true, value: undefined });
  }

  async next(): Promise<Result> {
    const event = this.#events.shift();
    if (event !== undefined) return { done: false, value: event };
    if (this.#hasEnded) return { done: true, value: undefined };
    return await new Promise((resolve) => this.#waiting.push(resolve));
  }

  async return(): Promise<Result> {
    this.#events.length = 0;
    this.end();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** An output that makes events of what one probe prints. */
  static outputOf(probe: string, send: (event: SessionEvent) => void): Output {
    const sendText = (text: string) =>
      send({ kind: "text", probe, text: Buffer.from(text, "latin1").toString("utf8") });
    const sendValue = (value: OutputValue) =>
      send({ kind: "value", probe, text: Buffer.from(printValue(value), "latin1").toString("utf8") });
    return {
      attachedProbes: () => {},
      printf: sendText,
      time: sendText,
      join: (text) => sendText(`${text}\n`),
      value: sendValue,
      map: (map: MapView) => send({ kind: "map", probe, name: map.name }),
      element: (name) => send({ kind: "map", probe, name }),
      lostEvents: (events) => send({ kind: "lost", probe, events: BigInt(events) }),
      endOfEvents: () => {},
    };
  }
}

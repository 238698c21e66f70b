/** Records of programs, performed one after the other. */
import type { Script } from "../lang/index.ts";
import { decodeEventId, decodeFields, decodeKey, decodeMapValue } from "../lang/index.ts";
import type { SessionIo, TraceOptions } from "./options.ts";
import type { SharedMaps } from "./shared-maps.ts";
import type { Targets } from "./targets.ts";
export class Actions {
  wantsExit = false;
  readonly i: { options: TraceOptions; io: SessionIo; script: Script; maps: SharedMaps; targets: Targets };
  constructor(input: {
    options: TraceOptions;
    io: SessionIo;
    script: Script;
    maps: SharedMaps;
    targets: Targets;
  }) {
    this.i = input;
  }
  attachedProbes(n: number) {
    this.i.io.out.write(`Attaching ${n} probe${n === 1 ? "" : "s"}...\n`);
  }
  poll(max: number): number {
    return this.i.maps.ring?.poll(max, (r: Uint8Array) => this.rec(r)) ?? 0;
  }
  drain() {
    this.i.maps.ring?.drain((r: Uint8Array) => this.rec(r));
  }
  rec(r: Uint8Array) {
    const ev = this.i.script.events[Number(decodeEventId(r))];
    if (ev === undefined) return;
    if (ev.kind === "exit") this.wantsExit = true;
    else
      this.i.io.out.write(
        ev.kind +
          " " +
          JSON.stringify("fields" in ev ? decodeFields(r, ev.fields) : [], (_k, v) =>
            typeof v === "bigint" ? v.toString() : v instanceof Uint8Array ? Buffer.from(v).toString() : v,
          ) +
          "\n",
      );
  }
  printMaps() {
    for (const m of this.i.script.maps) {
      const map = this.i.maps.maps[m.map];
      if (map === undefined || !("entries" in map)) continue;
      for (const e of map.entries())
        this.i.io.out.write(
          `${m.name} ${JSON.stringify([decodeKey(e.key, m), decodeMapValue([e.value], m)], (_k, v) => (typeof v === "bigint" ? v.toString() : v instanceof Uint8Array ? Buffer.from(v).toString() : v))}\n`,
        );
    }
  }
}

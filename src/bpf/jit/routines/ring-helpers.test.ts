/** Ring buffer helpers as compiled code does them, with the tracer's reader. */
import { describe, expect, it } from "vitest";
import { contextOf, insnsOf, nativeBpfOpener } from "../../../../test/support/native-bpf.ts";
import {
  HELPER_RINGBUF_DISCARD,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
  r0,
  r1,
  r2,
  r3,
  r6,
} from "../../index.ts";
import { RingConsumer, type RingMap } from "../../maps/index.ts";

const open = nativeBpfOpener();
const noContext = contextOf(() => 0n);
const emitRecord = (lenBytes: number, helper: number) =>
  insnsOf((b) => {
    const full = b.label();
    b.ldx(8, r6, r1, 0).ldMapFd(r1, 0).mov64(r2, lenBytes).mov64(r3, 0).call(HELPER_RINGBUF_RESERVE);
    b.jmp("eq", r0, 0, full);
    for (let at = 0; at < lenBytes; at += 8) b.stx(8, r0, at, r6);
    b.mov64(r1, r0).mov64(r2, 0).call(helper).mov64(r0, 1).bind(full);
  });
const openRing = (valueBytes: number, maxEntries: number) => {
  const native = open([{ name: "r", kind: "ringbuf", keyBytes: 0, valueBytes, maxEntries }]);
  const map = native.maps[0] as RingMap;
  const clock = { ms: 0 };
  const consumer = new RingConsumer(map.layout, native.memory, map.byteOffset, {
    nowMs: () => clock.ms,
    retireAfterMs: 100,
  });
  return { native, map, consumer, clock };
};
const first = (record: Uint8Array) => new DataView(record.buffer).getBigUint64(0, true);

describe("ring buffer", () => {
  it("records of different lengths over many laps, discarded ones left out", () => {
    const { native, consumer } = openRing(40, 8);
    const programs = [
      { lenBytes: 8, run: native.compile(emitRecord(8, HELPER_RINGBUF_SUBMIT)) },
      { lenBytes: 40, run: native.compile(emitRecord(40, HELPER_RINGBUF_SUBMIT)) },
      { lenBytes: 0, run: native.compile(emitRecord(24, HELPER_RINGBUF_DISCARD)) },
    ];
    for (let i = 0n; i < 100n; i++) {
      const { lenBytes, run } = programs[Number(i % 3n)]!;
      expect(
        native.run(
          run,
          contextOf(() => i),
        ),
      ).toBe(1n);
      const got: Uint8Array[] = [];
      consumer.poll(10, (record) => got.push(record));
      expect(got.map((record) => record.length)).toEqual(lenBytes === 0 ? [] : [lenBytes]);
      if (lenBytes > 0) expect(first(got[0]!)).toBe(i);
    }
    expect(consumer.discarded).toBe(33);
  });

  it("drops are exact", () => {
    const { native, consumer } = openRing(16, 16);
    const program = native.compile(emitRecord(16, HELPER_RINGBUF_SUBMIT));
    const results = Array.from({ length: 25 }, (_, i) =>
      native.run(
        program,
        contextOf(() => BigInt(i)),
      ),
    );
    expect(results.filter((result) => result === 1n).length).toBe(16);
    expect(consumer.dropped).toBe(9n);
    expect(consumer.poll(100, () => {})).toBe(16);
    expect(native.run(program, noContext)).toBe(1n);
  });

  it("steps over a cell that was retired, and uses it again after its late commit", () => {
    const { native, map, consumer, clock } = openRing(16, 4);
    const program = native.compile(emitRecord(16, HELPER_RINGBUF_SUBMIT));
    const late = map.reserve(16)!;
    consumer.poll(10, () => {});
    clock.ms = 100;
    consumer.poll(10, () => {});
    expect(consumer.retired).toBe(1);
    let delivered = 0;
    const put = (count: number) => {
      let stored = 0;
      for (let i = 0; i < count; i++) stored += Number(native.run(program, noContext));
      return stored;
    };
    for (let lap = 0; lap < 5; lap++) {
      expect(put(3)).toBe(3);
      delivered += consumer.poll(10, () => {});
    }
    expect(delivered).toBe(15);
    map.submit(late);
    expect(consumer.poll(10, () => {})).toBe(1);
    for (let lap = 0; lap < 5; lap++) {
      put(3);
      consumer.poll(10, () => {});
    }
    expect(put(5)).toBe(4);
    expect(consumer.corrupt).toBe(0);
  });

  it("a record that is longer than the map's is refused and not counted as dropped", () => {
    const { native, map } = openRing(16, 4);
    const { asm, written } = native.place((a, unit) =>
      unit.emit(
        {
          name: "long",
          insns: emitRecord(16, HELPER_RINGBUF_SUBMIT).map((insn) =>
            insn.imm === 16 ? { ...insn, imm: 17 } : insn,
          ),
        },
        native.prove(emitRecord(16, HELPER_RINGBUF_SUBMIT)),
        { keepsResult: a !== undefined },
      ),
    );
    expect(native.run({ program: written, entry: asm.addressOf(written.entry) }, noContext)).toBe(0n);
    expect(map.dropped).toBe(0n);
  });
});

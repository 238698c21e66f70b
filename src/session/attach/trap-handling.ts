/**
 * What happens in a target at an `int3` of ours: the handler of SIGTRAP, its table, and which points it knows.
 *
 * A point is in the table before any `int3` is written for it. When the table is full a larger one is installed with a
 * handler of its own, and the old one stays until the session leaves: threads may be in it. A session that came later keeps
 * our handler as the one before its own; then it is told there, not by the kernel.
 */
import {
  decodeSignalAction,
  emitTrapHandler,
  encodeSignalAction,
  SIGNAL_ACTION_BYTES,
  SIGTRAP,
  TrapTable,
} from "../../patch/index.ts";
import type { Journal } from "../../probe/journal.ts";
import type { ProbeSet } from "../../probe/probe-set.ts";
import { setSignalAction } from "../../probe/restoration.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import { askSignalActions, findChained, readOtherJournals } from "../leave/restore-process.ts";
import { CODE_NAME_PREFIX, type CodeNames } from "../names/code-names.ts";
import type { CodeSpaces } from "./code-space.ts";
import type { BuiltPoint, PointBuilder } from "./point-builder.ts";
import { PAGE } from "./session-memory.ts";

export interface TrapHandlingInput {
  readonly target: ProcessTarget;
  readonly journal: Journal;
  readonly journalMemory: AddrRange;
  /** Memory that system calls of the target may answer to. */
  readonly scratch: bigint;
  readonly spaces: CodeSpaces;
  readonly builder: Pick<PointBuilder, "provideTrapEntry">;
  readonly probes: ProbeSet;
  /** All points of the session, as they are now. */
  readonly builtPoints: readonly BuiltPoint[];
  readonly names: CodeNames;
}

export class TrapHandling {
  readonly #input: TrapHandlingInput;
  /** Where the handler sends threads from points with calls. */
  readonly #approaches = new Map<bigint, bigint>();
  #table: { readonly table: TrapTable; readonly at: bigint } | undefined;
  /** The handler in use. */
  #handler: { readonly handler: bigint; readonly previousAt: bigint } | undefined;

  constructor(input: TrapHandlingInput) {
    this.#input = input;
  }

  /** Makes the handler know the points, before any of them holds an `int3`. */
  async add(points: readonly BuiltPoint[]): Promise<void> {
    if (points.length === 0) return;
    const { builder, probes, builtPoints, target } = this.#input;
    for (const point of points) {
      const { at } = point.code;
      if (point.called === undefined || this.#approaches.has(at)) continue;
      const entry = await builder.provideTrapEntry(point);
      this.#approaches.set(at, entry);
      const armed = probes.points.find((each) => each.at === at);
      if (armed !== undefined) armed.trapEntry = entry;
    }
    const known = this.#table;
    if (known?.table.hasRoomFor(points.length)) {
      for (const point of points) {
        const { offset, bytes } = known.table.set(point.code.at, this.#entryOf(point)!);
        await target.write(known.at + BigInt(offset), bytes);
      }
      return;
    }
    const table = new TrapTable(TrapTable.capacityFor(points.length + probes.points.length));
    for (const built of [...builtPoints, ...points]) {
      const entry = this.#entryOf(built);
      if (entry !== undefined) table.set(built.code.at, entry);
    }
    await this.#install(table, points[0]!.planned.image);
  }

  /** The points lead elsewhere from now on: what stood for their calls does not any more. */
  forgetApproaches(points: readonly BuiltPoint[]): void {
    for (const { code } of points) this.#approaches.delete(code.at);
  }

  /** Takes sites out of the table that are gone. */
  async clear(sites: readonly bigint[]): Promise<void> {
    const known = this.#table;
    if (known === undefined) return;
    for (const at of sites) {
      if (known.table.get(at) === undefined) continue;
      const { offset, bytes } = known.table.clear(at);
      await this.#input.target.write(known.at + BigInt(offset), bytes);
    }
  }

  /** Where an `int3` of the point leads; undefined: a call that never had one. */
  #entryOf({ called, code, detour }: BuiltPoint): bigint | undefined {
    return called === undefined ? detour.entry : this.#approaches.get(code.at);
  }

  async #install(
    table: TrapTable,
    near: { readonly name: string; readonly range: AddrRange },
  ): Promise<void> {
    const { target, spaces, journal, names } = this.#input;
    const lenBytes = table.bytes.length + PAGE;
    const [space] = await spaces.provide([{ name: near.name, image: near.range, lenBytes }]);
    const old = this.#handler;
    // Others who came before may have left meanwhile: the handler in use knows what is before it.
    const previous =
      old === undefined
        ? await this.#currentAction()
        : await target.read(old.previousAt, SIGNAL_ACTION_BYTES);
    const handler = emitTrapHandler({ at: space!.next, table, previous: decodeSignalAction(previous) });
    space!.take(handler.bytes.length);
    await target.write(handler.at, handler.bytes);
    const installed = {
      handler: handler.action.handler,
      previousAt: handler.at + BigInt(handler.previousOffset),
    };
    const action = encodeSignalAction(handler.action);
    const chained = old && (await this.#findLater(old.handler));
    journal.setTrapAction({ previous, ...installed });
    this.#handler = installed;
    if (chained === undefined) {
      const [result] = await target.call([setSignalAction(SIGTRAP, action)]);
      if (result !== 0n)
        throw new Error(`install the trap handler in process ${target.pid}: error ${result}`);
    } else await target.write(chained.at, action);
    this.#table = { table, at: handler.at + BigInt(handler.tableOffset) };
    names.add({ ...handler, name: `${CODE_NAME_PREFIX}trap-handler` });
  }

  async #currentAction(): Promise<Uint8Array> {
    const { target, scratch } = this.#input;
    return (await askSignalActions(target, [SIGTRAP], scratch))[0]!;
  }

  /** Where a session that came later keeps this handler as the one before its own. */
  async #findLater(handler: bigint): Promise<{ readonly at: bigint } | undefined> {
    const { target, journalMemory } = this.#input;
    return await findChained(target, SIGTRAP, handler, await readOtherJournals(target, journalMemory));
  }
}

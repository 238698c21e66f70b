/**
 * Names for the code that a session has put into a process, while it is there: for perf (perf-map.ts), for gdb
 * (gdb-symbols.ts), and for addresses on stacks that the session prints itself.
 *
 *     trapline:detour:malloc+0x0 (libc.so.6)      what the site's jump leads to
 *     trapline:trampoline:NAME+NAME               what the calls of patchable entries lead to, with what runs there
 *     trapline:displaced:…, trapline:landing:…    helpers of a punned site
 *     trapline:return:…                           where the function returns to, if its return address is replaced
 *     trapline:program:NAME                       with the routines that it calls
 *     trapline:return-table, trapline:trap-handler, trapline:load_gate
 */
import type { BuiltPoint } from "../attach/point-builder.ts";
import type { PlacedProgram } from "../attach/program-compiler.ts";

/** Every name begins with this. */
export const CODE_NAME_PREFIX = "trapline:";

export interface NamedCode {
  readonly at: bigint;
  readonly bytes: Uint8Array;
  readonly name: string;
  /** A detour by its point, whose gate tells how its stack looks. */
  readonly point?: BuiltPoint;
}

export class CodeNames {
  readonly #all = new Map<bigint, NamedCode>();
  #fresh: NamedCode[] = [];
  #sorted: readonly NamedCode[] | undefined;

  /** What is at the place of other code from now on takes its name over. */
  add(code: NamedCode): void {
    if (code.bytes.length === 0 || this.#all.get(code.at)?.name === code.name) return;
    this.#all.set(code.at, code);
    this.#fresh.push(code);
    this.#sorted = undefined;
  }

  addPoint(built: BuiltPoint): void {
    const { detour, route, trampoline, called } = built;
    const site = siteName(built);
    const name = (kind: string) => `${CODE_NAME_PREFIX}${kind}:${site}`;
    if (called === undefined)
      this.add({ at: detour.at, bytes: detour.bytes, name: name("detour"), point: built });
    else {
      const runs = called.programs.map((program) => program.name).join("+");
      this.add({
        at: detour.at,
        bytes: detour.bytes,
        name: `${CODE_NAME_PREFIX}trampoline:${runs}`,
        point: built,
      });
    }
    if (trampoline !== undefined)
      this.add({ at: trampoline.at, bytes: trampoline.bytes, name: name("return") });
    if (route?.evicted !== undefined)
      this.add({ at: route.evicted.at, bytes: route.evicted.bytes, name: name("displaced") });
    for (const { at, bytes } of route?.patch.landings ?? []) this.add({ at, bytes, name: name("landing") });
  }

  addPrograms(programs: Iterable<PlacedProgram>): void {
    for (const { name, kind, unit } of programs)
      this.add({ ...unit, name: CODE_NAME_PREFIX + (kind === "program" ? `program:${name}` : kind) });
  }

  /** What was named since the last time this was asked. */
  takeFresh(): readonly NamedCode[] {
    const fresh = this.#fresh;
    this.#fresh = [];
    return fresh;
  }

  /** All, by address. */
  get list(): readonly NamedCode[] {
    this.#sorted ??= [...this.#all.values()].sort((a, b) => (a.at < b.at ? -1 : 1));
    return this.#sorted;
  }

  /** `name+0x10` for an address in code of ours. */
  find(at: bigint): string | undefined {
    const list = this.list;
    let low = 0;
    let high = list.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (list[middle]!.at <= at) low = middle + 1;
      else high = middle;
    }
    const code = list[low - 1];
    const offset = code === undefined ? 0 : Number(at - code.at);
    if (code === undefined || offset >= code.bytes.length) return undefined;
    return offset === 0 ? code.name : `${code.name}+0x${offset.toString(16)}`;
  }
}

/** `symbol+0x0 (image)`: with the offset also where it is 0, as the kernel names probes. */
function siteName({ plan, planned }: BuiltPoint): string {
  const { code, image } = planned;
  const fn = code.image.findFunction(plan.at);
  const text =
    fn?.name === undefined
      ? `0x${plan.at.toString(16)}`
      : `${fn.name}+0x${(plan.at - fn.start).toString(16)}`;
  return `${text} (${image.name})`;
}

/**
 * Our code in gdb's list of code made at run time (GDB manual, "JIT Compilation Interface"): in processes that have such a
 * list, since one of their images makes code itself (V8, LLVM).
 *
 *     __jit_debug_descriptor   version u32, action u32, relevant entry, first entry
 *     entry                    next, previous, address of the symbol file, its length
 *
 * gdb reads the list when it attaches. (While we are attached it cannot be, and before, it could not have let us.)
 *
 * The application changes the list itself, under a lock that we do not know, and puts new entries in front. So ours is linked in
 * at the end, and out again, in a stop that finds the list as it was read; a thread that was changing it meanwhile can lose our
 * entry at worst, which harms nobody. Its memory is freed only when no stack and no register has its address.
 */
import { findDataSymbols } from "../../elf/data-symbol.ts";
import { findArenaPlace } from "../../probe/arena.ts";
import type { Journal, JournalDebug } from "../../probe/journal.ts";
import type { ProcessImages } from "../../target/process/images.ts";
import { readMaps } from "../../target/process/proc-fs.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange, SitePoke } from "../../target/target.ts";
import type { NamedCode } from "./code-names.ts";
import { symbolFileOf } from "./gdb-symbols.ts";

const DESCRIPTOR_SYMBOL = "__jit_debug_descriptor";
const REGISTER_SYMBOL = "__jit_debug_register_code";
const VERSION = 1;
const FIRST_ENTRY_OFFSET = 16n;
const NEXT_OFFSET = 0n;
const PREVIOUS_OFFSET = 8n;
const ENTRY_BYTES = 32;
const PAGE = 4096;
/** A longer list is not walked: it may be none. */
const MOST_ENTRIES = 200_000;
const MOST_TRIES = 5;

/** Addresses of the descriptors of all images that have one. */
export function findDebugDescriptors(images: ProcessImages): bigint[] {
  const found = images.list.flatMap((image) => {
    if (image.elf.symbols.find(REGISTER_SYMBOL).length === 0) return [];
    return findDataSymbols(image.elf, DESCRIPTOR_SYMBOL).map((addr) => addr + image.bias);
  });
  return [...new Set(found)];
}

/** Links the symbols of some code into a list. Returns why not, if it cannot. */
export async function linkDebugEntry(
  target: ProcessTarget,
  journal: Journal,
  near: AddrRange,
  descriptor: bigint,
  codes: readonly NamedCode[],
): Promise<string | undefined> {
  const file = symbolFileOf(codes);
  // The first page of such memory is wiped in a forked child.
  const lenBytes = PAGE + Math.ceil((ENTRY_BYTES + file.length) / PAGE) * PAGE;
  const place = findArenaPlace(readMaps(target.pid), near, lenBytes);
  if (place === undefined) return "no memory is free";
  const entry = place.start + BigInt(PAGE);
  journal.addDebug({ at: place.start, lenBytes, descriptor });
  await target.createPrivate(place.start, lenBytes);
  await target.write(entry + BigInt(ENTRY_BYTES), file);
  for (let tries = 0; tries < MOST_TRIES; tries++) {
    const head = new DataView((await target.read(descriptor, 24)).buffer);
    if (head.getUint32(0, true) !== VERSION) return `the list has version ${head.getUint32(0, true)}`;
    const list = await readList(target, descriptor);
    if (list === undefined) return "the list cannot be followed";
    const last = list.at(-1);
    await target.write(entry, wordsOf(0n, last ?? 0n, entry + BigInt(ENTRY_BYTES), BigInt(file.length)));
    const at = last === undefined ? descriptor + FIRST_ENTRY_OFFSET : last + NEXT_OFFSET;
    const report = await target.commit({
      ...noChange,
      sites: [poke(at, 0n, entry)],
    });
    if (report.kind === "committed") return undefined;
  }
  return "the list is being changed all the time";
}

const noChange = {
  moves: [],
  trapSites: [],
  returnTables: [],
  vacate: [],
  usesTraps: false,
  finalCalls: [],
} as const;

/** What takes the entry of a record out of its list; nothing, if it is not in there. */
export async function unlinkPokes(
  target: Pick<ProcessTarget, "read">,
  { at, descriptor }: JournalDebug,
): Promise<SitePoke[]> {
  const entry = at + BigInt(PAGE);
  const list = await readList(target, descriptor);
  const index = list?.indexOf(entry) ?? -1;
  if (list === undefined || index < 0) return [];
  const before = list[index - 1];
  const after = list[index + 1];
  const pokes = [
    poke(before === undefined ? descriptor + FIRST_ENTRY_OFFSET : before + NEXT_OFFSET, entry, after ?? 0n),
  ];
  if (after !== undefined) pokes.push(poke(after + PREVIOUS_OFFSET, entry, before ?? 0n));
  return pokes;
}

/** Addresses of all entries; undefined: it does not end, or leads to nowhere. */
async function readList(
  target: Pick<ProcessTarget, "read">,
  descriptor: bigint,
): Promise<bigint[] | undefined> {
  const entries: bigint[] = [];
  try {
    const word = async (at: bigint) => new DataView((await target.read(at, 8)).buffer).getBigUint64(0, true);
    for (let at = await word(descriptor + FIRST_ENTRY_OFFSET); at !== 0n; at = await word(at + NEXT_OFFSET)) {
      if (entries.length >= MOST_ENTRIES) return undefined;
      entries.push(at);
    }
    return entries;
  } catch {
    return undefined;
  }
}

function poke(at: bigint, from: bigint, to: bigint): SitePoke {
  return {
    at,
    expect: wordsOf(from),
    write: wordsOf(to),
    fallback: undefined,
    moves: [],
    hasNoInside: true,
    isData: true,
  };
}

const wordsOf = (...words: readonly bigint[]): Uint8Array =>
  new Uint8Array(BigUint64Array.from(words).buffer);

/**
 * A session's data in one target: a range of addresses that is reserved as a whole, and the parts in it (probe/data-arena.ts).
 *
 *     journal     shared with the tracer: the journal, then the words of the load gate
 *     open        a copy in each forked child, no key: a page for answers of system calls, then the table of return addresses
 *     private     a copy in each forked child: the pid cache, wiped there
 *     maps        shared with the tracer and with the session's other targets; perhaps in huge pages
 *     stacks      a copy in each forked child: private stacks, if the gate has them
 *     later maps, mailboxes   shared with the tracer, made when they are needed
 *
 * At gate level `strict` all but the open part gets a protection key, if there is one: nothing outside of the gate can touch it. A
 * key is given to whole parts, and so to whole pages of whatever size.
 *
 * The kernel chooses the range, so nothing of the process can be in the way; its record in the journal stands for all parts,
 * which are unmapped with it in one call. A tracer that dies before there is a record leaves a range that is told by its name
 * (leave/left-memory.ts). What does not fit later gets a further range.
 */
import { closeSync, fstatSync } from "node:fs";
import { guardPages, PRIVATE_STACKS_BYTES, STACK_STRIDE } from "../../gate/index.ts";
import { LOAD_GATE_BYTES } from "../../patch/load-gate.ts";
import {
  type ArenaAccounts,
  type ArenaPart,
  addArenaAccounts,
  arenaBytes,
  DataArena,
  type PartRequest,
  type PartUse,
} from "../../probe/data-arena.ts";
import { JOURNAL_KEY, Journal, journalBytes } from "../../probe/journal.ts";
import type { Mapping } from "../../target/process/libc.ts";
import { readStat, readStatus } from "../../target/process/proc-fs.ts";
import type { KeyGrant } from "../../target/process/protection-keys.ts";
import {
  JOURNAL_MEMORY_NAME,
  MAILBOX_MEMORY_NAME,
  MAPS_MEMORY_NAME,
  READ_WRITE,
} from "../../target/process/traced-process.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import { restoreProcess } from "../leave/restore-process.ts";

export const PAGE = 4096;
const SYS_MUNMAP = 11;

/** Addresses for what is added later: they take no memory. */
const LATER_BYTES = 64 << 20;

export interface SessionMemoryInput {
  readonly target: ProcessTarget;
  /** Records of the journal. */
  readonly capacity: number;
  /** Bytes of the table of return addresses. */
  readonly tableBytes: number;
  readonly maps: MapsMemory;
  readonly hasStacks: boolean;
  readonly wantsKey: boolean;
}

/** The memory of the session's maps. */
export interface MapsMemory {
  readonly lenBytes: number;
  /** Size of its pages; undefined: 4 KiB. */
  readonly pageBytes?: number | undefined;
  /** Memory that there is already, of the first target or of the tracer; undefined: it is made in this target. */
  readonly fd: number | undefined;
}

/** Memory that the target and the tracer share. */
export interface SharedPart {
  /** Where it lies in the target. */
  readonly at: bigint;
  readonly mapping: Mapping;
}

/** Where the parts are that every target has. */
interface Parts {
  readonly open: ArenaPart;
  readonly own: ArenaPart;
  readonly maps: ArenaPart;
  readonly stacks: ArenaPart | undefined;
}

export class SessionMemory {
  readonly journal: Journal;
  /** Where the journal is mapped. */
  readonly journalMemory: AddrRange;
  readonly journalInode: bigint;
  readonly journalMapping: Mapping;
  /** Where the words of the load gate lie in the journal's memory. */
  readonly gateOffset: number;
  readonly #target: ProcessTarget;
  readonly #arenas: DataArena[];
  readonly #parts: Parts;
  #grant: KeyGrant | undefined;
  #ownMaps: { readonly mapping: Mapping; readonly fd: number } | undefined;
  readonly #later: Mapping[] = [];

  private constructor(
    target: ProcessTarget,
    arena: DataArena,
    parts: Parts,
    journal: Pick<
      SessionMemory,
      "journal" | "journalMemory" | "journalInode" | "journalMapping" | "gateOffset"
    >,
  ) {
    this.#target = target;
    this.#arenas = [arena];
    this.#parts = parts;
    this.journal = journal.journal;
    this.journalMemory = journal.journalMemory;
    this.journalInode = journal.journalInode;
    this.journalMapping = journal.journalMapping;
    this.gateOffset = journal.gateOffset;
  }

  /** Puts it into a target: all of it or nothing. */
  static async create(input: SessionMemoryInput): Promise<SessionMemory> {
    const { target, capacity, tableBytes, maps, hasStacks } = input;
    const gateOffset = (journalBytes(capacity) + 63) & ~63;
    const requests = {
      journal: { use: "journal", lenBytes: gateOffset + LOAD_GATE_BYTES },
      open: { use: "open", lenBytes: PAGE + tableBytes },
      own: { use: "private", lenBytes: PAGE },
      maps: { use: "maps", lenBytes: maps.lenBytes, pageBytes: maps.pageBytes },
      stacks: { use: "stacks", lenBytes: PRIVATE_STACKS_BYTES, alignBytes: STACK_STRIDE },
    } as const satisfies Record<string, PartRequest>;
    const { stacks, ...always } = requests;
    const arena = await reserve(target, Object.values(hasStacks ? requests : always), LATER_BYTES);
    // All of them fit: the range was made for them.
    const place = (request: PartRequest) => arena.take(request)!;
    const journalPart = place(requests.journal);
    const parts = {
      open: place(requests.open),
      own: place(requests.own),
      maps: place(requests.maps),
      stacks: hasStacks ? place(stacks) : undefined,
    };
    const memory = await createJournal(target, arena, journalPart, capacity).catch(async (error: unknown) => {
      // A process that has ended has nothing to be unmapped.
      await target.call([unmapCall(arena.range)]).catch(() => undefined);
      throw error;
    });
    const session = new SessionMemory(target, arena, parts, { ...memory, gateOffset });
    try {
      await session.#fill(input);
      return session;
    } catch (error) {
      await restoreProcess(target, session.journalMemory, []);
      session.close();
      throw error;
    }
  }

  /** The protection key of the data; undefined: it has none. */
  get key(): number | undefined {
    return this.#grant?.kind === "granted" ? this.#grant.number : undefined;
  }

  /** What came of the wish for a key; undefined: nobody wished one. */
  get grant(): KeyGrant | undefined {
    return this.#grant;
  }

  /** Memory that system calls of the target may answer to: a page. */
  get scratchAt(): bigint {
    return this.#parts.open.at;
  }

  get tableAt(): bigint {
    return this.#parts.open.at + BigInt(PAGE);
  }

  get pidCacheAt(): bigint {
    return this.#parts.own.at;
  }

  get mapsAt(): bigint {
    return this.#parts.maps.at;
  }

  /** Where private stacks begin, if there are any. */
  get stacksAt(): bigint | undefined {
    return this.#parts.stacks?.at;
  }

  /** The memory of the maps, if it was made for this target: the others share it. */
  get ownMaps(): { readonly mapping: Mapping; readonly fd: number } | undefined {
    return this.#ownMaps;
  }

  /** What all of it takes. */
  get accounts(): ArenaAccounts {
    return addArenaAccounts(this.#arenas.map(({ accounts }) => accounts));
  }

  /** What lies at an address of the target; `guard`: it is reserved, and nothing is there. Undefined: it is no data of ours. */
  useAt(at: bigint): PartUse | "guard" | undefined {
    const arena = this.#arenas.find(({ range }) => at >= range.start && at < range.end);
    if (arena === undefined) return undefined;
    const part = arena.parts.find((each) => at >= each.at && at < each.at + BigInt(each.lenBytes));
    return part?.use ?? "guard";
  }

  /** The same for people. */
  nameAt(at: bigint): string | undefined {
    const use = this.useAt(at);
    return use && useNames[use];
  }

  /** Memory for the maps of programs that come later. */
  async addMaps(lenBytes: number): Promise<SharedPart> {
    return await this.#addShared("later maps", MAPS_MEMORY_NAME, lenBytes);
  }

  /** Memory by which code of the target tells the tracer something; all of it is zeroes. */
  async addMailbox(lenBytes: number): Promise<SharedPart> {
    return await this.#addShared("mailboxes", MAILBOX_MEMORY_NAME, lenBytes);
  }

  /** Lets go of what the tracer has mapped, but for the memory of the maps. */
  close(): void {
    this.journalMapping.unmap();
    for (const mapping of this.#later) mapping.unmap();
  }

  async #fill({ maps, wantsKey }: SessionMemoryInput): Promise<void> {
    const { open, own, stacks } = this.#parts;
    if (wantsKey)
      this.#grant = await this.#target.allocateKey(this.journalMemory.start + BigInt(JOURNAL_KEY));
    if (this.key !== undefined) this.journal.noteKey(this.key);
    const { start, end } = this.journalMemory;
    await this.#guard({ at: start, lenBytes: Number(end - start) });
    this.journal.setScratch(open.at);
    await this.#target.createPrivateIn(open.at, open.lenBytes, 0);
    await this.#target.createPrivateIn(own.at, own.lenBytes, own.lenBytes);
    await this.#guard(own);
    await this.#target.write(own.at, pidCacheBytes(this.#target.pid));
    await this.#provideMaps(maps);
    await this.#guard(this.#parts.maps);
    if (stacks !== undefined)
      await this.#target.createStacks(stacks.at, stacks.lenBytes, guardPages(stacks.at), this.key);
  }

  async #provideMaps({ fd }: MapsMemory): Promise<void> {
    const { at, lenBytes } = this.#parts.maps;
    if (fd === undefined) this.#ownMaps = await this.#target.createShared(MAPS_MEMORY_NAME, lenBytes, at);
    else await this.#target.mapDescriptor(fd, lenBytes, this.scratchAt, at);
  }

  async #addShared(use: PartUse, name: string, lenBytes: number): Promise<SharedPart> {
    // What is reserved and not recorded yet must not be taken for what a dead tracer has left.
    return await this.#target.locked(async () => {
      const part = await this.#place({ use, lenBytes });
      const { at, mapping, fd } = await this.#target.createShared(name, part.lenBytes, part.at);
      closeSync(fd);
      this.#later.push(mapping);
      await this.#guard(part);
      return { at, mapping };
    });
  }

  async #place(request: PartRequest): Promise<ArenaPart> {
    for (const arena of this.#arenas) {
      const part = arena.take(request);
      if (part !== undefined) return part;
    }
    const arena = await reserve(this.#target, [request], LATER_BYTES);
    this.journal.addMemory("memory", arena.range.start, Number(arena.range.end - arena.range.start));
    this.#arenas.push(arena);
    return arena.take(request)!;
  }

  async #guard({ at, lenBytes }: Pick<ArenaPart, "at" | "lenBytes">): Promise<void> {
    if (this.key === undefined) return;
    await this.#target.protectWithKey({ start: at, end: at + BigInt(lenBytes) }, READ_WRITE, this.key);
  }
}

const useNames: Readonly<Record<PartUse | "guard", string>> = {
  journal: "the journal",
  open: "the memory without a key",
  private: "the cache of process ids",
  maps: "the maps",
  "later maps": "the maps",
  mailboxes: "the mailbox",
  stacks: "the private stacks",
  guard: "a guard",
};

/** Reserves a range for these parts, and more where the process may have more addresses (RLIMIT_AS). */
async function reserve(
  target: Pick<ProcessTarget, "reserve">,
  requests: readonly PartRequest[],
  moreBytes: number,
): Promise<DataArena> {
  const neededBytes = arenaBytes(requests);
  let lenBytes = neededBytes + moreBytes;
  const at = await target.reserve(lenBytes).catch(async (error: unknown) => {
    if ((error as { code?: unknown }).code !== "ENOMEM") throw error;
    lenBytes = neededBytes;
    return await target.reserve(lenBytes);
  });
  return new DataArena(at, lenBytes);
}

async function createJournal(target: ProcessTarget, arena: DataArena, part: ArenaPart, capacity: number) {
  const { at, mapping, fd } = await target.createShared(JOURNAL_MEMORY_NAME, part.lenBytes, part.at);
  const journalInode = fstatSync(fd, { bigint: true }).ino;
  closeSync(fd);
  const journal = new Journal(new Uint8Array(mapping.buffer), capacity, {
    tracerPid: process.pid,
    tracerStart: readStat(process.pid).startTicks,
    targetPid: target.pid,
    sharedBytes: part.lenBytes,
  });
  journal.addMemory("memory", arena.range.start, Number(arena.range.end - arena.range.start));
  const journalMemory = { start: at, end: at + BigInt(part.lenBytes) };
  return { journal, journalMemory, journalInode, journalMapping: mapping };
}

function unmapCall({ start, end }: AddrRange) {
  return { name: "munmap", number: SYS_MUNMAP, args: [start, end - start] };
}

/** The ids of a process as the user knows it and as its own namespace does. */
function pidCacheBytes(pid: number): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, pid, true);
  view.setUint32(4, readStatus(pid).nsPids.at(-1) ?? pid, true);
  return bytes;
}

/**
 * What of a journal can be believed. It lies in the target's memory, which the target can have written over; whoever undoes what
 * it says writes text, unmaps memory and moves threads. So each record has to fit what the kernel says of the process:
 *
 *     a site             lies in a file that is mapped to be executed, and held what the file has there
 *     a detour           lies in memory without a name that can be executed and not written: all our code does
 *     code               has no name and the rights that ours has, and is whole pages
 *     a range of data    begins and ends with what bears the name of reserved memory, and all between bears a name of ours, or is
 *                        private and without a name
 *     scratch memory, and the return table, with its fields in its entries: lie in such a range
 *     our signal handler lies in our code, and what it keeps as well
 *
 * What does not is left out and named (`doubts`). Text is put back as far as it can be; where a way into our code was left out,
 * all memory stays (`keepsMemory`). A record precedes what it stands for, so one whose memory is not there is no damage: a tracer
 * has died in between, or an image was unloaded.
 */
import type { JournalAction, JournalContents, JournalSite } from "../../probe/journal.ts";
import { findMapping, type MapEntry } from "../../target/process/proc-fs.ts";
import { ARENA_MEMORY_NAME } from "../../target/process/traced-process.ts";
import type { ReturnTable } from "../../target/target.ts";
import type { FileText } from "./file-text.ts";

export interface SoundJournal {
  readonly journal: JournalContents;
  /** Why something of it is not believed, for people. */
  readonly doubts: readonly string[];
  /** Whether something that was left out may lead to our code. */
  readonly keepsMemory: boolean;
}

const PAGE = 4096n;
/** `struct sigaction`, with a mask of 8 bytes. */
const ACTION_BYTES = 32n;
/** An entry has an address of the stack, one to return to, and some room. */
const MOST_ENTRY_BYTES = 64;

const SIGTRAP = 5;
/** Those whose handlers are ever ours: of traps and faults. */
const ourSignals: ReadonlySet<number> = new Set([4, SIGTRAP, 7, 8, 11]);

/** With as many there is no reading them all. */
const MOST_ENTRIES = 1 << 24;
/** What all names of our memory begin with, and that of what is reserved. */
const OUR_PATHS = "/memfd:trapline";
const ARENA_PATH = `/memfd:${ARENA_MEMORY_NAME} `;

const hex = (at: bigint): string => `0x${at.toString(16)}`;
const bytesText = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

/** The believable part of a journal. Without `files` nothing is compared with them. */
export function soundJournal(
  journal: JournalContents,
  maps: readonly MapEntry[],
  files?: FileText,
): SoundJournal {
  const doubts: string[] = [];
  let keepsMemory = false;
  const check = new Checks(maps);
  const sites = journal.sites.filter(({ state }) => state !== "removed");
  const isOfSite = (at: bigint) =>
    sites.some((site) => at >= site.at && at < site.at + BigInt(site.oldBytes.length));
  const sound: JournalSite[] = [];
  for (const site of sites) {
    const map = findMapping(maps, site.at);
    const { image } = site;
    if (map === undefined) continue;
    if (image !== undefined && (map.dev !== image.dev || map.inode !== image.inode)) continue;
    // The image was loaded anew, elsewhere or not to its end yet: the text that was changed is gone.
    if (image !== undefined && map.perms.startsWith("r--")) continue;
    // Code is unmapped when the text is put back: a tracer has died on its way out.
    const isGone = (at: bigint) => at === 0n || findMapping(maps, at) === undefined;
    const [detour, leadsTo] = [site.detour, site.leadsTo].map((at) => (isGone(at) ? 0n : at)) as [
      bigint,
      bigint,
    ];
    const why = !check.isFileText(site.at, site.oldBytes.length)
      ? "it lies in no program text"
      : !(detour === 0n || check.isOurCode(detour))
        ? `its detour, ${hex(detour)}, is no code of ours`
        : !(leadsTo === 0n || check.isOurCode(leadsTo) || isOfSite(leadsTo))
          ? `what it leads to, ${hex(leadsTo)}, is no code of ours`
          : undefined;
    if (why !== undefined) {
      doubts.push(`the record of a site at ${hex(site.at)}: ${why}`);
      keepsMemory = true;
      continue;
    }
    const original = files?.read(site.at, site.oldBytes.length);
    if (original === undefined || same(original, site.oldBytes)) {
      sound.push({ ...site, detour, leadsTo });
      continue;
    }
    doubts.push(
      `the record of the site at ${hex(site.at)}: it says ${bytesText(site.oldBytes)}, ` +
        `and the file has ${bytesText(original)}, which is put back`,
    );
    sound.push({ ...site, detour, leadsTo, oldBytes: original });
  }
  const memory = journal.memory.filter(({ kind, at, lenBytes, state }) => {
    if (state === "removed") return false;
    const isOurs = kind === "code" ? check.isCodeMemory(at, lenBytes) : check.isReserved(at, lenBytes);
    if (!isOurs && findMapping(maps, at) !== undefined)
      doubts.push(`the record of memory at ${hex(at)}: ${lenBytes} bytes there are not ours`);
    return isOurs;
  });
  const own = (name: string, range: { readonly at: bigint; readonly lenBytes: number } | undefined) => {
    if (range === undefined || check.isPrivateMemory(range.at, range.lenBytes)) return range;
    if (findMapping(maps, range.at) !== undefined)
      doubts.push(`the record of ${name} at ${hex(range.at)}: ${range.lenBytes} bytes there are not ours`);
    return undefined;
  };
  const isData = (at: bigint, lenBytes: number) =>
    check.isPrivate(at, lenBytes) &&
    memory.some(
      ({ kind, at: start, lenBytes: len }) =>
        kind === "memory" && at >= start && at + BigInt(lenBytes) <= start + BigInt(len),
    );
  const scratch =
    journal.scratch !== undefined && isData(journal.scratch, Number(PAGE)) ? journal.scratch : undefined;
  const isInCode = (at: bigint, lenBytes: bigint) =>
    memory.some(
      ({ kind, at: start, lenBytes: len }) =>
        kind === "code" && at >= start && at + lenBytes <= start + BigInt(len),
    );
  const returnTable = soundTable(journal.returnTable, isData);
  const isSoundAction = (signal: number, { handler, previousAt }: JournalAction) => {
    const isSound = ourSignals.has(signal) && isInCode(handler, 1n) && isInCode(previousAt, ACTION_BYTES);
    if (!isSound && findMapping(maps, handler) !== undefined) {
      keepsMemory = true;
      doubts.push(`the record of our handler of signal ${signal} at ${hex(handler)}: it is no code of ours`);
    }
    return isSound;
  };
  const signals = journal.signals.filter((action) => isSoundAction(action.signal, action));
  const { trapAction: action } = journal;
  const trapAction = action !== undefined && isSoundAction(SIGTRAP, action) ? action : undefined;
  // As long as its memory is there something may be in the table.
  if (returnTable !== journal.returnTable && findMapping(maps, journal.returnTable!.at) !== undefined) {
    keepsMemory = true;
    doubts.push(
      `the record of the table of return addresses at ${hex(journal.returnTable!.at)}: it does not lie in our memory`,
    );
  }
  return {
    journal: {
      ...journal,
      sites: sound,
      // The slot may be gone with the session that had it.
      hooks: journal.hooks.filter(({ at, detour }) => {
        if (check.isOurCode(detour)) return true;
        if (findMapping(maps, detour) === undefined) return false;
        doubts.push(`the record of a slot at ${hex(at)}: its detour, ${hex(detour)}, is no code of ours`);
        keepsMemory = true;
        return false;
      }),
      memory,
      debug: journal.debug.filter((range) => own("symbols", range) !== undefined),
      scratch,
      returnTable,
      trapAction,
      signals,
    },
    doubts,
    keepsMemory,
  };
}

class Checks {
  readonly #maps: readonly MapEntry[];

  constructor(maps: readonly MapEntry[]) {
    this.#maps = maps;
  }

  isFileText(at: bigint, lenBytes: number): boolean {
    return this.#isMapped(
      at,
      lenBytes,
      ({ perms, inode, path }) => perms[2] === "x" && (inode !== 0n || path === "[vdso]"),
    );
  }

  isOurCode(at: bigint): boolean {
    return this.#isMapped(at, 1, isCodeMapping);
  }

  isCodeMemory(at: bigint, lenBytes: number): boolean {
    return isWholePages(at, lenBytes) && this.#isMapped(at, lenBytes, isCodeMapping);
  }

  isReserved(at: bigint, lenBytes: number): boolean {
    if (!isWholePages(at, lenBytes)) return false;
    const isGuard = (guard: bigint) => findMapping(this.#maps, guard)?.path.startsWith(ARENA_PATH) === true;
    return (
      isGuard(at) &&
      isGuard(at + BigInt(lenBytes) - 1n) &&
      this.#isMapped(
        at,
        lenBytes,
        ({ path, perms }) => path.startsWith(OUR_PATHS) || (path === "" && perms === "rw-p"),
      )
    );
  }

  isPrivateMemory(at: bigint, lenBytes: number): boolean {
    return isWholePages(at, lenBytes) && this.isPrivate(at, lenBytes);
  }

  isPrivate(at: bigint, lenBytes: number): boolean {
    return this.#isMapped(at, lenBytes, ({ perms, path }) => perms === "rw-p" && path === "");
  }

  /** The kernel splits and joins mappings as it likes: one of ours can be several entries, or part of a larger one. */
  #isMapped(at: bigint, lenBytes: number, isOurs: (map: MapEntry) => boolean): boolean {
    const end = at + BigInt(lenBytes);
    for (let covered = at; covered < end; ) {
      const map = findMapping(this.#maps, covered);
      if (map === undefined || !isOurs(map)) return false;
      covered = map.end;
    }
    return true;
  }
}

const isCodeMapping = ({ perms, path }: MapEntry): boolean => perms === "r-xp" && path === "";

const isWholePages = (at: bigint, lenBytes: number): boolean =>
  at % PAGE === 0n && lenBytes > 0 && Number.isSafeInteger(lenBytes);

function soundTable(
  table: ReturnTable | undefined,
  isData: (at: bigint, lenBytes: number) => boolean,
): ReturnTable | undefined {
  if (table === undefined) return undefined;
  const { at, entries, entryBytes, slotOffset, returnAddressOffset } = table;
  const isFieldIn = (offset: number) => offset % 8 === 0 && offset + 8 <= entryBytes;
  const isSound =
    entryBytes <= MOST_ENTRY_BYTES &&
    isFieldIn(slotOffset) &&
    isFieldIn(returnAddressOffset) &&
    entries <= MOST_ENTRIES &&
    isData(at, entries * entryBytes);
  return isSound ? table : undefined;
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

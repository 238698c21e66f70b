/**
 * The journal: what was changed in a target and what was there before, kept in the target's own shared memory, so that
 * whoever comes next can undo it when the tracer has died.
 *
 * Every record is written before the change that it stands for. A record therefore says what may have been done,
 * never what surely was: a site is put back if it holds what the record says was to be written. Records are only appended; a
 * record's state is its last word to be written.
 *
 *     header (256 bytes)
 *       0  magic "TRAPLINE"           48  scratch, for answers of system calls: address; 56 protection key u8: 1 to 15, 0 none
 *       8  version u32                64  return table: address, 72 entries, 76 entry bytes, 80 slot offset, 84 address offset
 *      12  record capacity u32        88  SIGTRAP: 0 untouched, 1 our handler is (about to be) installed
 *      16  records in use u32         96  the application's struct sigaction (32 bytes)
 *      20  flags u32: 1 left         128  our handler's address, 92 how far behind it its copy of that struct lies u32
 *      24  tracer pid u32
 *      32  tracer start time u64     136  length of the whole shared memory
 *      40  target pid u32
 *     record (64 bytes each)
 *       0  kind u8: 1 site, 2 code, 3 range of data, 4 kept, 5 hook, 6 unwind, 7 image, 8 debug, 9 signal
 *       1  length of the bytes u8   2  mechanism u8   3  state u8: 0 planned, 1 armed, 2 removed
 *       4  site: offset of the displaced copy in the detour u32; hook: offset of the link in the detour
 *       8  address u64               16  old bytes (16)   32  new bytes (16)   48  detour u64, or length of the code
 *      56  where the written jump leads u64, if not to the detour; hook: the site
 *
 * A `kept` record is text that a punned site's jump is made of and that must stay as it is. A `hook` is the slot of another session's
 * detour of the same site: it was a NOP and leads to the detour of this journal's session. `left` means that the session has
 * ended, and that what its journal still says is there for others who hook into its detours.
 *
 * An `image` is the range at which a file lies that sites behind the record belong to: bytes 16 to 31 hold its device as maps
 * names it, 48 the length of the range, 56 its inode. When something else lies there, the sites are gone with their image.
 *
 * A `signal` is another signal than SIGTRAP whose action is (about to be) ours: byte 1 is its number, 8 our handler, 16 to 47 the
 * application's struct sigaction, 48 where the handler keeps its copy. The last record of a signal counts.
 *
 * A range of data is reserved as a whole, and what lies in it is unmapped with it, the journal included. If there is a protection
 * key, most of it has that. The key belongs to each process that has the journal: a forked child has a copy of the whole set of keys.
 *
 * The memory belongs to the target: whoever reads it treats it as possibly damaged, and gets an error rather than nonsense.
 */
import type { ReturnTable } from "../target/target.ts";

const MAGIC = 0x454e_494c_5041_5254n; // "TRAPLINE", little-endian
const VERSION = 3;
export const JOURNAL_HEADER_BYTES = 256;
const RECORD_BYTES = 64;
/** Offset of the protection key in the header: it is written where the key is allocated. */
export const JOURNAL_KEY = 56;
/** Keys are numbers of four bits, and 0 is that of all memory (Intel SDM 3A, 4.6.2). */
const LAST_KEY = 15;
/** More than any journal needs: what a target has written over must not make a reader keep gigabytes. */
const MOST_RECORDS = 1 << 20;
/** Longest region that is ever replaced: an instruction is at most 15 bytes and a jump 5. */
const MAX_PATCH_BYTES = 16;

const KIND_SITE = 1;
const KIND_CODE = 2;
const KIND_MEMORY = 3;
const KIND_KEPT = 4;
const KIND_HOOK = 5;
const KIND_UNWIND = 6;
const KIND_IMAGE = 7;
const KIND_DEBUG = 8;
const KIND_SIGNAL = 9;

const FLAGS = 20;
const FLAG_LEFT = 1;

/** A word to be written into a journal by others than its writer. */
export interface JournalWrite {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** Says that the session has ended and that the rest is there for others. */
export const leftMark: JournalWrite = { offset: FLAGS, bytes: Uint8Array.of(FLAG_LEFT, 0, 0, 0) };

/** Says that what a record stands for is undone. */
export const removedMark = (record: number): JournalWrite => ({
  offset: JOURNAL_HEADER_BYTES + record * RECORD_BYTES + 3,
  bytes: Uint8Array.of(states.indexOf("removed")),
});

export type JournalState = "planned" | "armed" | "removed";
const states: readonly JournalState[] = ["planned", "armed", "removed"];

/** `padding` and `evicted` are text beside a site, which `punned` ones need: what nothing executed, and what was displaced. */
export type JournalMechanism = "none" | "jump" | "int3" | "punned" | "padding" | "evicted" | "call";
const mechanisms: readonly JournalMechanism[] = [
  "none",
  "jump",
  "int3",
  "punned",
  "padding",
  "evicted",
  "call",
];

/** Is it text that is changed for the sake of a site, and no site itself? */
export const isBesideSite = (mechanism: JournalMechanism): boolean =>
  mechanism === "padding" || mechanism === "evicted";

export interface JournalHeader {
  readonly tracerPid: number;
  /** Start time of the tracer in clock ticks since boot, from /proc/PID/stat: tells it from another with its number. */
  readonly tracerStart: bigint;
  readonly targetPid: number;
  readonly sharedBytes: number;
}

/** What a session says about a site that it is about to change. */
export type NewJournalSite = Omit<
  JournalSite,
  "kind" | "record" | "state" | "leadsTo" | "copyOffset" | "image"
> & {
  readonly leadsTo?: bigint;
  readonly copyOffset?: number;
};

export interface JournalSite {
  readonly kind: "site";
  /** Its number in the journal. */
  readonly record: number;
  readonly at: bigint;
  readonly mechanism: JournalMechanism;
  readonly state: JournalState;
  readonly oldBytes: Uint8Array;
  readonly newBytes: Uint8Array;
  readonly detour: bigint;
  /** Where the written jump leads: a thread there may go back to the site. 0: to the detour. */
  readonly leadsTo: bigint;
  /** Where the copy of the displaced instructions begins, from the detour's entry on; 0: not known. */
  readonly copyOffset: number;
  /** The image that it was a place of, if the journal says. */
  readonly image?: JournalImage | undefined;
}

/** A file and where it was mapped. */
export interface JournalImage {
  readonly start: bigint;
  readonly end: bigint;
  /** Device and inode as maps names them. */
  readonly dev: string;
  readonly inode: bigint;
}

/** Text that must stay as it is, since a punned jump ends in it. */
export interface JournalKept {
  readonly kind: "kept";
  readonly at: bigint;
  readonly state: JournalState;
  readonly bytes: Uint8Array;
}

/** A slot of another session's detour that leads to a detour of this one. */
export interface JournalHook {
  readonly kind: "hook";
  /** The slot. */
  readonly at: bigint;
  readonly state: JournalState;
  readonly oldBytes: Uint8Array;
  readonly newBytes: Uint8Array;
  /** The detour that the slot leads to. */
  readonly detour: bigint;
  /** The site that both detours serve. */
  readonly site: bigint;
  /** Where in the detour the jump stands that leads on to the other one. */
  readonly linkOffset: number;
  /** Before the detour stands what leads to the trampoline of the site's call. */
  readonly hasApproach?: boolean;
}

/** Addresses of the target that were taken: code, or a range that is reserved for data. */
export interface JournalMemory {
  readonly kind: "code" | "memory";
  readonly at: bigint;
  readonly lenBytes: number;
  readonly state: JournalState;
}

/** How what is done with a signal was changed. */
export interface JournalAction {
  /** What it did before, as of the time when the handler was installed. */
  readonly previous: Uint8Array;
  readonly handler: bigint;
  /** Where the handler keeps it, and looks it up: whoever leaves takes itself out of there. */
  readonly previousAt: bigint;
}

export interface JournalSignal extends JournalAction {
  readonly signal: number;
}

/**
 * Unwind information for replaced return addresses, and the site by which unwinders get it: an unwinder at work may have
 * pointers to it on its stack.
 */
export interface JournalUnwind {
  readonly at: bigint;
  readonly lenBytes: number;
  readonly site: bigint;
}

/** Private memory with an entry (on its second page) of the debugger's list at `descriptor`. */
export interface JournalDebug {
  readonly at: bigint;
  readonly lenBytes: number;
  readonly descriptor: bigint;
}

export interface JournalContents {
  readonly header: JournalHeader;
  /** Whether its session has ended in order and left the rest to those who hook into its detours. */
  readonly isLeft: boolean;
  /** Memory of ours that no key guards, for answers of system calls. */
  readonly scratch: bigint | undefined;
  /** Protection key of the other memory. */
  readonly key: number | undefined;
  readonly returnTable: ReturnTable | undefined;
  /** What SIGTRAP did before our handler; undefined when it was never touched. */
  readonly trapAction: JournalAction | undefined;
  /** The same for other signals, each once. */
  readonly signals: readonly JournalSignal[];
  readonly sites: readonly JournalSite[];
  readonly kept: readonly JournalKept[];
  readonly unwind: readonly JournalUnwind[];
  readonly debug: readonly JournalDebug[];
  readonly hooks: readonly JournalHook[];
  readonly memory: readonly JournalMemory[];
}

const DAMAGED_HINT =
  "what was changed in the process cannot be known without it: its probes stay, and stay harmless; end the process when you can";

/** Shared memory that does not hold a journal that can be understood. */
export class JournalError extends Error {
  readonly code = "bad-journal";
  readonly hint: string | undefined;
  constructor(why: string, hint: string | undefined = DAMAGED_HINT) {
    super(`read the journal of an earlier tracer: ${why}`);
    this.name = "JournalError";
    this.hint = hint;
  }
}

export const journalBytes = (capacity: number): number => JOURNAL_HEADER_BYTES + capacity * RECORD_BYTES;

/** What a target's memory has of a journal that its writer has not written. */
export interface JournalDamage {
  /** Whether its header is another. */
  readonly header: boolean;
  /** How many of its records are others. */
  readonly records: number;
  readonly ofRecords: number;
}

/** Compares what a writer has written with what is in the target; undefined where nothing was written over. */
export function findJournalDamage(written: Uint8Array, found: Uint8Array): JournalDamage | undefined {
  const differs = (from: number, to: number) => {
    for (let at = from; at < to; at++) if (written[at] !== found[at]) return true;
    return false;
  };
  const header = differs(0, JOURNAL_HEADER_BYTES);
  let records = 0;
  for (let at = JOURNAL_HEADER_BYTES; at < written.length; at += RECORD_BYTES)
    if (differs(at, at + RECORD_BYTES)) records++;
  const ofRecords = (written.length - JOURNAL_HEADER_BYTES) / RECORD_BYTES;
  return header || records > 0 ? { header, records, ofRecords } : undefined;
}

/**
 * Writes the journal of one target. The memory must be zeroed. The writer keeps what it has written: the target can write
 * over its memory, and the writer's own way out follows this.
 */
export class Journal {
  readonly #shared: Uint8Array;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #capacity: number;
  #used = 0;

  constructor(memory: Uint8Array, capacity: number, header: JournalHeader) {
    this.#shared = memory;
    this.#bytes = new Uint8Array(journalBytes(capacity));
    this.#view = new DataView(this.#bytes.buffer);
    this.#capacity = capacity;
    this.#view.setUint32(8, VERSION, true);
    this.#view.setUint32(12, capacity, true);
    this.#view.setUint32(24, header.tracerPid, true);
    this.#view.setBigUint64(32, header.tracerStart, true);
    this.#view.setUint32(40, header.targetPid, true);
    this.#view.setBigUint64(136, BigInt(header.sharedBytes), true);
    this.#publish(8, JOURNAL_HEADER_BYTES);
    // Last, so that a journal with the magic has a whole header.
    this.#view.setBigUint64(0, MAGIC, true);
    this.#publish(0, 8);
  }

  /** All that was written, whatever the target has made of its memory. */
  get written(): Uint8Array {
    return this.#bytes.subarray(0, journalBytes(this.#used));
  }

  /** The key that was written into the journal where it was allocated. */
  noteKey(key: number): void {
    this.#bytes[JOURNAL_KEY] = key;
    this.#publish(JOURNAL_KEY, JOURNAL_KEY + 1);
  }

  /** Says that the session has ended and that the rest is there for others. */
  markLeft(): void {
    this.#bytes.set(leftMark.bytes, leftMark.offset);
    this.#publish(leftMark.offset, leftMark.offset + leftMark.bytes.length);
  }

  setScratch(at: bigint): void {
    this.#view.setBigUint64(48, at, true);
    this.#publish(48, 56);
  }

  setReturnTable(table: ReturnTable): void {
    this.#view.setUint32(72, table.entries, true);
    this.#view.setUint32(76, table.entryBytes, true);
    this.#view.setUint32(80, table.slotOffset, true);
    this.#view.setUint32(84, table.returnAddressOffset, true);
    this.#view.setBigUint64(64, table.at, true);
    this.#publish(64, 88);
  }

  /** To be called before SIGTRAP's action is changed. */
  setTrapAction({ previous, handler, previousAt }: JournalAction): void {
    this.#bytes.set(previous.subarray(0, 32), 96);
    this.#view.setBigUint64(128, handler, true);
    this.#view.setUint32(92, Number(previousAt - handler), true);
    this.#publish(92, 136);
    this.#view.setUint32(88, 1, true);
    this.#publish(88, 92);
  }

  /** Appends a record for memory that is about to be mapped, or just was; returns its number. */
  addMemory(kind: JournalMemory["kind"], at: bigint, lenBytes: number): number {
    return this.#append((base) => {
      this.#view.setBigUint64(base + 8, at, true);
      this.#view.setBigUint64(base + 48, BigInt(lenBytes), true);
      this.#bytes[base] = kind === "code" ? KIND_CODE : KIND_MEMORY;
    });
  }

  /** Appends a record for a signal whose action is about to be changed; returns its number. */
  addSignal({ signal, previous, handler, previousAt }: JournalSignal): number {
    return this.#append((base) => {
      this.#bytes[base + 1] = signal;
      this.#view.setBigUint64(base + 8, handler, true);
      this.#bytes.set(previous.subarray(0, 32), base + 16);
      this.#view.setBigUint64(base + 48, previousAt, true);
      this.#bytes[base] = KIND_SIGNAL;
    });
  }

  /** Appends a record for symbols, before their memory is mapped; returns its number. */
  addDebug({ at, lenBytes, descriptor }: JournalDebug): number {
    return this.#append((base) => {
      this.#view.setBigUint64(base + 8, at, true);
      this.#view.setBigUint64(base + 48, BigInt(lenBytes), true);
      this.#view.setBigUint64(base + 56, descriptor, true);
      this.#bytes[base] = KIND_DEBUG;
    });
  }

  /** Appends a record for unwind information, before the site leads there; returns its number. */
  addUnwind({ at, lenBytes, site }: JournalUnwind): number {
    return this.#append((base) => {
      this.#view.setBigUint64(base + 8, at, true);
      this.#view.setBigUint64(base + 48, BigInt(lenBytes), true);
      this.#view.setBigUint64(base + 56, site, true);
      this.#bytes[base] = KIND_UNWIND;
    });
  }

  /** Appends a record for a site that is about to be changed; returns its number. */
  addSite(site: NewJournalSite): number {
    if (site.oldBytes.length > MAX_PATCH_BYTES) throw new Error("site is longer than a record holds");
    return this.#append((base) => {
      this.#bytes[base + 1] = site.oldBytes.length;
      this.#view.setBigUint64(base + 8, site.at, true);
      this.#bytes.set(site.oldBytes, base + 16);
      this.#view.setBigUint64(base + 48, site.detour, true);
      this.#view.setBigUint64(base + 56, site.leadsTo ?? 0n, true);
      this.#view.setUint32(base + 4, site.copyOffset ?? 0, true);
      this.#setNewBytes(base, site.mechanism, site.newBytes);
      this.#bytes[base] = KIND_SITE;
    });
  }

  /** Appends a record for text that the sites rely on; returns its number. */
  addKept(at: bigint, bytes: Uint8Array): number {
    if (bytes.length > MAX_PATCH_BYTES) throw new Error("kept text is longer than a record holds");
    return this.#append((base) => {
      this.#bytes[base + 1] = bytes.length;
      this.#view.setBigUint64(base + 8, at, true);
      this.#bytes.set(bytes, base + 16);
      this.#bytes[base] = KIND_KEPT;
    });
  }

  /** Appends a record for a slot that is about to lead to a detour of ours; returns its number. */
  addHook(hook: Omit<JournalHook, "kind" | "state">): number {
    return this.#append((base) => {
      this.#bytes[base + 1] = hook.oldBytes.length;
      this.#bytes[base + 2] = hook.hasApproach === true ? 1 : 0;
      this.#view.setUint32(base + 4, hook.linkOffset, true);
      this.#view.setBigUint64(base + 8, hook.at, true);
      this.#bytes.set(hook.oldBytes, base + 16);
      this.#bytes.set(hook.newBytes, base + 32);
      this.#view.setBigUint64(base + 48, hook.detour, true);
      this.#view.setBigUint64(base + 56, hook.site, true);
      this.#bytes[base] = KIND_HOOK;
    });
  }

  /** Appends a record for an image that the next sites are places of. */
  addImage({ start, end, dev, inode }: JournalImage): number {
    return this.#append((base) => {
      const name = new TextEncoder().encode(dev).subarray(0, MAX_PATCH_BYTES);
      this.#bytes[base + 1] = name.length;
      this.#view.setBigUint64(base + 8, start, true);
      this.#bytes.set(name, base + 16);
      this.#view.setBigUint64(base + 48, end - start, true);
      this.#view.setBigUint64(base + 56, inode, true);
      this.#bytes[base] = KIND_IMAGE;
    });
  }

  /** Says, before it is done, that a site is to get other bytes than its record says, and maybe lead elsewhere. */
  changeSite(record: number, mechanism: JournalMechanism, newBytes: Uint8Array, detour?: bigint): void {
    const base = this.#base(record);
    if (detour !== undefined) this.#view.setBigUint64(base + 48, detour, true);
    this.#setNewBytes(base, mechanism, newBytes);
    this.#publish(base, base + RECORD_BYTES);
  }

  setState(record: number, state: JournalState): void {
    const at = this.#base(record) + 3;
    this.#bytes[at] = states.indexOf(state);
    this.#publish(at, at + 1);
  }

  get remaining(): number {
    return this.#capacity - this.#used;
  }

  #base(record: number): number {
    return JOURNAL_HEADER_BYTES + record * RECORD_BYTES;
  }

  #setNewBytes(base: number, mechanism: JournalMechanism, newBytes: Uint8Array): void {
    this.#bytes[base + 2] = mechanisms.indexOf(mechanism);
    this.#bytes.set(newBytes, base + 32);
  }

  #append(fill: (base: number) => void): number {
    if (this.#used >= this.#capacity) throw new Error("the journal is full");
    const record = this.#used++;
    const base = this.#base(record);
    fill(base);
    this.#publish(base, base + RECORD_BYTES);
    this.#view.setUint32(16, this.#used, true);
    this.#publish(16, 20);
    return record;
  }

  #publish(from: number, to: number): void {
    this.#shared.set(this.#bytes.subarray(from, to), from);
  }
}

/** The part of the memory that a journal with this header uses. */
export function usedBytes(header: Uint8Array): number {
  const view = new DataView(header.buffer, header.byteOffset, header.byteLength);
  return journalBytes(Math.min(view.getUint32(16, true), MOST_RECORDS));
}

/**
 * Whether the tracer has died before it had written the journal, and so before it changed anything. Asked of the first bytes of
 * the memory: those of the first record, too, show whether it was only written over.
 */
export function isUnwritten(bytes: Uint8Array): boolean {
  const magicIsZero = bytes.subarray(0, 8).every((byte) => byte === 0);
  const usesNone = bytes.subarray(16, 20).every((byte) => byte === 0);
  return magicIsZero && usesNone && bytes.subarray(JOURNAL_HEADER_BYTES).every((byte) => byte === 0);
}

/** Reads a journal; throws `JournalError` when the memory does not hold one. */
export function parseJournal(bytes: Uint8Array): JournalContents {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < JOURNAL_HEADER_BYTES || view.getBigUint64(0, true) !== MAGIC)
    throw new JournalError(
      "the memory does not begin with its mark; the tracer died before it changed anything, or the target has overwritten it",
    );
  const version = view.getUint32(8, true);
  if (version !== VERSION)
    throw new JournalError(
      `it has version ${version}, this trapline reads version ${VERSION}`,
      "use the trapline that has attached to the process, unless the process has written over its memory",
    );
  const used = view.getUint32(16, true);
  if (used > MOST_RECORDS || journalBytes(used) > bytes.length)
    throw new JournalError(`it claims ${used} records, more than fit`);

  const sites: JournalSite[] = [];
  const kept: JournalKept[] = [];
  const unwind: JournalUnwind[] = [];
  const debug: JournalDebug[] = [];
  const hooks: JournalHook[] = [];
  const memory: JournalMemory[] = [];
  const images: JournalImage[] = [];
  const signals = new Map<number, JournalSignal>();
  for (let record = 0; record < used; record++) {
    const base = JOURNAL_HEADER_BYTES + record * RECORD_BYTES;
    const at = view.getBigUint64(base + 8, true);
    const state = states[bytes[base + 3]!] ?? "planned";
    if (bytes[base] === KIND_DEBUG) {
      const lenBytes = Number(view.getBigUint64(base + 48, true));
      debug.push({ at, lenBytes, descriptor: view.getBigUint64(base + 56, true) });
      continue;
    }
    if (bytes[base] === KIND_UNWIND) {
      const lenBytes = Number(view.getBigUint64(base + 48, true));
      unwind.push({ at, lenBytes, site: view.getBigUint64(base + 56, true) });
      continue;
    }
    if (bytes[base] === KIND_SIGNAL) {
      const signal = bytes[base + 1]!;
      const previousAt = view.getBigUint64(base + 48, true);
      signals.set(signal, { signal, previous: bytes.slice(base + 16, base + 48), handler: at, previousAt });
      continue;
    }
    if (bytes[base] === KIND_CODE || bytes[base] === KIND_MEMORY) {
      const kind = bytes[base] === KIND_CODE ? "code" : "memory";
      memory.push({ kind, at, lenBytes: Number(view.getBigUint64(base + 48, true)), state });
      continue;
    }
    const lenBytes = bytes[base + 1]!;
    if (lenBytes === 0 || lenBytes > MAX_PATCH_BYTES)
      throw new JournalError(`record ${record} has a length of ${lenBytes}`);
    const oldBytes = bytes.slice(base + 16, base + 16 + lenBytes);
    const newBytes = bytes.slice(base + 32, base + 32 + lenBytes);
    const spare = view.getUint32(base + 4, true);
    const detour = view.getBigUint64(base + 48, true);
    const other = view.getBigUint64(base + 56, true);
    if (bytes[base] === KIND_IMAGE)
      images.push({ start: at, end: at + detour, dev: new TextDecoder().decode(oldBytes), inode: other });
    else if (bytes[base] === KIND_SITE) {
      const mechanism = mechanisms[bytes[base + 2]!] ?? "none";
      sites.push({
        kind: "site",
        record,
        at,
        state,
        mechanism,
        oldBytes,
        newBytes,
        detour,
        leadsTo: other,
        copyOffset: spare,
        image: images.findLast(({ start, end }) => at >= start && at < end),
      });
    } else if (bytes[base] === KIND_KEPT) kept.push({ kind: "kept", at, state, bytes: oldBytes });
    else if (bytes[base] === KIND_HOOK)
      hooks.push({
        kind: "hook",
        at,
        state,
        oldBytes,
        newBytes,
        detour,
        site: other,
        linkOffset: spare,
        ...(bytes[base + 2] === 0 ? {} : { hasApproach: true }),
      });
    else throw new JournalError(`record ${record} is of no kind`);
  }
  const scratch = view.getBigUint64(48, true);
  const key = bytes[JOURNAL_KEY]!;
  if (key > LAST_KEY) throw new JournalError(`it has ${key} as a protection key`);
  const tableAt = view.getBigUint64(64, true);
  return {
    header: {
      tracerPid: view.getUint32(24, true),
      tracerStart: view.getBigUint64(32, true),
      targetPid: view.getUint32(40, true),
      sharedBytes: Number(view.getBigUint64(136, true)),
    },
    isLeft: (view.getUint32(FLAGS, true) & FLAG_LEFT) !== 0,
    scratch: scratch === 0n ? undefined : scratch,
    key: key === 0 ? undefined : key,
    returnTable:
      tableAt === 0n
        ? undefined
        : {
            at: tableAt,
            entries: view.getUint32(72, true),
            entryBytes: view.getUint32(76, true),
            slotOffset: view.getUint32(80, true),
            returnAddressOffset: view.getUint32(84, true),
          },
    trapAction:
      view.getUint32(88, true) === 0
        ? undefined
        : {
            previous: bytes.slice(96, 128),
            handler: view.getBigUint64(128, true),
            previousAt: view.getBigUint64(128, true) + BigInt(view.getUint32(92, true)),
          },
    sites,
    signals: [...signals.values()],
    kept,
    unwind,
    debug,
    hooks,
    memory,
  };
}

const SIGTRAP = 5;

/** All signals whose actions a journal says were changed. */
export function changedSignals({
  trapAction,
  signals,
}: Pick<JournalContents, "trapAction" | "signals">): JournalSignal[] {
  return trapAction === undefined ? [...signals] : [{ signal: SIGTRAP, ...trapAction }, ...signals];
}

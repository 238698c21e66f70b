/**
 * One target of a session: the memory that was put into it, the probes that are armed in it, and the way back out.
 *
 *     journal memory   shared with the tracer: the journal, then the words of the load gate, then the mailbox
 *     maps memory      shared with the tracer and with the session's other targets
 *     private memory   a copy in each forked child: the pid cache
 *     open memory      the same: a page for answers of system calls, then the table of return addresses
 *     code memory      near each image
 *
 * At gate level `strict` all data but the open memory gets a protection key, if there is one: nothing outside of the gate can touch it.
 */
import { closeSync, fstatSync, writeFileSync } from "node:fs";
import {
  ACCOUNT_BYTES,
  ACCOUNT_MISSED,
  ACCOUNT_RECURSED,
  type Bundle,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_TRACE_PRINTK,
  HELPER_TRACE_VPRINTK,
  type Proof,
} from "../../bpf/index.ts";
import { type LinkEnv, PID_CACHE_TID_OFFSET, returnLookupWrites } from "../../bpf/jit/index.ts";
import { returnTableBytes, returnTableEntries } from "../../patch/index.ts";
import { LOAD_GATE_BYTES, loadGateWords } from "../../patch/load-gate.ts";
import { MAILBOX_BYTES } from "../../patch/mailbox.ts";
import { maskedCodeOf } from "../../patch/masked-code.ts";
import { emitUnwindHook } from "../../patch/unwind-table.ts";
import { JOURNAL_KEY, Journal, journalBytes, parseJournal } from "../../probe/journal.ts";
import { ArmError, type ArmReport, ProbeSet } from "../../probe/probe-set.ts";
import { sameBytes } from "../../target/process/commit.ts";
import type { ProcessImages } from "../../target/process/images.ts";
import { futexWakeAll, type Mapping } from "../../target/process/libc.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { readAuxv, readMaps, readStat } from "../../target/process/proc-fs.ts";
import type { KeyGrant, KeyRefusal } from "../../target/process/protection-keys.ts";
import { JOURNAL_MEMORY_NAME, MAPS_MEMORY_NAME, READ_WRITE } from "../../target/process/traced-process.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import { findTrapObstacle } from "../../target/process/trap-obstacle.ts";
import type { AddrRange } from "../../target/target.ts";
import type { ProbeAccounts } from "../accounts/probe-accounts.ts";
import { findHolder, isStaying, takeOutDead, undoneRecords } from "../leave/other-sessions.ts";
import {
  findHeirs,
  findJournalMappings,
  type RestoreReport,
  restoreProcess,
} from "../leave/restore-process.ts";
import { CODE_NAME_PREFIX, CodeNames, type NamedCode } from "../names/code-names.ts";
import { findDebugDescriptors, linkDebugEntry } from "../names/gdb-jit.ts";
import { symbolFileOf } from "../names/gdb-symbols.ts";
import { PerfMap, type PerfMapResult } from "../names/perf-map.ts";
import type { ViolationChoice } from "../options.ts";
import { CodeSpaces } from "./code-space.ts";
import { FunctionOps } from "./function-ops.ts";
import { type ChosenGate, threadSourceIn } from "./gate-level.ts";
import { LivePoints } from "./live-points.ts";
import {
  type BuiltPoint,
  journalRecords,
  type PlannedPoint,
  PointBuilder,
  type RefusedPoint,
} from "./point-builder.ts";
import { createStackMemory } from "./private-stack-memory.ts";
import { processorSource } from "./processor.ts";
import { ProgramCompiler, type Runnable } from "./program-compiler.ts";
import { layoutSharedMaps, SharedMaps, type SharedMapsLayout } from "./shared-maps.ts";
import { PAGE, pages, pidCacheBytes, provideMaps, providePrivate } from "./target-memory.ts";
import type { TrampolineStatistics } from "./trampoline-store.ts";
import { TrapHandling } from "./trap-handling.ts";
import { UnloadedImages } from "./unloaded-images.ts";
import { ranged, ViolationHandling } from "./violation-handling.ts";
import type { Violations } from "./violations.ts";

/** Records of the journal for memory. */
const SPARE_RECORDS = 64;
const TID_OFFSETS = [0x2d0, 0x30]; // glibc's and musl's struct pthread on x86-64

/** Each is private memory of its own. */
const MOST_DEBUG_ENTRIES = 16;

export interface AttachmentInput {
  readonly target: ProcessTarget;
  readonly bundle: Bundle;
  readonly proofs: readonly Proof[];
  readonly mapsLayout: SharedMapsLayout;
  readonly accounts: ProbeAccounts;
  /** Memory of the first target's maps, for further targets to share. */
  readonly sharedMapsFd: number | undefined;
  /** Most probe points that will be armed. */
  readonly capacity: number;
  readonly maxActive: number;
  readonly gate: ChosenGate;
  readonly onViolation?: ViolationChoice | undefined;
  readonly images: ProcessImages;
  /** Whether perf is to know the names of our code. */
  readonly perfMap: boolean;
  /** A file for gdb, written whenever there is new code. */
  readonly symbols?: string | undefined;
}

interface JournalParts {
  readonly journal: Journal;
  readonly journalMemory: AddrRange;
  readonly journalInode: bigint;
  readonly journalMapping: Mapping;
  /** Where the words of the load gate lie in the journal's memory. */
  readonly gateOffset: number;
}

export class Attachment {
  readonly target: ProcessTarget;
  readonly images: ProcessImages;
  /** What programs run behind here. */
  readonly gate: ChosenGate;
  /** Protection key of the memory for data; undefined: it has none. */
  readonly key: number | undefined;
  /** Why it has none, where it was to have one. */
  readonly keyRefusal: KeyRefusal | undefined;
  readonly probes: ProbeSet;
  readonly builtPoints: BuiltPoint[] = [];
  /** Consumers at function entries that come and go. */
  readonly functionOps: FunctionOps;
  /** Probes that come and go anywhere. */
  readonly livePoints: LivePoints;
  readonly #names = new CodeNames();
  /** Points whose code has no names yet. */
  readonly #unnamed: BuiltPoint[] = [];
  #perfMapResult: PerfMapResult | undefined;
  #isRestored = false;
  /** Some code could not be freed: it keeps its names. */
  #keepsNames = false;
  readonly #perfMap: PerfMap | undefined;
  readonly #symbols: string | undefined;
  /** Why gdb does not know the names, though the process has a list of such code. */
  gdbRefusal: string | undefined;
  /** Names that gdb does not know yet. */
  readonly #unlinked: NamedCode[] = [];
  #debugEntries = 0;
  readonly #journal: Journal;
  /** Where the session's own journal is mapped. */
  readonly journalMemory: AddrRange;
  readonly #journalInode: bigint;
  readonly #journalMapping: Mapping;
  readonly #gateWords: Uint32Array;
  readonly #builder: PointBuilder;
  readonly #compiler: ProgramCompiler;
  readonly #env: LinkEnv;
  readonly #accountAt: (account: number) => bigint;
  readonly #laterMaps: Mapping[] = [];
  readonly #spaces: CodeSpaces;
  /** The memory of the maps, if this target's is the one that the others share. */
  readonly ownMaps: { readonly mapping: Mapping; readonly fd: number } | undefined;
  /** Addresses of the load gate's words in the target. */
  readonly gateWordsAt: bigint;
  readonly #pidCacheAt: bigint;
  #lacksTid: boolean;
  readonly #unloaded = new UnloadedImages();
  /** Images that the journal names. */
  readonly #noted = new WeakSet<MappedImage>();
  readonly #traps: TrapHandling;
  readonly #handling: ViolationHandling;

  private constructor(
    parts: JournalParts & {
      input: AttachmentInput;
      ownMaps: { readonly mapping: Mapping; readonly fd: number } | undefined;
      mapsAt: bigint;
      privateAt: bigint;
      openAt: bigint;
      grant: KeyGrant | undefined;
      env: LinkEnv;
      returnEntries: number;
      stacks: { readonly at: bigint; readonly hasThreadPointers: boolean } | undefined;
    },
  ) {
    const { input } = parts;
    this.target = input.target;
    this.images = input.images;
    this.#symbols = input.symbols;
    this.#perfMap = input.perfMap ? PerfMap.find(input.target.pid) : undefined;
    this.gate = input.gate;
    this.key = parts.grant?.kind === "granted" ? parts.grant.number : undefined;
    this.keyRefusal = parts.grant?.kind === "refused" ? parts.grant.refusal : undefined;
    this.#journal = parts.journal;
    this.journalMemory = parts.journalMemory;
    this.#journalInode = parts.journalInode;
    this.#pidCacheAt = parts.privateAt;
    this.#lacksTid =
      usesTid(input.proofs) && parts.env.tidOffset === undefined && allowsRdfsbase(input.target.pid);
    this.#journalMapping = parts.journalMapping;
    this.ownMaps = parts.ownMaps;
    this.gateWordsAt = parts.journalMemory.start + BigInt(parts.gateOffset);
    this.#gateWords = new Uint32Array(parts.journalMapping.buffer, parts.gateOffset, LOAD_GATE_BYTES / 4);
    this.probes = new ProbeSet(
      {
        commit: (transaction) => input.target.commit(transaction),
        holderOf: (at) => findHolder(input.target, at, parts.journalMemory),
      },
      parts.journal,
    );
    this.#spaces = new CodeSpaces(input.target, parts.journal, () => readMaps(input.target.pid));
    const { bundle, proofs, accounts } = input;
    const accountsAt = parts.mapsAt + BigInt(input.mapsLayout.accounts.offset);
    const accountAt = (account: number) => accountsAt + BigInt(account * ACCOUNT_BYTES);
    this.#env = parts.env;
    this.#accountAt = accountAt;
    this.#compiler = new ProgramCompiler({
      bundle,
      proofs,
      env: parts.env,
      accounts: { at: accountAt, map: accounts.map },
      mayAbandon: parts.stacks !== undefined,
    });
    const { stacks } = parts;
    this.#handling = new ViolationHandling({
      target: input.target,
      journal: parts.journal,
      journalMemory: parts.journalMemory,
      mailbox: {
        at: this.gateWordsAt + BigInt(MAILBOX_AFTER_GATE_WORDS),
        memory: new Uint8Array(
          parts.journalMapping.buffer,
          parts.gateOffset + MAILBOX_AFTER_GATE_WORDS,
          MAILBOX_BYTES,
        ),
      },
      scratch: parts.openAt,
      spaces: this.#spaces,
      names: this.#names,
      choice: input.onViolation ?? "kill",
      stacks: stacks && {
        base: stacks.at,
        // The handler asks for it wherever it is.
        thread: "fs base",
        defersSignals: input.gate.level === "strict",
        key: this.key === undefined ? undefined : { number: this.key },
      },
      memory: [
        ranged("the maps", parts.mapsAt, input.mapsLayout.totalBytes),
        ranged("the cache of process ids", parts.privateAt, PAGE),
      ],
      builtPoints: () => this.builtPoints,
      builder: () => this.#builder,
      livePoints: () => this.livePoints,
    });
    this.#builder = new PointBuilder(input.target, this.#spaces, this.#compiler, {
      tableAt: parts.openAt + BigInt(PAGE),
      entries: parts.returnEntries,
      missedAt: (probes) => accountAt(accounts.forMissed(probes)) + BigInt(ACCOUNT_MISSED),
      key: this.key === undefined ? undefined : { number: this.key },
      placed: (near, routines) => this.#handling.placed(near, routines),
      stacks: parts.stacks && {
        base: parts.stacks.at,
        defersSignals: input.gate.level === "strict",
        threadIn: ({ range }) => {
          const { list } = input.images;
          const image = list.find(({ start }) => start === range.start);
          return threadSourceIn(image, list, parts.stacks!.hasThreadPointers);
        },
        recursedAt: (account) => accountAt(account) + BigInt(ACCOUNT_RECURSED),
      },
    });
    this.#traps = new TrapHandling({
      target: input.target,
      journal: parts.journal,
      journalMemory: parts.journalMemory,
      scratch: parts.openAt,
      spaces: this.#spaces,
      builder: this.#builder,
      probes: this.probes,
      builtPoints: this.builtPoints,
      names: this.#names,
    });
    this.livePoints = new LivePoints({
      probes: this.probes,
      builder: this.#builder,
      functionOps: () => this.functionOps,
      arm: (points) => this.arm(points),
      link: () => this.#linkSymbols(),
      builtPoints: () => this.builtPoints,
      setBuilt: (built) => this.#setBuilt(built),
      addTraps: (built) => this.#traps.add(built),
      settle: () => this.#trapHemmedPoints(),
      trapObstacle: () => findTrapObstacle(this.target.pid),
    });
    this.functionOps = new FunctionOps({
      images: this.images,
      probes: this.probes,
      builder: this.#builder,
      journalRemaining: () => this.#journal.remaining,
      locked: (use) => this.target.locked(use),
      noteImages: (built) => this.#noteImages(built),
      setBuilt: (built) => this.#setBuilt(built),
      settle: (trapped) => this.#settle(trapped),
    });
  }

  /** Puts the session's memory into a target. Nothing of its code is changed. */
  static async create(input: AttachmentInput): Promise<Attachment> {
    const { target } = input;
    const capacity = input.capacity + SPARE_RECORDS;
    const gateOffset = (journalBytes(capacity) + 63) & ~63;
    const journalLen = pages(gateOffset + MAILBOX_AFTER_GATE_WORDS + MAILBOX_BYTES);
    const shared = await target.createShared(JOURNAL_MEMORY_NAME, journalLen);
    const journalInode = fstatSync(shared.fd, { bigint: true }).ino;
    closeSync(shared.fd);
    const journalMemory = { start: shared.at, end: shared.at + BigInt(journalLen) };
    const journal = new Journal(new Uint8Array(shared.mapping.buffer), capacity, {
      tracerPid: process.pid,
      tracerStart: readStat(process.pid).startTicks,
      targetPid: target.pid,
      sharedBytes: journalLen,
    });

    try {
      return await Attachment.#fill(input, {
        journal,
        journalMemory,
        journalInode,
        journalMapping: shared.mapping,
        gateOffset,
      });
    } catch (error) {
      await restoreProcess(target, journalMemory, []);
      shared.mapping.unmap();
      throw error;
    }
  }

  /** Everything behind the journal, which from here on says what there is to be undone. */
  static async #fill(input: AttachmentInput, first: JournalParts): Promise<Attachment> {
    const { target } = input;
    const { journal, journalMemory } = first;
    const grant =
      input.gate.level === "strict"
        ? await target.allocateKey(journalMemory.start + BigInt(JOURNAL_KEY))
        : undefined;
    const key = grant?.kind === "granted" ? grant.number : undefined;
    if (key !== undefined) journal.noteKey(key);
    const guard = async (at: bigint, lenBytes: number) => {
      if (key === undefined) return;
      await target.protectWithKey({ start: at, end: at + BigInt(lenBytes) }, READ_WRITE, key);
    };
    await guard(journalMemory.start, Number(journalMemory.end - journalMemory.start));

    const returnEntries = returnTableEntries(input.maxActive);
    const openLen = PAGE + pages(returnTableBytes(returnEntries));
    const openAt = await providePrivate(target, journalMemory, openLen, (at, lenBytes) =>
      journal.setOpenMemory(at, lenBytes),
    );
    const privateAt = await providePrivate(target, journalMemory, PAGE, (at, lenBytes) =>
      journal.setPrivateMemory(at, lenBytes),
    );
    await guard(privateAt, PAGE);
    await target.write(privateAt, pidCacheBytes(target.pid));

    const { ownMaps, mapsAt } = await provideMaps(input, openAt);
    journal.addMemory("memory", mapsAt, input.mapsLayout.totalBytes);
    await guard(mapsAt, input.mapsLayout.totalBytes);

    const env: LinkEnv = {
      mapAddr: (index) => mapsAt + BigInt(input.mapsLayout.offsets[index]!),
      cpu: processorSource(),
      clockGettime: input.images.findVdsoFunction("__vdso_clock_gettime"),
      tidOffset: usesTid(input.proofs) ? await target.findTidOffset(TID_OFFSETS) : undefined,
      pidCache: privateAt,
    };
    return new Attachment({
      ...first,
      input,
      ownMaps,
      mapsAt,
      privateAt,
      openAt,
      grant,
      env,
      returnEntries,
      stacks:
        input.gate.level === "none"
          ? undefined
          : {
              at: await createStackMemory(target, journal, journalMemory, key),
              hasThreadPointers: await target.hasThreadPointers(),
            },
    });
  }

  /**
   * Emits, writes and arms points: all or none. Points that no mechanism can take are returned; unless all of them are
   * optional, nothing is armed.
   */
  async arm(
    points: readonly PlannedPoint[],
  ): Promise<{ readonly refused: readonly RefusedPoint[]; readonly report: ArmReport }> {
    const { built, refused } = await this.#builder.build(points);
    if (refused.some(({ planned }) => planned.isOptional !== true))
      return { refused, report: { stoppedNs: 0n, threads: 0 } };
    const table = this.#builder.returnTable;
    if (table !== undefined) this.#journal.setReturnTable(table);
    const { returnLookup } = this.#builder;
    if (returnLookup !== undefined) {
      for (const { at, bytes } of returnLookupWrites(this.#pidCacheAt, returnLookup))
        await this.target.write(at, bytes);
    }
    this.#noteImages(built);
    await this.#traps.add(built.filter((point) => point.plan.mechanism === "int3"));
    const report = await this.probes.arm(built.map((point) => point.code));
    this.builtPoints.push(...built);
    this.functionOps.adopt(built);
    await this.#trapHemmedPoints();
    this.#nameCode(built);
    await this.#linkSymbols();
    return { refused, report };
  }

  /** Gives the target memory for the maps of one more bundle, whose programs can be armed from then on. */
  async addBundle(
    bundle: Bundle,
    proofs: readonly Proof[],
    accountMap: number | undefined,
  ): Promise<{ readonly number: number; readonly maps: SharedMaps }> {
    const layout = layoutSharedMaps(bundle.maps, 0, 0);
    const { at, mapping, fd } = await this.target.createShared(MAPS_MEMORY_NAME, layout.totalBytes);
    closeSync(fd);
    this.#laterMaps.push(mapping);
    this.#journal.addMemory("memory", at, layout.totalBytes);
    if (this.key !== undefined)
      await this.target.protectWithKey(
        { start: at, end: at + BigInt(layout.totalBytes) },
        READ_WRITE,
        this.key,
      );
    const env: LinkEnv = {
      ...this.#env,
      mapAddr: (index) => at + BigInt(layout.offsets[index]!),
      tidOffset:
        this.#env.tidOffset ?? (usesTid(proofs) ? await this.target.findTidOffset(TID_OFFSETS) : undefined),
    };
    const accounts = { at: this.#accountAt, map: accountMap };
    const number = this.#compiler.add({ bundle, proofs, env, accounts });
    return { number, maps: new SharedMaps(bundle.maps, layout, mapping.buffer) };
  }

  /** How many function trampolines there are, and how much memory they take. */
  get trampolines(): TrampolineStatistics {
    return this.#builder.trampolines.statistics;
  }

  /** Code memory that is handed out, but for function trampolines. */
  get codeBytes(): number {
    return this.#spaces.spaces.reduce((sum, { range, next }) => sum + Number(next - range.start), 0);
  }

  #setBuilt(built: readonly BuiltPoint[]): void {
    const indexOf = new Map(this.builtPoints.map(({ code }, index) => [code.at, index]));
    for (const point of built) {
      const index = indexOf.get(point.code.at);
      if (index === undefined) this.builtPoints.push(point);
      else this.builtPoints[index] = point;
    }
    this.#nameCode(built);
  }

  /** What could not be written gets an `int3`; the trap handler learns where those lead that have one. */
  async #settle(trapped: readonly BuiltPoint[]): Promise<void> {
    this.#traps.forgetApproaches(trapped);
    await this.#traps.add(trapped);
    await this.#trapHemmedPoints();
  }

  /** Whether there is anything that an unwinder has to be helped through. */
  get replacesReturns(): boolean {
    return this.#builder.returnRuntime !== undefined;
  }

  /** What is to stand at the entry of an image's `_Unwind_Find_FDE`. It is emitted when there is a table of returns. */
  unwindHook(site: bigint, cfaOffset: number | undefined): Runnable {
    return {
      kind: "unwind-hook",
      site,
      hook: (at) => {
        const hook = emitUnwindHook({ at, table: this.#builder.returnRuntime!.table, cfaOffset });
        const { start, end } = hook.frames;
        this.#journal.addUnwind({ at: start, lenBytes: Number(end - start), site });
        return hook;
      },
    };
  }

  /** Gives names to what was built, soon: it takes longer than the rest of what is done before a target runs on. */
  #nameCode(built: readonly BuiltPoint[]): void {
    if (this.#unnamed.length === 0) setImmediate(() => this.#nameNow());
    this.#unnamed.push(...built);
  }

  #nameNow(): void {
    const unnamed = this.#unnamed.splice(0);
    if (unnamed.length === 0) return;
    for (const point of unnamed) this.#names.addPoint(point);
    const { programs, returnRuntime } = this.#builder;
    this.#names.addPrograms(programs);
    if (returnRuntime !== undefined)
      this.#names.add({ ...returnRuntime, name: `${CODE_NAME_PREFIX}return-table` });
    const fresh = this.#names.takeFresh();
    this.#unlinked.push(...fresh);
    if (this.#symbols !== undefined) writeFileSync(this.#symbols, symbolFileOf(this.#names.list));
    // What is taken out already is not announced any more.
    if (this.#perfMap !== undefined && !this.#isRestored) this.#perfMapResult = this.#perfMap.append(fresh);
  }

  /** What our code is called. */
  get names(): CodeNames {
    this.#nameNow();
    return this.#names;
  }

  /** How far perf knows the names; undefined: it does not, or there are none yet. */
  get perfMapResult(): PerfMapResult | undefined {
    this.#nameNow();
    return this.#perfMapResult;
  }

  /**
   * Takes note of what the target has unloaded: nothing of ours is left there. What it has loaded again in the same place is
   * armed as before. `fresh` are the other images that are new.
   */
  async followImages(): Promise<{
    readonly removed: readonly MappedImage[];
    readonly fresh: readonly MappedImage[];
  }> {
    const { added, removed } = this.images.refresh();
    for (const image of removed) {
      const isInside = (at: bigint) => at >= image.start && at < image.end;
      const points = this.probes.points.filter(({ at }) => isInside(at));
      const built = this.builtPoints.filter(({ code }) => isInside(code.at));
      this.probes.forget(points);
      this.functionOps.forget(points);
      this.livePoints.forget(points);
      const left = this.builtPoints.filter(({ code }) => !isInside(code.at));
      this.builtPoints.splice(0, this.builtPoints.length, ...left);
      this.#unloaded.keep(image, { points, built });
      await this.#traps.clear(points.map(({ at }) => at));
    }
    const fresh: MappedImage[] = [];
    for (const image of added) if (!(await this.#armUnloaded(image))) fresh.push(image);
    return { removed, fresh };
  }

  /** Whether the image had points when it was unloaded, and has them again. */
  async #armUnloaded(image: MappedImage): Promise<boolean> {
    const unloaded = this.#unloaded.take(image);
    if (unloaded === undefined) return false;
    this.builtPoints.push(...unloaded.built);
    await this.#traps.add(unloaded.built.filter(({ code }) => code.jumpBytes === undefined));
    try {
      await this.probes.armAgain(unloaded.points);
      this.functionOps.recall(unloaded.points);
      this.livePoints.recall(unloaded.points);
    } catch (error) {
      if (!(error instanceof ArmError) || error.refusal.kind !== "text-differs") throw error;
      // The file has other contents now.
      const gone = new Set(unloaded.built);
      const left = this.builtPoints.filter((point) => !gone.has(point));
      this.builtPoints.splice(0, this.builtPoints.length, ...left);
      return false;
    }
    await this.#trapHemmedPoints();
    return true;
  }

  /** Whether the journal has room for points that are found late. */
  hasRoomFor(points: readonly PlannedPoint[]): boolean {
    const images = new Set(points.map(({ image }) => image.range.start)).size;
    return journalRecords(points) + images + SPARE_RECORDS <= this.#journal.remaining;
  }

  /** Makes names that are new known to gdb, where the process has a list of code made at run time. */
  async #linkSymbols(): Promise<void> {
    if (this.#perfMap === undefined || this.#debugEntries >= MOST_DEBUG_ENTRIES) return;
    const descriptors = findDebugDescriptors(this.images);
    if (descriptors.length === 0) return;
    this.#nameNow();
    const codes = this.#unlinked.splice(0);
    if (codes.length === 0) return;
    for (const descriptor of descriptors) {
      this.#debugEntries++;
      try {
        const why = await linkDebugEntry(this.target, this.#journal, this.journalMemory, descriptor, codes);
        if (why !== undefined) this.gdbRefusal = why;
      } catch (error) {
        // Names are no reason to fail; a process that has ended is noticed elsewhere.
        this.gdbRefusal = error instanceof Error ? error.message : String(error);
      }
    }
  }

  /** One batch of the optimizer; false when nothing is left to be done. */
  async optimize(): Promise<boolean> {
    if (this.probes.unoptimized.length === 0) return false;
    await this.probes.optimize();
    return this.probes.unoptimized.length > 0;
  }

  /** How the point at an address is armed now. */
  mechanismAt(at: bigint): string {
    // A call stands behind what a function begins with.
    const code = this.builtPoints.find(({ planned }) => planned.plan.at === at)?.code;
    return this.probes.points.find((point) => point.at === (code?.at ?? at))?.mechanism ?? "none";
  }

  /** Faults of programs, and accesses to our memory. */
  get violations(): Violations {
    return this.#handling.violations;
  }

  /** Whether the loader has announced images that were not acknowledged. To be asked often: it is also the sign of life. */
  pollLoadGate(): boolean {
    Atomics.add(this.#gateWords, loadGateWords.heartbeat / 4, 1);
    return this.#announced !== Atomics.load(this.#gateWords, loadGateWords.acknowledged / 4);
  }

  /**
   * Finds out late where threads keep their id: in a command of ours that had none when it was attached to. Until then
   * programs ask the kernel for it.
   */
  async findTidLate(): Promise<void> {
    if (!this.#lacksTid) return;
    const offset = await this.target.findTidOffset(TID_OFFSETS);
    if (offset === undefined) return;
    this.#lacksTid = false;
    await this.target.write(
      this.#pidCacheAt + BigInt(PID_CACHE_TID_OFFSET),
      new Uint8Array(Uint32Array.of(offset).buffer),
    );
  }

  /** Lets the thread go that waits at the loader. */
  acknowledgeLoads(announced: number): void {
    Atomics.store(this.#gateWords, loadGateWords.acknowledged / 4, announced);
    futexWakeAll(
      new Uint8Array(this.#gateWords.buffer, this.#gateWords.byteOffset + loadGateWords.acknowledged, 4),
    );
  }

  get announcedLoads(): number {
    return this.#announced;
  }

  get #announced(): number {
    return Atomics.load(this.#gateWords, loadGateWords.announced / 4);
  }

  /** Puts the text back and frees everything. */
  async restore(wantsEvidence = false): Promise<RestoreReport> {
    this.#isRestored = true;
    // Nobody may wait at the loader for a tracer that is leaving.
    Atomics.store(this.#gateWords, loadGateWords.abandoned / 4, 1);
    this.acknowledgeLoads(this.#announced);
    this.#handling.violations.end();
    const report = await this.#restoreIn(this.target, wantsEvidence);
    this.#keepsNames = report.occupants.length > 0;
    return report;
  }

  /** Puts back a child that the target has forked: it has the same memory at the same addresses. */
  async restoreHeir(heir: ProcessTarget, wantsEvidence = false): Promise<RestoreReport> {
    return await this.#restoreIn(heir, wantsEvidence);
  }

  /** Also frees what others had to leave until this session goes. */
  async #restoreIn(target: ProcessTarget, wantsEvidence: boolean): Promise<RestoreReport> {
    const own = this.journalMemory;
    return await target.locked(async () => {
      const report = await restoreProcess(target, own, this.probes.homeMoves, wantsEvidence, this.#journal);
      if (isStaying(report)) this.#journal.markLeft();
      if (findJournalMappings(target.pid).some(({ start }) => start !== own.start))
        await takeOutDead(target, own);
      return report;
    });
  }

  /** Says in the journal, when all children are put back as well, which of its sites nobody has to look at any more. */
  markRemoved(report: RestoreReport): void {
    if (report.husks.length === 0) return;
    for (const record of undoneRecords(parseJournal(this.#journal.written), report))
      this.#journal.setState(record, "removed");
  }

  /** Whether the session's memory is in the target. */
  get isPresent(): boolean {
    return findJournalMappings(this.target.pid).some(({ start }) => start === this.journalMemory.start);
  }

  /** Processes that the target has forked and that carry copies of the probes. */
  findHeirs(): number[] {
    return findHeirs(this.#journalInode, this.target.pid);
  }

  /**
   * Whether the process has become another program: it has none of our memory, then. To be asked often. One that is just ending
   * has no memory at all.
   */
  isReplaced(): boolean {
    const mark = new Uint8Array(this.#journalMapping.buffer, 0, JOURNAL_MARK_BYTES);
    const found = new Uint8Array(JOURNAL_MARK_BYTES);
    try {
      const memory = MemoryFile.open(this.target.pid, "r");
      try {
        if (memory.readInto(this.journalMemory.start, found) === found.length && sameBytes(found, mark))
          return false;
      } finally {
        memory.close();
      }
      const maps = readMaps(this.target.pid);
      return maps.length > 0 && !maps.some(({ start }) => start === this.journalMemory.start);
    } catch {
      // It has ended, or may not be looked into any more.
      return false;
    }
  }

  /** Of a process that has ended, or runs another program now, nobody else takes the names of our code out. */
  withdrawNames(): void {
    this.#isRestored = true;
    if (!this.#keepsNames) this.#perfMap?.remove();
  }

  /** Lets go of what the tracer holds of a program that has been replaced by another. Its children can still be put back. */
  abandon(): void {
    this.withdrawNames();
    this.#perfMap?.[Symbol.dispose]();
    this.images[Symbol.dispose]();
    this.#journalMapping.unmap();
    for (const mapping of this.#laterMaps) mapping.unmap();
  }

  /** Lets go of what the tracer holds. The mapping of the maps stays until the session has read them. */
  async close(): Promise<void> {
    this.abandon();
    await this.target.close();
  }

  /**
   * Points whose jump could not be written yet get an `int3`; where that would be fatal they stay as they are until the
   * optimizer can write the jump.
   */
  async #trapHemmedPoints(): Promise<void> {
    if (!this.probes.points.some(isHemmed)) return;
    // Where signals may be blocked no trap can stand in for the jump.
    const masked = new Set(
      this.builtPoints
        .filter(({ planned: { code, plan } }) => maskedCodeOf(code).has(plan.at))
        .map(({ code }) => code.at),
    );
    const hemmed = this.probes.points.filter((point) => isHemmed(point) && !masked.has(point.at));
    if (hemmed.length === 0 || findTrapObstacle(this.target.pid) !== undefined) return;
    await this.#traps.add(
      this.builtPoints.filter((built) => hemmed.some((point) => point.at === built.code.at)),
    );
    await this.probes.armTraps(hemmed);
  }

  /** Says in the journal which files the sites belong to: when something else lies there, they are gone. */
  #noteImages(points: readonly BuiltPoint[]): void {
    for (const start of new Set(points.map(({ planned }) => planned.image.range.start))) {
      const image = this.images.list.find((each) => each.start === start);
      if (image === undefined || this.#noted.has(image)) continue;
      this.#noted.add(image);
      this.#journal.addImage(image);
    }
  }
}

/** Where the mailbox begins, from the words of the load gate on: in a line of its own. */
const MAILBOX_AFTER_GATE_WORDS = 64;

/** The mark of a journal, and whose it is. */
const JOURNAL_MARK_BYTES = 48;

const isHemmed = ({ mechanism, isIdle }: ProbeSet["points"][number]): boolean =>
  mechanism === "none" && !isIdle;

function usesTid(proofs: readonly Proof[]): boolean {
  const users = [HELPER_GET_CURRENT_PID_TGID, HELPER_TRACE_PRINTK, HELPER_TRACE_VPRINTK];
  return proofs.some((proof) => users.some((helper) => proof.helpers.has(helper)));
}

/** Whether the kernel lets user code read its fs base: bit 1 of AT_HWCAP2 (Documentation/arch/x86/x86_64/fsgs.rst). */
function allowsRdfsbase(pid: number): boolean {
  const AT_HWCAP2 = 26;
  return ((readAuxv(pid).get(AT_HWCAP2) ?? 0n) & 2n) !== 0n;
}

/**
 * One target of a session: the memory that was put into it, the probes that are armed in it, and the way back out.
 *
 *     data          journal, maps and the like: session-memory.ts
 *     code memory   near each image
 */
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
import { type Journal, parseJournal } from "../../probe/journal.ts";
import { ArmError, type ArmReport, ProbeSet } from "../../probe/probe-set.ts";
import { sameBytes } from "../../target/process/commit.ts";
import type { ProcessImages } from "../../target/process/images.ts";
import { futexWakeAll } from "../../target/process/libc.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { readAuxv, readMaps } from "../../target/process/proc-fs.ts";
import type { KeyRefusal } from "../../target/process/protection-keys.ts";
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
import { CodeNaming } from "../names/code-naming.ts";
import type { GateLevel, ViolationChoice } from "../options.ts";
import { CodeSpaces } from "./code-space.ts";
import { FunctionOps } from "./function-ops.ts";
import {
  type Gates,
  gateOfProbe,
  highest,
  levelsOf,
  mayFindAlternate,
  threadSourceIn,
} from "./gate-level.ts";
import { LivePoints } from "./live-points.ts";
import {
  type BuiltPoint,
  journalRecords,
  type PlannedPoint,
  PointBuilder,
  type RefusedPoint,
} from "./point-builder.ts";
import { processorSource } from "./processor.ts";
import { ProgramCompiler, type Runnable } from "./program-compiler.ts";
import { SessionMemory, type SharedPart } from "./session-memory.ts";
import { layoutSharedMaps, SharedMaps, type SharedMapsLayout } from "./shared-maps.ts";
import type { TrampolineStatistics } from "./trampoline-store.ts";
import { TrapHandling } from "./trap-handling.ts";
import { UnloadedImages } from "./unloaded-images.ts";
import { ViolationHandling } from "./violation-handling.ts";
import type { Violations } from "./violations.ts";

/** Records of the journal for memory. */
const SPARE_RECORDS = 64;
const TID_OFFSETS = [0x2d0, 0x30]; // glibc's and musl's struct pthread on x86-64

export interface AttachmentInput {
  readonly target: ProcessTarget;
  readonly bundle: Bundle;
  readonly proofs: readonly Proof[];
  readonly mapsLayout: SharedMapsLayout;
  readonly accounts: ProbeAccounts;
  /** Memory of the session's maps, for this target to share; undefined: it is made in this target. */
  readonly sharedMapsFd: number | undefined;
  /** Size of the pages of that memory; undefined: 4 KiB. */
  readonly mapsPageBytes?: number | undefined;
  /** Most probe points that will be armed. */
  readonly capacity: number;
  readonly maxActive: number;
  readonly gates: Gates;
  readonly onViolation?: ViolationChoice | undefined;
  readonly images: ProcessImages;
  /** Whether perf is to know the names of our code. */
  readonly perfMap: boolean;
  /** A file for gdb, written whenever there is new code. */
  readonly symbols?: string | undefined;
}

export class Attachment {
  readonly target: ProcessTarget;
  readonly images: ProcessImages;
  /** What programs run behind here. */
  readonly gates: Gates;
  readonly memory: SessionMemory;
  /** Why it has none, where it was to have one. */
  readonly keyRefusal: KeyRefusal | undefined;
  readonly probes: ProbeSet;
  readonly builtPoints: BuiltPoint[] = [];
  /** Consumers at function entries that come and go. */
  readonly functionOps: FunctionOps;
  /** Probes that come and go anywhere. */
  readonly livePoints: LivePoints;
  /** What our code is called, and who knows it. */
  readonly naming: CodeNaming;
  /** Some code could not be freed: it keeps its names. */
  #keepsNames = false;
  readonly #journal: Journal;
  readonly #gateWords: Uint32Array;
  readonly #builder: PointBuilder;
  readonly #compiler: ProgramCompiler;
  readonly #env: LinkEnv;
  readonly #accountAt: (account: number) => bigint;
  readonly #spaces: CodeSpaces;
  /** Addresses of the load gate's words in the target. */
  readonly gateWordsAt: bigint;
  #lacksTid: boolean;
  readonly #unloaded = new UnloadedImages();
  /** Images that the journal names. */
  readonly #noted = new WeakSet<MappedImage>();
  readonly #traps: TrapHandling;
  readonly #handling: ViolationHandling;

  private constructor(
    input: AttachmentInput,
    memory: SessionMemory,
    env: LinkEnv,
    parts: {
      readonly returnEntries: number;
      /** Private stacks, and what faults of programs are told by. */
      readonly stacks:
        | { readonly at: bigint; readonly hasThreadPointers: boolean; readonly mailbox: SharedPart }
        | undefined;
    },
  ) {
    this.target = input.target;
    this.images = input.images;
    this.gates = input.gates;
    this.memory = memory;
    this.keyRefusal = memory.grant?.kind === "refused" ? memory.grant.refusal : undefined;
    const { journal, journalMemory, journalMapping, gateOffset } = memory;
    this.#journal = journal;
    this.naming = new CodeNaming({
      ...input,
      journal,
      journalMemory,
      builder: () => this.#builder,
    });
    this.#lacksTid = usesTid(input.proofs) && env.tidOffset === undefined && allowsRdfsbase(input.target.pid);
    this.gateWordsAt = journalMemory.start + BigInt(gateOffset);
    this.#gateWords = new Uint32Array(journalMapping.buffer, gateOffset, LOAD_GATE_BYTES / 4);
    this.probes = new ProbeSet(
      {
        commit: (transaction) => input.target.commit(transaction),
        holderOf: (at) => findHolder(input.target, at, journalMemory),
      },
      journal,
    );
    this.#spaces = new CodeSpaces(input.target, journal, () => readMaps(input.target.pid));
    const { stacks } = parts;
    const { bundle, proofs, accounts } = input;
    const accountsAt = memory.mapsAt + BigInt(input.mapsLayout.accounts.offset);
    const accountAt = (account: number) => accountsAt + BigInt(account * ACCOUNT_BYTES);
    this.#env = env;
    this.#accountAt = accountAt;
    this.#compiler = new ProgramCompiler({
      bundle,
      proofs,
      env,
      accounts: { at: accountAt, map: accounts.map },
      mayAbandon: stacks !== undefined,
    });
    this.#handling = new ViolationHandling({
      target: input.target,
      journal,
      journalMemory,
      mailbox: stacks && { at: stacks.mailbox.at, memory: new Uint8Array(stacks.mailbox.mapping.buffer) },
      scratch: memory.scratchAt,
      spaces: this.#spaces,
      names: this.naming.given,
      choice: input.onViolation ?? "kill",
      stacks: stacks && {
        base: stacks.at,
        key: this.key === undefined ? undefined : { number: this.key },
      },
      memoryAt: (address) => memory.nameAt(address),
      builtPoints: () => this.builtPoints,
      builder: () => this.#builder,
      livePoints: () => this.livePoints,
    });
    this.#builder = new PointBuilder(input.target, this.#spaces, this.#compiler, {
      tableAt: memory.tableAt,
      entries: parts.returnEntries,
      missedAt: (probes) => accountAt(accounts.forMissed(probes)) + BigInt(ACCOUNT_MISSED),
      key: this.key === undefined ? undefined : { number: this.key },
      placed: (near, routines) => this.#handling.placed(near, routines),
      stacks: stacks && {
        base: stacks.at,
        levelOf: ({ run, gate }) => this.#levelOf(run, gate),
        findsAlternate: (level) => mayFindAlternate(level, input.images.program),
        threadIn: ({ range }) => {
          const { list } = input.images;
          const image = list.find(({ start }) => start === range.start);
          return threadSourceIn(image, list, stacks.hasThreadPointers);
        },
        recursedAt: (account) => accountAt(account) + BigInt(ACCOUNT_RECURSED),
      },
    });
    this.#traps = new TrapHandling({
      target: input.target,
      journal,
      journalMemory,
      scratch: memory.scratchAt,
      spaces: this.#spaces,
      builder: this.#builder,
      probes: this.probes,
      builtPoints: this.builtPoints,
      names: this.naming.given,
    });
    this.livePoints = new LivePoints({
      probes: this.probes,
      builder: this.#builder,
      functionOps: () => this.functionOps,
      arm: (points) => this.arm(points),
      link: () => this.naming.link(),
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
    const { target, gates, mapsLayout } = input;
    const returnEntries = returnTableEntries(input.maxActive);
    const memory = await SessionMemory.create({
      target,
      capacity: input.capacity + SPARE_RECORDS,
      tableBytes: returnTableBytes(returnEntries),
      maps: { fd: input.sharedMapsFd, pageBytes: input.mapsPageBytes, lenBytes: mapsLayout.totalBytes },
      hasStacks: highest(levelsOf(gates)) !== "none",
      wantsKey: gates.process.level === "strict",
    });
    try {
      const env: LinkEnv = {
        mapAddr: (index) => memory.mapsAt + BigInt(mapsLayout.offsets[index]!),
        cpu: processorSource(),
        clockGettime: input.images.findVdsoFunction("__vdso_clock_gettime"),
        tidOffset: usesTid(input.proofs) ? await target.findTidOffset(TID_OFFSETS) : undefined,
        pidCache: memory.pidCacheAt,
      };
      const { stacksAt } = memory;
      const stacks =
        stacksAt === undefined
          ? undefined
          : {
              at: stacksAt,
              hasThreadPointers: await target.hasThreadPointers(),
              mailbox: await memory.addMailbox(MAILBOX_BYTES),
            };
      return new Attachment(input, memory, env, { returnEntries, stacks });
    } catch (error) {
      await restoreProcess(target, memory.journalMemory, []);
      memory.close();
      throw error;
    }
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
      for (const { at, bytes } of returnLookupWrites(this.memory.pidCacheAt, returnLookup))
        await this.target.write(at, bytes);
    }
    this.#noteImages(built);
    await this.#traps.add(built.filter((point) => point.plan.mechanism === "int3"));
    const report = await this.probes.arm(built.map((point) => point.code));
    this.builtPoints.push(...built);
    this.functionOps.adopt(built);
    await this.#trapHemmedPoints();
    this.naming.add(built);
    await this.naming.link();
    return { refused, report };
  }

  /** Gives the target memory for the maps of one more bundle, whose programs can be armed from then on. */
  async addBundle(
    bundle: Bundle,
    proofs: readonly Proof[],
    accountMap: number | undefined,
  ): Promise<{ readonly number: number; readonly maps: SharedMaps }> {
    const layout = layoutSharedMaps(bundle.maps, 0, 0);
    const { at, mapping } = await this.memory.addMaps(layout.totalBytes);
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

  /** Protection key of the data; undefined: it has none. */
  get key(): number | undefined {
    return this.memory.key;
  }

  /** Where the session's own journal is mapped. */
  get journalMemory(): AddrRange {
    return this.memory.journalMemory;
  }

  /** The memory of the maps, if this target's is the one that the others share. */
  get ownMaps(): SessionMemory["ownMaps"] {
    return this.memory.ownMaps;
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
    this.naming.add(built);
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
      this.memory.pidCacheAt + BigInt(PID_CACHE_TID_OFFSET),
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
    this.naming.end();
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

  /** Whether there are private stacks for probes to run on. */
  get hasStacks(): boolean {
    return this.memory.stacksAt !== undefined;
  }

  #levelOf(run: Runnable, asked: GateLevel | undefined): GateLevel {
    if (run.kind !== "program") return "none";
    const proofs = this.#compiler.proofsOf(run);
    return gateOfProbe(this.gates.process, asked, { proofs, index: run.index }).level;
  }

  /** Processes that the target has forked and that carry copies of the probes. */
  findHeirs(): number[] {
    return findHeirs(this.memory.journalInode, this.target.pid);
  }

  /**
   * Whether the process has become another program: it has none of our memory, then. To be asked often. One that is just ending
   * has no memory at all.
   */
  isReplaced(): boolean {
    const mark = new Uint8Array(this.memory.journalMapping.buffer, 0, JOURNAL_MARK_BYTES);
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
    if (this.#keepsNames) this.naming.end();
    else this.naming.withdraw();
  }

  /** Lets go of what the tracer holds of a program that has been replaced by another. Its children can still be put back. */
  abandon(): void {
    this.withdrawNames();
    this.naming[Symbol.dispose]();
    this.images[Symbol.dispose]();
    this.memory.close();
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

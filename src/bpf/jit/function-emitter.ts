/**
 * Writes the machine code of one function, operation by operation.
 *
 *     entry   push ...                 what a local function gives back, as far as it changes it
 *             sub rsp, N               unless the red zone is enough
 *             ...                      stack at [rsp + N + off]; in the main function context at [rsp + N + 8 + off]
 *             add rsp, N
 *             pop ...
 *             ret
 *
 * The main function is called with the context right above the return address, and gives nothing back: whoever calls
 * it saves what it changes. A local function has its arguments and its result where routines have theirs. At the
 * bottom of the frame are the program's state (program-state.ts) and the words of iterations, if there are any.
 *
 * Invariants: no register outside `clobbers` changes; nothing is pushed while a function runs, so that the distance
 * to stack and context is constant; a scratch register is one that no BPF register has, so it needs no saving.
 */
import type { Assembler, Label, Mem } from "../../x86/assembler.ts";
import { hasReg, R11, RAX, type Reg, type RegSet, RSI, RSP, regsOf } from "../../x86/registers.ts";
import { ACCOUNT_DROPPED, ACCOUNT_PASSED, ACCOUNT_SHARD_SHIFT, ACCOUNT_SHARDS } from "../accounts.ts";
import { type Assignment, calleeSavedRegs, preferredRegs } from "./allocate.ts";
import { emitCpuWord } from "./cpu-number.ts";
import { emitAlu, emitByteOrder, emitShift, type ZeroFlag } from "./emit-arithmetic.ts";
import { emitAtomic } from "./emit-atomic.ts";
import { emitForEach, emitLoop } from "./emit-callbacks.ts";
import { emitDivide } from "./emit-divide.ts";
import { JitError } from "./jit-error.ts";
import type { LinkEnv, ProgramAccount } from "./link-env.ts";
import type { Liveness, OpList } from "./liveness.ts";
import { emitAddress } from "./memory-moves.ts";
import { LOCAL_WORDS, type OperationContext, type ScratchPool } from "./operation-context.ts";
import { isCallLike, type Op, type OpMem } from "./operations.ts";
import {
  type ProgramState,
  STATE_DROPPED,
  STATE_OWNER,
  STATE_REG,
  STATE_SLOT,
  STATE_TAIL_CALLS,
  stateBytes,
} from "./program-state.ts";
import type { Routine } from "./routines/routine.ts";

/** Below rsp a leaf may use this much: neither signals nor the kernel touch it (psABI, section 3.2.2). */
const RED_ZONE_BYTES = 128;
const RETURN_ADDRESS_BYTES = 8;
const ALL_REGS: RegSet = 0xffff & ~(1 << RSP);
/** The kernel's limit: one more tail call does nothing. */
const MAX_TAIL_CALLS = 33;

/** Where tail calls lead. */
export interface TailTargets {
  /** Code that goes to the program whose index is in rax, with the context in rdi. */
  readonly dispatch: Label;
  readonly count: number;
}

export interface FunctionInput {
  readonly asm: Assembler;
  readonly env: LinkEnv;
  readonly list: OpList;
  readonly live: Liveness;
  readonly assignment: Assignment;
  readonly isTarget: readonly boolean[];
  /** What lies above the return address; "local": nothing, the arguments are in registers. */
  readonly entry: "context" | "memory" | "local";
  /** Told where the code of the slot begins, or of what is out of line: the number of slots. */
  readonly mark: ((slot: number, label: Label) => void) | undefined;
  /** Deepest use of the frame below r10. */
  readonly frameBytes: number;
  /** Registers that it gives back. */
  readonly saved: RegSet;
  /** Registers that it must leave alone. */
  readonly untouched: RegSet;
  readonly state: ProgramState;
  readonly tailTargets: TailTargets | undefined;
  /** Fills the cache of process ids; changes nothing else. */
  readonly fillPidCache: () => Routine;
  /** Fills the state's slot. */
  readonly takeSlot: () => Routine;
}

export interface EmittedFunction {
  readonly entry: Label;
  readonly end: Label;
  readonly clobbers: RegSet;
  readonly stackBytes: number;
  /** Bytes below rsp at entry where the deepest tail call puts its return address; undefined: there is none. */
  readonly tailDepth: number | undefined;
}

/** Whether a function whose operations these are must move rsp before it uses its frame. */
function callsAnything(op: Op | undefined): boolean {
  return op !== undefined && (isCallLike(op) || (op.kind === "pid-tgid" && op.part !== "tid"));
}

export class FunctionEmitter implements OperationContext {
  readonly asm: Assembler;
  readonly #input: FunctionInput;
  readonly #isMain: boolean;
  readonly #labels = new Map<number, Label>();
  readonly #assigned: RegSet;
  #clobbers: RegSet = 0;
  #calleeBytes = 0;
  #tailDepth: number | undefined;
  /** What rsp is below its value after the pushes. */
  readonly #frameBytes: number;
  readonly #pushedBytes: number;
  /** Where in the frame the local words begin. */
  readonly #localsAt: number;
  readonly #outOfLine: (() => void)[] = [];
  /** Where the function is left, once that is written. */
  #leave: Label | undefined;
  /** The slot of the operation that is being written. */
  #slot = 0;
  #zeroFlag: ZeroFlag | undefined;

  constructor(input: FunctionInput) {
    this.asm = input.asm;
    this.#input = input;
    this.#isMain = input.entry !== "local";
    this.#assigned = input.assignment.reduce<RegSet>(
      (set, reg) => (reg === undefined ? set : set | (1 << reg)),
      0,
    );
    const { ops } = input.list;
    const hasLocals = ops.some((op) => op?.kind === "loop" || op?.kind === "for-each");
    this.#localsAt = this.#isMain ? stateBytes(input.state) : 0;
    const rounded = Math.ceil(input.frameBytes / 8) * 8 + this.#localsAt + (hasLocals ? LOCAL_WORDS * 8 : 0);
    const isLeaf = this.#localsAt === 0 && !ops.some(callsAnything);
    this.#frameBytes = isLeaf && rounded <= RED_ZONE_BYTES ? 0 : rounded;
    this.#pushedBytes = regsOf(input.saved).length * 8;
  }

  emit(): EmittedFunction {
    const { asm } = this;
    const { list, live, isTarget, saved, mark } = this.#input;
    const entry = asm.here("function");
    const end = asm.label("function end");
    for (const slot of list.ops.keys()) if (isTarget[slot] === true) this.#labels.set(slot, asm.label());
    for (const machine of regsOf(saved)) asm.push(machine);
    if (this.#frameBytes > 0) asm.subImm(RSP, this.#frameBytes);
    if (this.#isMain) this.#beginState();
    this.#arguments(live.atEntry);
    for (const [slot, op] of list.ops.entries()) {
      const label = this.#labels.get(slot);
      if (label !== undefined) asm.bind(label);
      this.#slot = slot;
      if (label !== undefined) this.#zeroFlag = undefined;
      if (op === undefined) continue;
      mark?.(slot, asm.here());
      const flag = this.#zeroFlag;
      this.#zeroFlag = undefined;
      this.#op(op, flag);
    }
    mark?.(list.ops.length, asm.here());
    for (const emitTail of this.#outOfLine.splice(0)) emitTail();
    asm.bind(end);
    const wrong = this.#isMain ? 0 : this.#clobbers & this.#input.untouched;
    if (wrong !== 0) throw new JitError(`emit function: registers 0x${wrong.toString(16)} must not change`);
    const used = Math.max(Math.ceil(this.#input.frameBytes / 8) * 8, this.#frameBytes + this.#calleeBytes);
    return {
      entry,
      end,
      clobbers: this.#clobbers & ~saved,
      stackBytes: this.#pushedBytes + used,
      tailDepth: this.#tailDepth,
    };
  }

  /** Sets up what the functions of the program share. */
  #beginState(): void {
    const { asm } = this;
    const { state, takeSlot } = this.#input;
    if (this.#input.entry === "context") this.#countHit();
    if (state.isInRegister) asm.mov(this.clobber(STATE_REG), RSP);
    if (state.hasDrops) asm.movImm(this.#stateWord(STATE_DROPPED), 0);
    if (state.hasTailCalls) asm.movImm(this.#stateWord(STATE_TAIL_CALLS), 0);
    if (state.hasSlot) this.call(takeSlot());
  }

  /** Nothing is in registers yet, so that those of the program itself can be used. */
  #countHit(): void {
    const { account } = this.#input.env;
    if (account === undefined || account.isKeptByProgram) return;
    const isFree = (reg: Reg) => !hasReg(this.#input.untouched, reg);
    const own = preferredRegs.filter((reg) => isFree(reg) && hasReg(this.#assigned, reg));
    const [offset, base] = [...own, ...preferredRegs.filter((reg) => isFree(reg) && !own.includes(reg))];
    this.#count(account, ACCOUNT_PASSED, offset!, base!);
  }

  /** Adds 1 to a word of the account; both registers change. */
  #count(account: ProgramAccount, word: number, offset: Reg, base: Reg): void {
    const { asm } = this;
    emitCpuWord(asm, this.clobber(offset), this.#input.env.cpu);
    asm.andImm(offset, ACCOUNT_SHARDS - 1, 32);
    asm.shl(offset, ACCOUNT_SHARD_SHIFT, 32);
    emitAddress(asm, this.clobber(base), account.at);
    asm.lock().inc({ base, index: offset, disp: word });
  }

  /** An event that found no room is noted; the hit counts as dropped once, however many of its events did. */
  #noteDrop(result: number): void {
    const { asm } = this;
    const [lost, goOn] = [asm.label("lost"), asm.label("go on")];
    if (result === 0) asm.test(RAX, RAX);
    else asm.cmpImm(RAX, result);
    asm.jcc("e", lost);
    asm.bind(goOn);
    this.outOfLine(() => {
      asm.bind(lost);
      asm.movImm(this.#stateWord(STATE_DROPPED), 1);
      asm.jmp(goOn);
    });
  }

  #countDrop(): void {
    const { asm } = this;
    const { account } = this.#input.env;
    if (account === undefined) return;
    const [lost, leave] = [asm.label("lost"), asm.label("count and leave")];
    asm.cmpImm(this.#stateWord(STATE_DROPPED), 0);
    asm.jcc("ne", lost);
    asm.bind(leave);
    // The result may be in rax, the state in its register; every other register is free.
    const [offset, base] = preferredRegs.filter((reg) => reg !== RAX && !hasReg(this.#input.untouched, reg));
    this.outOfLine(() => {
      asm.bind(lost);
      this.#count(account, ACCOUNT_DROPPED, offset!, base!);
      asm.jmp(leave);
    });
  }

  #stateWord(disp: number): Mem {
    return { base: this.#isMain ? RSP : STATE_REG, disp };
  }

  /** Sets the registers that a program begins with, as far as it reads them. */
  #arguments(atEntry: number): void {
    const isRead = (bpf: number) => ((atEntry >> bpf) & 1) !== 0;
    if (this.#input.entry === "local") return;
    if (this.#input.entry === "context") {
      if (isRead(1)) this.#address(this.dst(1), "ctx", 0);
      return;
    }
    for (const bpf of [1, 2])
      if (isRead(bpf)) this.asm.mov(this.dst(bpf), this.mem({ base: "ctx", disp: (bpf - 1) * 8 }));
  }

  reg(bpf: number): Reg {
    const machine = this.#input.assignment[bpf];
    if (machine === undefined) throw new JitError(`emit program: r${bpf} has no register`);
    return machine;
  }

  dst(bpf: number): Reg {
    const machine = this.reg(bpf);
    this.clobber(machine);
    return machine;
  }

  clobber(machine: Reg): Reg {
    this.#clobbers |= 1 << machine;
    return machine;
  }

  scratchPool(besides: RegSet): ScratchPool {
    let taken = this.#assigned | besides | this.#input.untouched;
    const find = () => {
      const isFree = (machine: Reg) => !hasReg(taken, machine);
      // One that the program changes anyway costs nothing more.
      const machine =
        preferredRegs.find((reg) => isFree(reg) && hasReg(this.#clobbers, reg)) ?? preferredRegs.find(isFree);
      if (machine === undefined) return undefined;
      taken |= 1 << machine;
      return this.clobber(machine);
    };
    return {
      find,
      take: () => {
        const machine = find();
        if (machine === undefined) throw new JitError("emit function: no scratch register is left");
        return machine;
      },
    };
  }

  isNeededAfter(machine: Reg, dst: number): boolean {
    const after = this.#input.live.after[this.#slot]!;
    return this.#input.assignment.some(
      (assigned, bpf) => assigned === machine && bpf !== dst && ((after >> bpf) & 1) !== 0,
    );
  }

  mem(mem: OpMem): Mem {
    const { base, index, disp } = mem;
    const scaled = index === undefined ? {} : { index: this.reg(index.reg), scale: index.scale };
    if (base === "stack") return { base: RSP, disp: this.#frameBytes + disp, ...scaled };
    if (base === "ctx") return { base: RSP, disp: this.#frameBytes + RETURN_ADDRESS_BYTES + disp, ...scaled };
    if (typeof base === "bigint") return { ripTo: base + BigInt(disp) };
    return { base: this.reg(base), disp, ...scaled };
  }

  /** `flag` is what the zero flag tells about the operation before. */
  #op(op: Op, flag: ZeroFlag | undefined): void {
    const { asm } = this;
    switch (op.kind) {
      case "const":
        this.constant(this.dst(op.dst), op.value);
        return;
      case "address":
        this.#address(this.dst(op.dst), op.of, op.off);
        return;
      case "move": {
        const [dst, src] = [this.dst(op.dst), this.reg(op.src)];
        if (dst !== src || op.width === 32) asm.mov(dst, src, op.width);
        return;
      }
      case "extend":
        asm.movsx(this.dst(op.dst), this.reg(op.src), op.from, op.width);
        return;
      case "alu":
        this.#zeroFlag = emitAlu(this, op);
        return;
      case "shift":
        this.#zeroFlag = emitShift(this, op);
        return;
      case "divide":
        emitDivide(this, op);
        return;
      case "negate":
        asm.neg(this.dst(op.dst), op.width);
        this.#zeroFlag = { reg: this.reg(op.dst), width: op.width };
        return;
      case "byte-order":
        emitByteOrder(this, op);
        return;
      case "load":
        this.#load(op);
        return;
      case "store": {
        const size = (op.lenBytes * 8) as 8 | 16 | 32 | 64;
        if (op.src.kind === "imm") asm.movImm(this.mem(op.mem), op.src.value, size);
        else asm.mov(this.mem(op.mem), this.reg(op.src.reg), size);
        return;
      }
      case "atomic":
        emitAtomic(this, op);
        return;
      case "branch":
        this.#branch(op, flag);
        return;
      case "goto":
        // A jump to what follows anyway.
        if (this.#nextSlotWithCode(this.#slot + 1) !== this.#nextSlotWithCode(op.target))
          asm.jmp(this.#labelOf(op.target));
        return;
      case "exit":
        this.#exit();
        return;
      case "cpu": {
        const dst = this.dst(op.dst);
        emitCpuWord(asm, dst, this.#input.env.cpu);
        asm.andImm(dst, op.mask, 32);
        return;
      }
      case "pid-tgid":
        this.#pidTgid(this.dst(op.dst), op.part);
        return;
      case "array-lookup":
        this.#arrayLookup(op);
        return;
      case "release-record": {
        // The header lies 16 bytes before the record: 8 of state, 4 of length, 4 of flags (maps/ring-layout.ts).
        const record = this.reg(op.record);
        if (op.isDiscarded) asm.movImm({ base: record, disp: -4 }, 1, 32);
        asm.inc({ base: record, disp: -16 });
        return;
      }
      case "call":
        if (op.takesSlot) this.loadCpuSlot(R11);
        this.call(op.routine);
        if (op.noRoom !== undefined && this.#input.state.hasDrops) this.#noteDrop(op.noRoom);
        return;
      case "loop":
        emitLoop(this, op);
        return;
      case "for-each":
        emitForEach(this, op);
        return;
      case "tail-call":
        this.#tailCall(op);
        return;
      default:
        op satisfies never;
    }
  }

  /** Leaves the function; where that takes more than a few bytes it is written once. */
  #exit(): void {
    const { asm } = this;
    const { hasSlot, hasDrops } = this.#input.state;
    const isShort = this.#input.saved === 0 && !(this.#isMain && (hasSlot || hasDrops));
    if (this.#leave !== undefined && !isShort) {
      asm.jmp(this.#leave);
      return;
    }
    this.#leave = asm.here("leave");
    if (this.#isMain && hasDrops) this.#countDrop();
    if (this.#isMain && hasSlot) {
      // The result may be in rax; every other register is free.
      const owner = this.clobber(R11);
      asm.mov(owner, this.#stateWord(STATE_OWNER));
      asm.movImm({ base: owner }, 0);
    }
    this.#unwind();
    asm.ret();
  }

  #unwind(): void {
    if (this.#frameBytes > 0) this.asm.addImm(RSP, this.#frameBytes);
    for (const machine of regsOf(this.#input.saved).reverse()) this.asm.pop(machine);
  }

  /**
   * The main function calls the other program, because its frame holds the state, and leaves when that is done. A local
   * function makes place for it: its exit is this function's.
   */
  #tailCall({ array }: Extract<Op, { kind: "tail-call" }>): void {
    const { asm } = this;
    const targets = this.#input.tailTargets;
    if (targets === undefined) throw new JitError("emit tail call: no programs to go to");
    const index = this.reg(3);
    const none = asm.label("no program");
    this.clobber(RAX);
    this.clobber(RSI);
    asm.cmpImm(index, array.maxEntries, 32);
    asm.jcc("ae", none);
    asm.cmpImm(this.#stateWord(STATE_TAIL_CALLS), MAX_TAIL_CALLS, 32);
    asm.jcc("ae", none);
    asm.mov(RAX, index, 32);
    this.constant(RSI, array.slots);
    asm.mov(RAX, { base: RSI, index: RAX, scale: 8 });
    // 0 is an empty slot, and whatever else is in there is not to be believed.
    asm.dec(RAX);
    asm.cmpImm(RAX, targets.count);
    asm.jcc("ae", none);
    asm.inc(this.#stateWord(STATE_TAIL_CALLS), 32);
    if (this.#isMain) {
      this.#tailDepth = this.#pushedBytes + this.#frameBytes + RETURN_ADDRESS_BYTES;
      asm.call(targets.dispatch);
      this.#exit();
    } else {
      this.#tailDepth ??= 0;
      // What the other program changes is known only when all are compiled.
      this.#clobbers |= ALL_REGS & ~calleeSavedRegs;
      this.#unwind();
      asm.jmp(targets.dispatch);
    }
    asm.bind(none);
  }

  localWord(index: number): Mem {
    return { base: RSP, disp: this.#localsAt + index * 8 };
  }

  loadCpuSlot(dst: Reg): void {
    this.asm.mov(this.clobber(dst), this.#stateWord(STATE_SLOT));
  }

  stackAddress(dst: Reg, off: number): void {
    this.#address(dst, "stack", off);
  }

  outOfLine(emit: () => void): void {
    this.#outOfLine.push(emit);
  }

  constant(dst: Reg, value: bigint): void {
    const { asm } = this;
    const isSignExtended = BigInt.asIntN(32, value) === BigInt.asIntN(64, value);
    if (value === 0n) asm.zero(dst);
    else if (isSignExtended) asm.movImm(dst, value);
    else emitAddress(asm, dst, value);
  }

  #address(dst: Reg, of: "stack" | "ctx", off: number): void {
    const disp = this.#frameBytes + (of === "ctx" ? RETURN_ADDRESS_BYTES : 0) + off;
    if (disp === 0) this.asm.mov(dst, RSP);
    else this.asm.lea(dst, { base: RSP, disp });
  }

  #load(op: Extract<Op, { kind: "load" }>): void {
    const { asm } = this;
    const mem = this.mem(op.mem);
    const dst = this.dst(op.dst);
    if (op.lenBytes === 8) asm.mov(dst, mem);
    else if (op.isSigned) asm.movsx(dst, mem, (op.lenBytes * 8) as 8 | 16 | 32);
    else if (op.lenBytes === 4) asm.mov(dst, mem, 32);
    else asm.movzx(dst, mem, (op.lenBytes * 8) as 8 | 16);
  }

  #branch(op: Extract<Op, { kind: "branch" }>, flag: ZeroFlag | undefined): void {
    const { asm } = this;
    const dst = this.reg(op.dst);
    const { src } = op;
    if (src.kind === "reg") {
      if (op.isBitTest) asm.test(dst, this.reg(src.reg), op.width);
      else asm.cmp(dst, this.reg(src.reg), op.width);
    } else if (op.isBitTest) {
      asm.testImm(dst, src.value, src.value >= 0 ? 32 : op.width);
    } else if (src.value === 0) {
      const isKnown =
        flag?.reg === dst && flag.width === op.width && (op.condition === "e" || op.condition === "ne");
      if (!isKnown) asm.test(dst, dst, op.width);
    } else {
      asm.cmpImm(dst, src.value, op.width);
    }
    asm.jcc(op.condition, this.#labelOf(op.target));
  }

  #pidTgid(dst: Reg, part: "both" | "pid" | "tid"): void {
    const { asm } = this;
    const { tidOffset, pidCache } = this.#input.env;
    if (part === "tid") {
      asm.mov(dst, { fs: tidOffset! }, 32);
      return;
    }
    const cache = this.scratchPool(0).take();
    const [retry, fill] = [asm.here("pid"), asm.label("fill pid")];
    this.constant(cache, pidCache);
    asm.mov(dst, { base: cache }, 32);
    asm.test(dst, dst, 32);
    asm.jcc("e", fill);
    if (part === "both") {
      asm.shl(dst, 32);
      asm.mov(cache, { fs: tidOffset! }, 32);
      asm.or(dst, cache);
    }
    const routine = this.#input.fillPidCache();
    this.#noteCall(routine);
    this.#outOfLine.push(() => {
      asm.bind(fill);
      asm.call(routine.label);
      asm.jmp(retry);
    });
  }

  #arrayLookup(op: Extract<Op, { kind: "array-lookup" }>): void {
    const { asm } = this;
    const key = this.mem(op.key);
    const dst = this.dst(op.dst);
    const base = this.scratchPool(0).take();
    const [none, done] = [asm.label("no element"), asm.label("element")];
    asm.mov(dst, key, 32);
    asm.cmpImm(dst, op.maxEntries, 32);
    asm.jcc("ae", none);
    this.constant(base, op.base);
    const power = Math.log2(op.stride);
    if (power === 3) asm.lea(dst, { base, index: dst, scale: 8 });
    else {
      if (Number.isInteger(power)) asm.shl(dst, power);
      else asm.imulImm(dst, dst, op.stride);
      asm.add(dst, base);
    }
    asm.bind(done);
    this.#outOfLine.push(() => {
      asm.bind(none);
      asm.zero(dst);
      asm.jmp(done);
    });
  }

  call(routine: Routine): void {
    // A routine that uses the register of the state for itself does so between these two.
    const keepsState = this.#input.state.isInRegister && hasReg(routine.clobbers, STATE_REG);
    if (keepsState) this.asm.push(STATE_REG);
    this.asm.call(routine.label);
    if (keepsState) this.asm.pop(STATE_REG);
    this.#noteCall(routine, keepsState ? 8 : 0);
  }

  #noteCall(routine: Routine, pushedBytes = 0): void {
    const { clobbers, stackBytes, tailDepth } = routine;
    this.#clobbers |= pushedBytes > 0 ? clobbers & ~(1 << STATE_REG) : clobbers;
    const below = pushedBytes + RETURN_ADDRESS_BYTES;
    this.#calleeBytes = Math.max(this.#calleeBytes, below + stackBytes);
    if (tailDepth !== undefined) {
      const depth = this.#pushedBytes + this.#frameBytes + below + tailDepth;
      this.#tailDepth = Math.max(this.#tailDepth ?? 0, depth);
    }
  }

  #labelOf(slot: number): Label {
    const label = this.#labels.get(slot);
    if (label === undefined) throw new JitError(`emit program: no label at ${slot}`);
    return label;
  }

  #nextSlotWithCode(slot: number): number {
    const { ops } = this.#input.list;
    let at = slot;
    while (at < ops.length && ops[at] === undefined) at++;
    return at;
  }
}

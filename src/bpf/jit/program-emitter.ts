/**
 * Writes the machine code of one program, operation by operation.
 *
 *     entry   sub rsp, N               unless the red zone is enough
 *             ...                      stack at [rsp + N + off], context at [rsp + N + 8 + off]
 *             add rsp, N
 *             ret
 *
 * Invariants: no register outside `clobbers` changes; nothing is pushed while a program runs, so that the distance
 * to stack and context is constant; a scratch register is one that no BPF register has, so it needs no saving.
 */
import type { Assembler, Label, Mem } from "../../x86/assembler.ts";
import { hasReg, RCX, type Reg, type RegSet, RSP } from "../../x86/registers.ts";
import { type Assignment, preferredRegs } from "./allocate.ts";
import { emitAtomic } from "./emit-atomic.ts";
import { emitDivide } from "./emit-divide.ts";
import { JitError } from "./jit-error.ts";
import type { LinkEnv } from "./link-env.ts";
import type { Liveness, OpList } from "./liveness.ts";
import { emitAddress } from "./memory-moves.ts";
import type { OperationContext, ScratchPool } from "./operation-context.ts";
import type { Op, OpMem } from "./operations.ts";
import type { Routine } from "./routine.ts";

/** Below rsp a leaf may use this much: neither signals nor the kernel touch it (psABI, section 3.2.2). */
const RED_ZONE_BYTES = 128;
const RETURN_ADDRESS_BYTES = 8;
/** The selector whose limit holds the processor number on Linux. */
const CPU_SELECTOR = 0x7b;

export interface EmitterInput {
  readonly asm: Assembler;
  readonly env: LinkEnv;
  readonly list: OpList;
  readonly live: Liveness;
  readonly assignment: Assignment;
  readonly isTarget: readonly boolean[];
  readonly entry: "context" | "memory";
  readonly marksSlots: boolean;
  readonly frameBytes: number;
  /** Fills the cache of process ids; changes nothing else. */
  readonly fillPidCache: () => Routine;
}

export interface EmittedProgram {
  readonly entry: Label;
  readonly end: Label;
  readonly clobbers: RegSet;
  readonly stackBytes: number;
  readonly slots: ReadonlyMap<number, Label>;
}

export class ProgramEmitter implements OperationContext {
  readonly asm: Assembler;
  readonly #input: EmitterInput;
  readonly #labels = new Map<number, Label>();
  readonly #assigned: RegSet;
  #clobbers: RegSet = 0;
  #calleeBytes = 0;
  /** What rsp is below its value at entry. */
  readonly #frameBytes: number;
  readonly #outOfLine: (() => void)[] = [];
  /** The slot of the operation that is being written. */
  #slot = 0;
  /** What the zero flag tells: whether this register, in this width, is zero. */
  #zeroFlag: { readonly reg: Reg; readonly width: 32 | 64 } | undefined;

  constructor(input: EmitterInput) {
    this.asm = input.asm;
    this.#input = input;
    this.#assigned = input.assignment.reduce<RegSet>(
      (set, reg) => (reg === undefined ? set : set | (1 << reg)),
      0,
    );
    const rounded = Math.ceil(input.frameBytes / 8) * 8;
    const isLeaf = !input.list.ops.some(
      (op) => op?.kind === "call" || (op?.kind === "pid-tgid" && op.part !== "tid"),
    );
    this.#frameBytes = isLeaf && rounded <= RED_ZONE_BYTES ? 0 : rounded;
  }

  emit(): EmittedProgram {
    const { asm } = this;
    const { list, live, isTarget } = this.#input;
    const entry = asm.here("program");
    const end = asm.label("program end");
    const slots = new Map<number, Label>();
    for (const slot of list.ops.keys()) if (isTarget[slot] === true) this.#labels.set(slot, asm.label());
    if (this.#frameBytes > 0) asm.subImm(RSP, this.#frameBytes);
    this.#arguments(live.atEntry);
    for (const [slot, op] of list.ops.entries()) {
      const label = this.#labels.get(slot);
      if (label !== undefined) asm.bind(label);
      this.#slot = slot;
      if (label !== undefined) this.#zeroFlag = undefined;
      if (op === undefined) continue;
      if (this.#input.marksSlots) slots.set(slot, asm.here());
      const flag = this.#zeroFlag;
      this.#zeroFlag = undefined;
      this.#op(op, flag);
    }
    if (this.#input.marksSlots) slots.set(list.ops.length, asm.here());
    for (const emitTail of this.#outOfLine.splice(0)) emitTail();
    asm.bind(end);
    return {
      entry,
      end,
      clobbers: this.#clobbers,
      slots,
      stackBytes: Math.max(Math.ceil(this.#input.frameBytes / 8) * 8, this.#frameBytes + this.#calleeBytes),
    };
  }

  /** Sets the registers that a program begins with, as far as it reads them. */
  #arguments(atEntry: number): void {
    const isRead = (bpf: number) => ((atEntry >> bpf) & 1) !== 0;
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
    let taken = this.#assigned | besides;
    return {
      take: () => {
        const isFree = (machine: Reg) => !hasReg(taken, machine);
        // One that the program changes anyway costs nothing more.
        const machine =
          preferredRegs.find((reg) => isFree(reg) && hasReg(this.#clobbers, reg)) ??
          preferredRegs.find(isFree);
        if (machine === undefined) throw new JitError("emit program: no scratch register is left");
        taken |= 1 << machine;
        return this.clobber(machine);
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
  #op(op: Op, flag: { readonly reg: Reg; readonly width: 32 | 64 } | undefined): void {
    const { asm } = this;
    switch (op.kind) {
      case "const":
        this.#constant(this.dst(op.dst), op.value);
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
        this.#alu(op);
        return;
      case "shift":
        this.#shift(op);
        return;
      case "divide":
        emitDivide(this, op);
        return;
      case "negate":
        asm.neg(this.dst(op.dst), op.width);
        this.#zeroFlag = { reg: this.reg(op.dst), width: op.width };
        return;
      case "byte-order":
        this.#byteOrder(op);
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
        if (this.#frameBytes > 0) asm.addImm(RSP, this.#frameBytes);
        asm.ret();
        return;
      case "cpu": {
        const dst = this.dst(op.dst);
        if (this.#input.env.cpu === "rdpid") asm.rdpid(dst);
        else {
          asm.movImm(dst, CPU_SELECTOR);
          asm.lsl(dst, dst);
        }
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
        // The header lies 16 bytes before the record: 8 of state, 4 of length, 4 of flags (maps/layout.ts).
        const record = this.reg(op.record);
        if (op.isDiscarded) asm.movImm({ base: record, disp: -4 }, 1, 32);
        asm.inc({ base: record, disp: -16 });
        return;
      }
      case "call":
        this.#call(op.routine);
        return;
      default:
        op satisfies never;
    }
  }

  #constant(dst: Reg, value: bigint): void {
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

  #alu(op: Extract<Op, { kind: "alu" }>): void {
    const { asm } = this;
    const dst = this.dst(op.dst);
    if (op.src.kind === "reg") {
      if (op.op === "mul") asm.imul(dst, this.reg(op.src.reg), op.width);
      else {
        asm.alu(op.op, dst, this.reg(op.src.reg), op.width);
        this.#zeroFlag = { reg: dst, width: op.width };
      }
      return;
    }
    const { value } = op.src;
    const power = Math.log2(value >>> 0);
    if (op.op === "mul") {
      if (value === 0) asm.zero(dst);
      else if (value === 1) this.#keepWidth(dst, op.width);
      else if (value > 0 && Number.isInteger(power)) asm.shl(dst, power, op.width);
      else asm.imulImm(dst, dst, value, op.width);
      return;
    }
    if (op.op === "and") {
      if (value === -1) this.#keepWidth(dst, op.width);
      else if (value === 0xff) asm.movzx(dst, dst, 8);
      else if (value === 0xffff) asm.movzx(dst, dst, 16);
      else {
        // The high half becomes zero either way.
        asm.andImm(dst, value, value >= 0 ? 32 : op.width);
        this.#zeroFlag = { reg: dst, width: op.width };
      }
      return;
    }
    if (value === 0) this.#keepWidth(dst, op.width);
    else if (op.op === "xor" && value === -1) asm.not(dst, op.width);
    else {
      asm.aluImm(op.op, dst, value, op.width);
      this.#zeroFlag = { reg: dst, width: op.width };
    }
  }

  /** An operation without effect, except that 32-bit ones clear the high half. */
  #keepWidth(dst: Reg, width: 32 | 64): void {
    if (width === 32) this.asm.mov(dst, dst, 32);
  }

  #shift(op: Extract<Op, { kind: "shift" }>): void {
    const { asm } = this;
    const dst = this.dst(op.dst);
    if (op.src.kind === "imm") {
      const count = op.src.value & (op.width - 1);
      if (count === 0) this.#keepWidth(dst, op.width);
      else {
        asm.shift(op.op, dst, count, op.width);
        this.#zeroFlag = { reg: dst, width: op.width };
      }
      return;
    }
    const count = this.reg(op.src.reg);
    if (count === RCX && dst !== RCX) {
      asm.shiftCl(op.op, dst, op.width);
      return;
    }
    this.clobber(RCX);
    if (dst === RCX) {
      const temp = this.scratchPool(1 << RCX).take();
      asm.mov(temp, RCX);
      if (count !== RCX) asm.mov(RCX, count, 32);
      asm.shiftCl(op.op, temp, op.width);
      asm.mov(RCX, temp);
      return;
    }
    const saved = this.isNeededAfter(RCX, op.dst) ? this.scratchPool(1 << RCX).take() : undefined;
    if (saved !== undefined) asm.mov(saved, RCX);
    asm.mov(RCX, count, 32);
    asm.shiftCl(op.op, dst, op.width);
    if (saved !== undefined) asm.mov(RCX, saved);
  }

  #byteOrder(op: Extract<Op, { kind: "byte-order" }>): void {
    const { asm } = this;
    const dst = this.dst(op.dst);
    if (op.bits === 16) {
      if (op.swaps) asm.rol(dst, 8, 16);
      asm.movzx(dst, dst, 16);
    } else if (op.swaps) asm.bswap(dst, op.bits);
    else if (op.bits === 32) asm.mov(dst, dst, 32);
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

  #branch(
    op: Extract<Op, { kind: "branch" }>,
    flag: { readonly reg: Reg; readonly width: 32 | 64 } | undefined,
  ): void {
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
    this.#constant(cache, pidCache);
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
    this.#constant(base, op.base);
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

  #call(routine: Routine): void {
    this.asm.call(routine.label);
    this.#noteCall(routine);
  }

  #noteCall(routine: Routine): void {
    this.#clobbers |= routine.clobbers;
    this.#calleeBytes = Math.max(this.#calleeBytes, RETURN_ADDRESS_BYTES + routine.stackBytes);
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

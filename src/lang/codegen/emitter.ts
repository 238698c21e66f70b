/**
 * From virtual registers with a place each to BPF instructions: argument moves of calls, two-operand forms,
 * jumps to the next instruction left out.
 */
import {
  type BpfReg,
  type BuiltInsns,
  bpfRegs,
  InsnBuilder,
  type Label,
  r0,
  r1,
  r10,
} from "../../bpf/index.ts";
import { type CallArgument, type IrInsn, type IrLabel, isVReg, type VReg } from "./ir.ts";
import type { Allocation, Location } from "./registers.ts";

/** Writes the instructions of an allocated program. */
export function emitProgram(allocation: Allocation): BuiltInsns {
  return new Emitter(allocation).emit();
}

class Emitter {
  readonly #insns: readonly IrInsn[];
  readonly #locations: ReadonlyMap<number, Location>;
  readonly #builder = new InsnBuilder();
  readonly #labels = new Map<IrLabel, Label>();

  constructor(allocation: Allocation) {
    this.#insns = allocation.insns;
    this.#locations = allocation.locations;
  }

  emit(): BuiltInsns {
    for (const [i, insn] of this.#insns.entries()) {
      this.#builder.at(insn.place);
      this.#insn(insn, i);
    }
    return this.#builder.build();
  }

  #insn(insn: IrInsn, index: number): void {
    const b = this.#builder;
    switch (insn.op) {
      case "context":
        this.#copy(this.#reg(insn.dst), r1);
        break;
      case "move":
        if (isVReg(insn.src)) this.#copy(this.#reg(insn.dst), this.#reg(insn.src));
        else b.loadConst(this.#reg(insn.dst), insn.src);
        break;
      case "map-value":
        b.ldMapValue(this.#reg(insn.dst), insn.map, insn.offset);
        break;
      case "frame-address":
        this.#frameAddress(this.#reg(insn.dst), insn.offset);
        break;
      case "alu":
        b.alu64(insn.name, this.#reg(insn.dst), isVReg(insn.src) ? this.#reg(insn.src) : insn.src);
        break;
      case "negate":
        b.neg64(this.#reg(insn.dst));
        break;
      case "swap":
        b.swap("be", this.#reg(insn.dst), insn.bits);
        break;
      case "extend":
        this.#extend(insn);
        break;
      case "load":
        if (insn.signed && insn.bytes !== 8) {
          b.ldsx(insn.bytes, this.#reg(insn.dst), this.#base(insn.base), insn.offset);
        } else {
          b.ldx(insn.bytes, this.#reg(insn.dst), this.#base(insn.base), insn.offset);
        }
        break;
      case "store":
        if (isVReg(insn.src)) b.stx(insn.bytes, this.#base(insn.base), insn.offset, this.#reg(insn.src));
        else b.st(insn.bytes, this.#base(insn.base), insn.offset, insn.src);
        break;
      case "atomic":
        b.atomic(insn.name, 8, this.#reg(insn.base), insn.offset, this.#reg(insn.src));
        break;
      case "fetch":
        b.atomic(`fetch_${insn.name}`, 8, this.#reg(insn.base), insn.offset, this.#reg(insn.reg));
        break;
      case "compare-exchange":
        this.#copy(r0, this.#reg(insn.expected));
        b.atomic("cmpxchg", 8, this.#reg(insn.base), insn.offset, this.#reg(insn.src));
        this.#copy(this.#reg(insn.dst), r0);
        break;
      case "call":
        this.#call(insn);
        break;
      case "jump":
        b.jmp(
          insn.cond,
          this.#reg(insn.left),
          isVReg(insn.right) ? this.#reg(insn.right) : insn.right,
          this.#label(insn.target),
        );
        break;
      case "goto":
        if (!this.#isNext(insn.target, index)) b.goto(this.#label(insn.target));
        break;
      case "label":
        b.bind(this.#label(insn.label));
        break;
      case "exit":
        b.mov64(r0, 0);
        b.exit();
        break;
    }
  }

  /** Whether nothing but labels stands between an instruction and `target`. */
  #isNext(target: IrLabel, index: number): boolean {
    for (let i = index + 1; ; i++) {
      const insn = this.#insns[i];
      if (insn?.op !== "label") return false;
      if (insn.label === target) return true;
    }
  }

  #extend(insn: IrInsn & { readonly op: "extend" }): void {
    const dst = this.#reg(insn.dst);
    const src = this.#reg(insn.src);
    if (insn.signed) {
      this.#builder.movsx64(dst, src, insn.bits);
    } else if (insn.bits === 32) {
      this.#builder.mov32(dst, src);
    } else {
      this.#copy(dst, src);
      this.#builder.alu64("and", dst, insn.bits === 8 ? 0xff : 0xffff);
    }
  }

  /**
   * Arguments to r1, r2, ...: first those that come from registers, as one parallel move, then those that are
   * computed, whose registers are free by then; last those with a base register, which was kept aside.
   */
  #call(insn: IrInsn & { readonly op: "call" }): void {
    const moves: { readonly to: number; readonly from: number }[] = [];
    for (const [i, arg] of insn.args.entries()) {
      const source = isVReg(arg) ? arg : baseOf(arg);
      const location = source && this.#location(source);
      if (location?.kind === "register") moves.push({ to: i + 1, from: location.reg });
    }
    this.#parallelMove(moves);
    for (const [i, arg] of insn.args.entries()) this.#argument(bpfRegs[i + 1]!, arg);
    this.#builder.call(insn.helper);
    if (!insn.dst) return;
    const location = this.#location(insn.dst);
    if (location.kind === "register") this.#copy(bpfRegs[location.reg]!, r0);
    else this.#builder.stx(8, r10, location.offset, r0);
  }

  /** What remains to be done for an argument once register sources are in place. */
  #argument(to: BpfReg, arg: CallArgument): void {
    if (isVReg(arg)) {
      this.#fromSlot(to, arg);
      return;
    }
    if (typeof arg === "bigint") {
      this.#builder.loadConst(to, arg);
      return;
    }
    switch (arg.kind) {
      case "map":
        this.#builder.ldMapFd(to, arg.map);
        break;
      case "map-value":
        this.#builder.ldMapValue(to, arg.map, arg.offset);
        break;
      case "frame":
        this.#frameAddress(to, arg.offset);
        break;
      case "offset":
        this.#fromSlot(to, arg.base);
        this.#builder.alu64("add", to, arg.offset);
        break;
    }
  }

  #fromSlot(to: BpfReg, source: VReg): void {
    const location = this.#location(source);
    if (location.kind === "slot") this.#builder.ldx(8, to, r10, location.offset);
  }

  /** Moves between registers that happen at once. A cycle goes through r0, which no call takes an argument in. */
  #parallelMove(moves: readonly { readonly to: number; readonly from: number }[]): void {
    let pending = moves.filter((move) => move.to !== move.from);
    while (pending.length > 0) {
      const ready = pending.find(
        (move) => !pending.some((other) => other !== move && other.from === move.to),
      );
      if (ready) {
        this.#builder.mov64(bpfRegs[ready.to]!, bpfRegs[ready.from]!);
        pending = pending.filter((move) => move !== ready);
        continue;
      }
      const first = pending[0]!;
      this.#builder.mov64(r0, bpfRegs[first.from]!);
      pending = pending.map((move) => (move.from === first.from ? { to: move.to, from: 0 } : move));
    }
  }

  #frameAddress(dst: BpfReg, offset: number): void {
    this.#builder.mov64(dst, r10);
    if (offset !== 0) this.#builder.alu64("add", dst, offset);
  }

  #copy(dst: BpfReg, src: BpfReg): void {
    if (dst.reg !== src.reg) this.#builder.mov64(dst, src);
  }

  #label(label: IrLabel): Label {
    let made = this.#labels.get(label);
    if (!made) {
      made = this.#builder.label(label.name);
      this.#labels.set(label, made);
    }
    return made;
  }

  #base(base: VReg | "frame"): BpfReg {
    return base === "frame" ? r10 : this.#reg(base);
  }

  #reg(vreg: VReg): BpfReg {
    const location = this.#location(vreg);
    if (location.kind !== "register") throw new Error("generate bpf: a register is in a slot");
    return bpfRegs[location.reg]!;
  }

  #location(vreg: VReg): Location {
    const location = this.#locations.get(vreg.id);
    if (!location) throw new Error(`generate bpf: register v${vreg.id} has no place`);
    return location;
  }
}

function baseOf(arg: CallArgument): VReg | undefined {
  return typeof arg === "object" && arg.kind === "offset" ? arg.base : undefined;
}

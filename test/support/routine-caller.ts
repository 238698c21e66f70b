/**
 * Calls the routines of map helpers one by one, on the maps of a `NativeBpf`, with arguments in memory of their own.
 *
 * Each call loads every register with a number of its own and checks that only those changed that the routine names,
 * and that nothing below the stack that it declares was written.
 */
import { mapRoutineFor, stackTraceInput } from "../../src/bpf/jit/routines/map-routines.ts";
import { type Routine, RoutineSet } from "../../src/bpf/jit/routines/routine.ts";
import { stackInsert } from "../../src/bpf/jit/routines/stack-trace-routines.ts";
import type { Assembler } from "../../src/x86/assembler.ts";
import { hasReg, R8, R11, RAX, RCX, RDI, RDX, RSI, RSP, regNames } from "../../src/x86/registers.ts";
import type { NativeBpf } from "./native-bpf.ts";
import { nativeMemory } from "./native-code.ts";

const ARGUMENTS = [RDI, RSI, RDX, RCX, R8];
const STACK_PATTERN = 0xa5;
const FRAME_AT = 8 * 1024 + 8;
const SCRATCH_BYTES = 1 << 16;
/** Nothing lies behind an argument: a routine that reads or writes beyond its end changes this. */
const GUARD = 0x5c;
const GUARD_BYTES = 16;

const cleanStack = new Uint8Array(FRAME_AT).fill(STACK_PATTERN);

/** A register's value, or memory whose address is passed; what is in it afterwards is there to see. */
export type Argument = bigint | Uint8Array;

export interface CallOptions {
  /** r11: the slot of per-CPU maps. */
  readonly slot?: number;
  /** Call the routine for inner maps of this map of maps, on the map. */
  readonly outer?: number;
}

interface Placed {
  readonly routine: Routine;
  readonly entry: bigint;
}

export class RoutineCaller implements Disposable {
  readonly #native: NativeBpf;
  readonly #scratch = nativeMemory(SCRATCH_BYTES);
  readonly #placed = new Map<string, Placed>();

  constructor(native: NativeBpf) {
    this.#native = native;
  }

  /** r0 of the helper, signed; the map is not among the arguments unless it is not the first. */
  call(helper: number, map: number, args: readonly Argument[], options: CallOptions = {}): bigint {
    const { outer } = options;
    const placed = this.#place(`${helper} ${map} ${outer}`, (context) =>
      mapRoutineFor(context, {
        helper,
        mapIndex: outer === undefined ? map : undefined,
        outerMapIndex: outer,
        text: undefined,
      }),
    );
    const address = this.#native.env.mapAddr(map);
    return BigInt.asIntN(64, this.#run(placed, outer === undefined ? 0n : address, args, options).regs[RAX]!);
  }

  /** The routine that keeps a stack: its id or an error. */
  insertStack(map: number, addresses: readonly bigint[], flags = 0n): bigint {
    const placed = this.#place(`stack ${map}`, (context) => {
      const input = stackTraceInput(context, { mapIndex: map, outerMapIndex: undefined });
      return input === undefined ? undefined : stackInsert(input);
    });
    const list = new Uint8Array(new BigUint64Array([...addresses, 0n]).buffer).subarray(
      0,
      8 * addresses.length,
    );
    const { regs } = this.#run(placed, 0n, [list, BigInt(addresses.length), flags], {});
    return BigInt.asIntN(64, regs[RAX]!);
  }

  /** One step of a walk: the next cursor, and the addresses of key and value. */
  next(helper: number, map: number, cursor: bigint, options: CallOptions = {}) {
    const placed = this.#place(`${helper} ${map}`, (context) =>
      mapRoutineFor(context, { helper, mapIndex: map, outerMapIndex: undefined, text: undefined }),
    );
    const { regs } = this.#run(placed, cursor, [], options);
    return { cursor: regs[RAX]!, key: regs[RSI]!, value: regs[RDX]! };
  }

  /** Byte offset in the maps' memory of an address. */
  offsetOf(address: bigint): number {
    return Number(address - this.#native.env.mapAddr(0));
  }

  #place(name: string, make: (context: Parameters<typeof mapRoutineFor>[0]) => Routine | undefined): Placed {
    const known = this.#placed.get(name);
    if (known !== undefined) return known;
    const { env, bundle } = this.#native;
    const { asm, written: routine } = this.#native.place((a: Assembler) => {
      const routines = new RoutineSet(a);
      const made = make({ routines, env, bundle });
      if (made === undefined) throw new Error(`no routine: ${name}`);
      routines.emitPending();
      return made;
    });
    const placed = { routine, entry: asm.addressOf(routine.label) };
    this.#placed.set(name, placed);
    return placed;
  }

  #run({ routine, entry }: Placed, first: bigint, args: readonly Argument[], { slot = 0 }: CallOptions) {
    const { machine } = this.#native;
    const before = Array.from(
      { length: 16 },
      (_, reg) => 0x1111_0000_0000_0000n * BigInt(reg) + 0xdead_0000n + BigInt(reg),
    );
    const scratch = this.#scratch;
    const buffers: { readonly at: number; readonly bytes: Uint8Array }[] = [];
    let next = GUARD_BYTES;
    before[RDI] = first;
    for (const [i, arg] of args.entries()) {
      const reg = ARGUMENTS[i + 1]!;
      if (typeof arg === "bigint") {
        before[reg] = arg;
        continue;
      }
      scratch.bytes.fill(GUARD, next - GUARD_BYTES, next + arg.length + GUARD_BYTES);
      scratch.bytes.set(arg, next);
      buffers.push({ at: next, bytes: arg });
      before[reg] = scratch.at + BigInt(next);
      next += arg.length + GUARD_BYTES + 1;
    }
    before[R11] = BigInt(slot);
    const { bytes, at } = machine.stack;
    bytes.fill(STACK_PATTERN, 0, FRAME_AT);
    new DataView(bytes.buffer, bytes.byteOffset + FRAME_AT).setBigUint64(0, machine.exit, true);
    before[RSP] = at + BigInt(FRAME_AT);
    const after = machine.run(entry, { regs: before, flags: 0x202n });
    const allowed = routine.clobbers | (1 << RSP);
    for (let reg = 0; reg < 16; reg++) {
      if (!hasReg(allowed, reg) && after.regs[reg] !== BigInt.asUintN(64, before[reg]!))
        throw new Error(`${regNames[reg]} changed, though the routine does not declare it`);
    }
    if (after.regs[RSP] !== before[RSP]! + 8n) throw new Error("the stack pointer is not where it was");
    const untouched = bytes.subarray(0, FRAME_AT - routine.stackBytes);
    if (Buffer.compare(untouched, cleanStack.subarray(0, untouched.length)) !== 0)
      throw new Error(`used more than the ${routine.stackBytes} bytes of stack that it declared`);
    for (const buffer of buffers) {
      const { length } = buffer.bytes;
      const around = [
        ...scratch.bytes.subarray(buffer.at - GUARD_BYTES, buffer.at),
        ...scratch.bytes.subarray(buffer.at + length, buffer.at + length + GUARD_BYTES),
      ];
      if (around.some((byte) => byte !== GUARD)) throw new Error("wrote beyond an argument");
      buffer.bytes.set(scratch.bytes.subarray(buffer.at, buffer.at + length));
    }
    return after;
  }

  [Symbol.dispose](): void {
    this.#scratch[Symbol.dispose]();
  }
}

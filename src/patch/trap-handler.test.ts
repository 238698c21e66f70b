import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Machine, type NativeMemory, nativeMemory, randomWords } from "../../test/support/native-code.ts";
import { Assembler } from "../x86/assembler.ts";
import { RDI, RDX, RSI, RSP } from "../x86/registers.ts";
import {
  decodeSignalAction,
  encodeSignalAction,
  SA_NODEFER,
  SA_ONSTACK,
  SA_RESETHAND,
  SA_RESTART,
  SA_RESTORER,
  SA_SIGINFO,
  type SignalAction,
} from "./signal-action.ts";
import { emitTrapHandler } from "./trap-handler.ts";
import { TrapTable } from "./trap-table.ts";

/** The handler is called here with a made-up siginfo and ucontext: what it does with them is all it does. */
const HANDLER = 0;
const SIGINFO = 40_000;
const UCONTEXT = 40_960;
const TEXT = 45_056;
const PREVIOUS = 49_152;
const RESET_WORD = 49_408;
const MEMORY_BYTES = 65_536;

const noAction: SignalAction = { handler: 0n, flags: 0n, restorer: 0n, mask: 0n };

let machine: Machine;
let memory: NativeMemory;
beforeAll(() => {
  machine = new Machine();
  memory = nativeMemory(MEMORY_BYTES, (machine.exit & ~0xfffffn) + 0x100_0000n);
});
afterAll(() => {
  memory[Symbol.dispose]();
  machine[Symbol.dispose]();
});

interface Trap {
  readonly siCode?: number;
  readonly trapNo?: number;
  readonly rip: bigint;
}

/** Delivers a trap. Returns the saved rip afterwards, and whether the application's handler was reached. */
function deliver(entry: bigint, { siCode = 0x80, trapNo = 3, rip }: Trap) {
  const asm = new Assembler(memory.at + BigInt(PREVIOUS));
  asm.movImm({ ripTo: memory.at + BigInt(PREVIOUS + 128) }, 1);
  asm.ret();
  memory.bytes.set(asm.finish(), PREVIOUS);
  memory.view.setBigUint64(PREVIOUS + 128, 0n, true);
  memory.bytes.fill(0, SIGINFO, SIGINFO + 128);
  memory.bytes.fill(0x11, UCONTEXT, UCONTEXT + 1024);
  memory.view.setInt32(SIGINFO + 8, siCode, true);
  memory.view.setBigUint64(UCONTEXT + 168, rip, true);
  memory.view.setBigUint64(UCONTEXT + 200, BigInt(trapNo), true);
  const before = memory.bytes.slice(UCONTEXT, UCONTEXT + 1024);
  const regs = Array.from({ length: 16 }, () => 0n);
  const top = machine.stack.bytes.length - 64;
  new DataView(machine.stack.bytes.buffer, machine.stack.bytes.byteOffset).setBigUint64(
    top,
    machine.exit,
    true,
  );
  regs[RSP] = machine.stack.at + BigInt(top);
  regs[RDI] = 5n;
  regs[RSI] = memory.at + BigInt(SIGINFO);
  regs[RDX] = memory.at + BigInt(UCONTEXT);
  const after = machine.run(entry, { regs, flags: 0x202n });
  expect(after.regs[RSP]).toBe(regs[RSP]! + 8n);
  const savedRip = memory.view.getBigUint64(UCONTEXT + 168, true);
  new DataView(before.buffer).setBigUint64(168, savedRip, true);
  expect(Buffer.compare(before, memory.bytes.subarray(UCONTEXT, UCONTEXT + 1024)), "ucontext").toBe(0);
  return { savedRip, isForwarded: memory.view.getBigUint64(PREVIOUS + 128, true) === 1n };
}

function install(table: TrapTable, previous: Partial<SignalAction> = {}) {
  const handler = emitTrapHandler({
    at: memory.at + BigInt(HANDLER),
    table,
    previous: { ...noAction, handler: memory.at + BigInt(PREVIOUS), flags: SA_SIGINFO, ...previous },
    resetWord: memory.at + BigInt(RESET_WORD),
  });
  expect(handler.bytes.length).toBeLessThan(SIGINFO);
  memory.bytes.set(handler.bytes, HANDLER);
  memory.view.setBigUint64(RESET_WORD, 0n, true);
  return handler;
}

test("every site of a well filled table leads to its detour, everything else to the application", () => {
  const table = new TrapTable(1024);
  const random = randomWords(42);
  const base = memory.at + BigInt(TEXT);
  memory.bytes.fill(0xcc, TEXT, TEXT + 4096);
  const sites = new Map<bigint, bigint>();
  while (table.hasRoomFor(1)) {
    const one = base + (random() % 4096n);
    sites.set(one, random());
    table.set(one, sites.get(one)!);
  }
  expect(sites.size).toBe(768);
  const handler = install(table);
  for (let i = 0n; i < 4096n; i++) {
    const detour = sites.get(base + i);
    const result = deliver(handler.action.handler, { rip: base + i + 1n });
    expect(result.isForwarded).toBe(detour === undefined);
    expect(result.savedRip).toBe(detour ?? base + i + 1n);
  }
});

function absentSite(): bigint {
  return memory.at + BigInt(TEXT + 64);
}

describe("a trap at an address that is not in the table", () => {
  const cases: readonly {
    readonly name: string;
    readonly bytes: readonly number[];
    readonly trap?: Partial<Trap>;
    readonly goes: "application" | "back to the site";
  }[] = [
    { name: "breakpoint of the application", bytes: [0xcc], goes: "application" },
    { name: "text restored after the trap", bytes: [0x55], goes: "back to the site" },
    { name: "text restored, the byte before is cd", bytes: [0x55], goes: "back to the site" },
    { name: "int 3 in two bytes", bytes: [0x03], goes: "application" },
    { name: "restored text that begins with 03", bytes: [0x03], goes: "back to the site" },
    { name: "sent by kill", bytes: [0x55], trap: { siCode: 0 }, goes: "application" },
    { name: "sent by tgkill", bytes: [0x55], trap: { siCode: -6 }, goes: "application" },
    { name: "single step", bytes: [0x55], trap: { siCode: 2, trapNo: 1 }, goes: "application" },
    { name: "icebp", bytes: [0xf1], trap: { siCode: 1, trapNo: 1 }, goes: "application" },
  ];
  for (const { name, bytes, trap, goes } of cases) {
    test(name, () => {
      const handler = install(new TrapTable(64));
      memory.bytes.fill(0x90, TEXT, TEXT + 256);
      memory.bytes.set(bytes, TEXT + 64);
      if (name === "int 3 in two bytes" || name.includes("is cd")) memory.bytes[TEXT + 63] = 0xcd;
      const rip = absentSite() + 1n;
      const result = deliver(handler.action.handler, { rip, ...trap });
      expect(result.isForwarded).toBe(goes === "application");
      expect(result.savedRip).toBe(goes === "application" ? rip : absentSite());
    });
  }

  test("a site that is disarmed, with its int3 still there", () => {
    const table = new TrapTable(64);
    table.set(absentSite(), 0x1234n);
    table.clear(absentSite());
    const handler = install(table);
    memory.bytes[TEXT + 64] = 0xcc;
    expect(deliver(handler.action.handler, { rip: absentSite() + 1n }).isForwarded).toBe(true);
    memory.bytes[TEXT + 64] = 0x90;
    expect(deliver(handler.action.handler, { rip: absentSite() + 1n })).toEqual({
      savedRip: absentSite(),
      isForwarded: false,
    });
  });
});

test("a signal that was sent does not count as a hit of the site before the saved rip", () => {
  const table = new TrapTable(64);
  const at = memory.at + BigInt(TEXT);
  table.set(at, 0x1234n);
  const handler = install(table);
  expect(deliver(handler.action.handler, { rip: at + 1n, siCode: 0 })).toEqual({
    savedRip: at + 1n,
    isForwarded: true,
  });
});

test("a table write brings a running handler up to date", () => {
  const table = new TrapTable(64);
  const handler = install(table);
  const at = memory.at + BigInt(TEXT);
  memory.bytes[TEXT] = 0xcc;
  expect(deliver(handler.action.handler, { rip: at + 1n }).isForwarded).toBe(true);
  const write = table.set(at, 0x5678n);
  memory.bytes.set(write.bytes, HANDLER + handler.tableOffset + write.offset);
  expect(deliver(handler.action.handler, { rip: at + 1n }).savedRip).toBe(0x5678n);
});

test("a handler for one time is called once", () => {
  const handler = install(new TrapTable(64), { flags: SA_SIGINFO | SA_RESETHAND });
  memory.bytes[TEXT] = 0xcc;
  expect(deliver(handler.action.handler, { rip: memory.at + BigInt(TEXT + 1) }).isForwarded).toBe(true);
  expect(memory.view.getBigUint64(RESET_WORD, true)).toBe(1n);
});

describe("the action to set", () => {
  test("inherits the stack, restart and mask of the application's handler", () => {
    const flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    const { action } = install(new TrapTable(64), { flags, mask: 0x13n });
    expect(action.flags).toBe(SA_SIGINFO | SA_RESTORER | SA_NODEFER | SA_ONSTACK | SA_RESTART);
    expect(action.mask).toBe(0x3n);
  });

  test("blocks nothing where there was no handler", () => {
    const { action } = install(new TrapTable(64), { handler: 0n, flags: 0n, mask: 0xffn });
    expect(action.flags).toBe(SA_SIGINFO | SA_RESTORER | SA_NODEFER);
    expect(action.mask).toBe(0n);
  });

  test("is encoded as four words", () => {
    const action: SignalAction = { handler: 1n, flags: 2n, restorer: 3n, mask: 4n };
    expect(decodeSignalAction(encodeSignalAction(action))).toEqual(action);
  });

  test("returns with the bytes by which unwinders know a signal frame", () => {
    const handler = install(new TrapTable(64));
    const offset = Number(handler.action.restorer - memory.at);
    expect([...memory.bytes.subarray(offset, offset + 9)]).toEqual([
      0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05,
    ]);
  });
});

test("a full table refuses another site but takes known ones", () => {
  const table = new TrapTable(4);
  for (const known of [1n, 2n, 3n]) table.set(known, known * 16n);
  expect(table.hasRoomFor(1)).toBe(false);
  expect(() => table.set(9n, 1n)).toThrow("full");
  table.clear(2n);
  table.set(2n, 99n);
  expect([1n, 2n, 3n, 4n].map((known) => table.get(known))).toEqual([16n, 99n, 48n, undefined]);
});

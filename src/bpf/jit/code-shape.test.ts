/**
 * What the code of typical programs looks like, instruction by instruction: nothing in it may be needless, and the
 * registers that a detour would have to save must be few.
 */
import { afterAll, describe, expect, it } from "vitest";
import { NativeBpf } from "../../../test/support/native-bpf.ts";
import { disassemble } from "../../../test/support/objdump.ts";
import { regNames, regsOf } from "../../x86/registers.ts";
import { HELPER_LOOP } from "../helpers.ts";
import {
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_GET_SMP_PROCESSOR_ID,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
  InsnBuilder,
  type MapSpec,
  r0,
  r1,
  r2,
  r3,
  r4,
  r6,
  r7,
  r10,
} from "../index.ts";

const maps: readonly MapSpec[] = [
  { name: "count", kind: "array", keyBytes: 4, valueBytes: 512, maxEntries: 1 },
  { name: "table", kind: "hash", keyBytes: 8, valueBytes: 512, maxEntries: 64 },
  { name: "events", kind: "ringbuf", keyBytes: 0, valueBytes: 64, maxEntries: 64 },
  { name: "slots", kind: "array", keyBytes: 4, valueBytes: 8, maxEntries: 10 },
];
const ARG0 = 112;

const native = new NativeBpf({ maps, env: { tidOffset: 0x2d0 } });
afterAll(() => native[Symbol.dispose]());

/** The shard of this processor: r0 = offset. */
const shard = (b: InsnBuilder) => b.call(HELPER_GET_SMP_PROCESSOR_ID).alu64("and", r0, 7).alu64("lsh", r0, 6);

interface Case {
  readonly name: string;
  readonly write: (b: InsnBuilder) => void;
  /** Calls lead to `routine`, jumps to `label`. */
  readonly code: readonly string[];
  readonly clobbers: readonly string[];
  readonly stackBytes?: number;
}

const cases: readonly Case[] = [
  {
    name: "count()",
    write: (b) =>
      shard(b).ldMapValue(r1, 0).alu64("add", r1, r0).mov64(r2, 1).atomic("add", 8, r1, 0, r2).mov64(r0, 0),
    code: [
      "rdpid r11",
      "and r11d,0x7",
      "shl r11,0x6",
      "movabs r10,COUNT",
      "lock inc QWORD PTR [r10+r11*1]",
      "ret",
    ],
    clobbers: ["r10", "r11"],
    stackBytes: 0,
  },
  {
    name: "count() behind a predicate on an argument",
    write: (b) => {
      const leave = b.label();
      b.ldx(8, r2, r1, ARG0).jmp("le", r2, 100, leave);
      shard(b)
        .ldMapValue(r1, 0)
        .alu64("add", r1, r0)
        .mov64(r2, 1)
        .atomic("add", 8, r1, 0, r2)
        .bind(leave)
        .mov64(r0, 0);
    },
    code: [
      "mov r11,QWORD PTR [rsp+0x78]",
      "cmp r11,0x64",
      "jbe label",
      "rdpid r11",
      "and r11d,0x7",
      "shl r11,0x6",
      "movabs r10,COUNT",
      "lock inc QWORD PTR [r10+r11*1]",
      "ret",
    ],
    clobbers: ["r10", "r11"],
  },
  {
    name: "an element by a computed index, scaled in the address",
    write: (b) =>
      b
        .ldx(8, r6, r1, ARG0)
        .alu64("and", r6, 7)
        .alu64("lsh", r6, 3)
        .ldMapValue(r2, 0)
        .alu64("add", r2, r6)
        .mov64(r3, 5)
        .atomic("add", 8, r2, 64, r3)
        .mov64(r0, 0),
    code: [
      "mov r11,QWORD PTR [rsp+0x78]",
      "and r11d,0x7",
      "movabs r10,COUNT",
      "lock add QWORD PTR [r10+r11*8+0x40],0x5",
      "ret",
    ],
    clobbers: ["r10", "r11"],
  },
  {
    name: "two values added up, conditions from flags that are there",
    write: (b) => {
      const leave = b.label();
      b.ldx(8, r2, r1, ARG0).ldx(8, r3, r1, 104).alu64("sub", r2, r3).jmp("eq", r2, 0, leave);
      b.ldMapValue(r4, 0).atomic("add", 8, r4, 0, r2).bind(leave).mov64(r0, 0);
    },
    code: [
      "mov r11,QWORD PTR [rsp+0x78]",
      "mov r10,QWORD PTR [rsp+0x70]",
      "sub r11,r10",
      "je label",
      "movabs r10,COUNT",
      "lock add QWORD PTR [r10],r11",
      "ret",
    ],
    clobbers: ["r10", "r11"],
  },
  {
    name: "count by key: nothing is moved that the lookup does not read",
    write: (b) => {
      const found = b.label();
      b.ldx(8, r6, r1, ARG0).stx(8, r10, -8, r6).ldMapFd(r1, 1).mov64(r2, r10).alu64("add", r2, -8);
      b.call(HELPER_MAP_LOOKUP_ELEM).jmp("ne", r0, 0, found).mov64(r0, 0).exit().bind(found).mov64(r7, r0);
      shard(b).alu64("add", r7, r0).mov64(r1, 1).atomic("add", 8, r7, 0, r1).mov64(r0, 0);
    },
    code: [
      "sub rsp,0x8",
      "mov rax,QWORD PTR [rsp+0x80]",
      "mov QWORD PTR [rsp],rax",
      "mov rsi,rsp",
      "call routine",
      "test rax,rax",
      "jne label",
      "add rsp,0x8",
      "ret",
      "mov rsi,rax",
      "rdpid rax",
      "and eax,0x7",
      "shl rax,0x6",
      "lock inc QWORD PTR [rsi+rax*1]",
      "add rsp,0x8",
      "ret",
    ],
    clobbers: ["rax", "rcx", "rdx", "rsi", "rdi", "r8"],
  },
  {
    name: "an event with an argument and the thread's id",
    write: (b) => {
      const full = b.label();
      b.ldx(8, r6, r1, ARG0).ldMapFd(r1, 2).mov64(r2, 24).mov64(r3, 0).call(HELPER_RINGBUF_RESERVE);
      b.jmp("eq", r0, 0, full).mov64(r7, r0).st(8, r7, 0, 3).stx(8, r7, 8, r6);
      b.call(HELPER_GET_CURRENT_PID_TGID).mov32(r0, r0).stx(8, r7, 16, r0);
      b.mov64(r1, r7).mov64(r2, 0).call(HELPER_RINGBUF_SUBMIT).bind(full).mov64(r0, 0);
    },
    code: [
      "mov r11,QWORD PTR [rsp+0x78]",
      "mov esi,0x18",
      "call routine",
      "test rax,rax",
      "je label",
      "mov rdi,rax",
      "mov QWORD PTR [rdi],0x3",
      "mov QWORD PTR [rdi+0x8],r11",
      "mov eax,DWORD PTR fs:0x2d0",
      "mov QWORD PTR [rdi+0x10],rax",
      "inc QWORD PTR [rdi-0x10]",
      "ret",
    ],
    clobbers: ["rax", "rcx", "rdx", "rsi", "rdi", "r8", "r11"],
    stackBytes: 8,
  },
  {
    name: "array lookup is inline, its key read from the stack",
    write: (b) => {
      const none = b.label();
      b.call(HELPER_GET_ATTACH_COOKIE).stx(4, r10, -4, r0).ldMapFd(r1, 3).mov64(r2, r10).alu64("add", r2, -4);
      b.call(HELPER_MAP_LOOKUP_ELEM).jmp("eq", r0, 0, none).mov64(r1, 1).atomic("add", 8, r0, 0, r1);
      b.bind(none).mov64(r0, 0);
    },
    code: [
      "mov r11,QWORD PTR [rsp+0x80]",
      "mov DWORD PTR [rsp-0x4],r11d",
      "mov r11d,DWORD PTR [rsp-0x4]",
      "cmp r11d,0xa",
      "jae label",
      "movabs r10,SLOTS",
      "lea r11,[r10+r11*8]",
      "test r11,r11",
      "je label",
      "lock inc QWORD PTR [r11]",
      "ret",
      "xor r11d,r11d",
      "jmp label",
    ],
    clobbers: ["r10", "r11"],
  },
  {
    name: "a function is called where its arguments are, and what the caller keeps is where it changes nothing",
    write: (b) => {
      const fn = b.label();
      b.ldx(8, r6, r1, ARG0).mov64(r1, r6).mov64(r2, 3).callLocal(fn);
      b.ldMapValue(r1, 0).alu64("add", r0, r6).atomic("add", 8, r1, 0, r0).mov64(r0, 0).exit();
      b.bind(fn).alu64("mul", r1, r2).mov64(r0, r1);
    },
    code: [
      "imul rdi,rsi",
      "mov rax,rdi",
      "ret",
      "mov r11,QWORD PTR [rsp+0x78]",
      "mov rdi,r11",
      "mov esi,0x3",
      "call routine",
      "movabs rdi,COUNT",
      "add rax,r11",
      "lock add QWORD PTR [rdi],rax",
      "ret",
    ],
    clobbers: ["rax", "rsi", "rdi", "r11"],
    stackBytes: 8,
  },
  {
    name: "bpf_loop is a loop around the call",
    write: (b) => {
      const body = b.label();
      b.mov64(r1, 10).ldFunction(r2, body).mov64(r3, 0).mov64(r4, 0).call(HELPER_LOOP).mov64(r0, 0).exit();
      b.bind(body).ldMapValue(r2, 0).atomic("add", 8, r2, 0, r1).mov64(r0, 0);
    },
    code: [
      "movabs rax,COUNT",
      "lock add QWORD PTR [rax],rdi",
      "xor eax,eax",
      "ret",
      "sub rsp,0x28",
      "xor r10d,r10d",
      "mov rdi,r10",
      "call routine",
      "inc r10",
      "test rax,rax",
      "mov rax,r10",
      "jne label",
      "cmp rax,0xa",
      "jb label",
      "add rsp,0x28",
      "ret",
    ],
    clobbers: ["rax", "rdi", "r10"],
  },
  {
    name: "a program without effect",
    write: (b) => b.mov64(r6, r1).ldx(8, r2, r6, 0).alu64("mul", r2, 77).mov64(r0, r2),
    code: ["ret"],
    clobbers: [],
    stackBytes: 0,
  },
];

describe("code of typical programs", () => {
  it.each(cases)("$name", ({ write, code, clobbers, stackBytes }) => {
    const b = new InsnBuilder();
    write(b);
    native.reset();
    const compiled = native.compile(b.exit().build().insns, false);
    const names = [
      [native.env.mapAddr(0), "COUNT"],
      [native.env.mapAddr(3), "SLOTS"],
    ] as const;
    const got = disassemble(compiled.code, 0n).map(({ text }) => {
      const named = names.reduce(
        (line, [address, name]) => line.replace(`0x${address.toString(16)}`, name),
        text,
      );
      return named.replace(/^call 0x.*/, "call routine").replace(/^(j\w+) 0x.*/, "$1 label");
    });
    expect(got).toEqual(code);
    expect(regsOf(compiled.program.clobbers).map((reg) => regNames[reg])).toEqual(clobbers);
    if (stackBytes !== undefined) expect(compiled.program.stackBytes).toBe(stackBytes);
  });
});

/**
 * The same programs before the kernel's verifier, which is asked through bpf(2) and runs none of them.
 *
 * Needs permission to load programs (root, usually). Messages, and what the verifier understands, change from release
 * to release: the cases are written for one, and other releases are not asked.
 */
import { release } from "node:os";
import * as fc from "fast-check";
import koffi from "koffi";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { encodeInsns, type Insn } from "../insn.ts";
import { mapKindNumber } from "../map-kinds.ts";
import { OP_LDIMM64, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE } from "../opcodes.ts";
import type { MapSpec } from "../program.ts";
import { randomProgram, randomProgramMaps } from "../random-program.ts";
import { parseProgram, printProgram } from "../text.ts";
import { verifyProgram } from "./verify.ts";
import { acceptedCases, caseMaps, rejectedCases, type VerifyCase } from "./verify-cases.ts";

const SYS_BPF = 321;
const BPF_MAP_CREATE = 0;
const BPF_PROG_LOAD = 5;
const BPF_PROG_TYPE_KPROBE = 2;
const ATTR_BYTES = 144;
const LOG_BYTES = 1 << 20;

const libc = koffi.load("libc.so.6");
const syscall = libc.func("long syscall(long number, long command, void *attr, long lenBytes)");
const close = libc.func("int close(int fd)");

/** Memory that keeps its address, as the kernel is given pointers inside structures. */
function memory(lenBytes: number): { readonly address: bigint; readonly bytes: Uint8Array } {
  const pointer = koffi.alloc("uint8_t", lenBytes);
  return { address: koffi.address(pointer), bytes: new Uint8Array(koffi.view(pointer, lenBytes)) };
}

function bpf(command: number, fill: (attr: DataView) => void): number {
  const attr = new Uint8Array(ATTR_BYTES);
  fill(new DataView(attr.buffer));
  return Number(syscall(SYS_BPF, command, attr, ATTR_BYTES));
}

function createMap({ kind, keyBytes, valueBytes, maxEntries }: MapSpec): number {
  return bpf(BPF_MAP_CREATE, (attr) => {
    attr.setUint32(0, mapKindNumber(kind), true);
    attr.setUint32(4, keyBytes, true);
    attr.setUint32(8, kind === "ringbuf" ? 0 : valueBytes, true);
    // A direct value needs an array of one; a ring buffer is measured in pages.
    attr.setUint32(12, kind === "ringbuf" ? 4096 : kind === "array" ? 1 : maxEntries, true);
  });
}

const KERNEL_RELEASE = /^6\.18\./;
const canLoad = (() => {
  if (!KERNEL_RELEASE.test(release())) return false;
  const fd = createMap(caseMaps[0]!);
  if (fd < 0) return false;
  close(fd);
  return true;
})();

const isMap = ({ opcode, src }: Insn) =>
  opcode === OP_LDIMM64 && (src === PSEUDO_MAP_FD || src === PSEUDO_MAP_VALUE);

const code = memory(1 << 16);
const license = memory(4);
const log = memory(LOG_BYTES);

/** The kernel's log without its statistics; undefined if it accepts the program. */
function askKernel(insns: readonly Insn[], fds: readonly number[]): string | undefined {
  const linked = insns.map((insn) => (isMap(insn) ? { ...insn, imm: fds[insn.imm] ?? -1 } : insn));
  code.bytes.set(encodeInsns(linked));
  license.bytes.set([0x47, 0x50, 0x4c, 0]);
  const fd = bpf(BPF_PROG_LOAD, (attr) => {
    attr.setUint32(0, BPF_PROG_TYPE_KPROBE, true);
    attr.setUint32(4, insns.length, true);
    attr.setBigUint64(8, code.address, true);
    attr.setBigUint64(16, license.address, true);
    attr.setUint32(24, 1, true);
    attr.setUint32(28, LOG_BYTES, true);
    attr.setBigUint64(32, log.address, true);
  });
  if (fd >= 0) {
    close(fd);
    return undefined;
  }
  const text = Buffer.from(log.bytes.subarray(0, log.bytes.indexOf(0))).toString();
  return text
    .split("\n")
    .filter((line) => line !== "" && !/^(processed|verification time)/.test(line))
    .join("\n");
}

function assemble(text: string): Insn[] {
  const parsed = parseProgram(text);
  if (parsed.kind === "bad") throw new Error(parsed.message);
  return parsed.insns;
}

/** Where Trapline's verifier knows more than the kernel's, or follows RFC 9669 where the kernel refuses. */
const knowsMore = [
  /invalid shift/,
  /div by zero/,
  /unbounded/,
  /outside of the allowed memory range/,
  /min value is negative/,
  /makes .* pointer be out of bounds/,
  /variable.offset/,
  /misaligned/,
  /invalid write to stack/,
  /infinite loop|too (complex|large)/,
];

/** Where it is stricter: stack that was never written, and numbers that the kernel knows of this machine. */
const isStricter = [
  /invalid read from stack/,
  /outside of the allowed memory range|min value is negative|zero-sized/,
  /misaligned|invalid variable-offset|invalid write to stack|invalid mem access 'scalar'/,
];

describe.skipIf(!canLoad)("the kernel's verifier", () => {
  let caseFds: readonly number[] = [];
  let randomFds: readonly number[] = [];
  beforeAll(() => {
    caseFds = caseMaps.map(createMap);
    randomFds = randomProgramMaps.map(createMap);
  });
  afterAll(() => {
    for (const fd of [...caseFds, ...randomFds]) close(fd);
  });

  it.each(acceptedCases)("on $name", ({ text, kernel }) => {
    const said = askKernel(assemble(text), caseFds);
    if (kernel === "rejects") expect(said).toBeDefined();
    else expect(said).toBeUndefined();
  });

  const asked = rejectedCases.filter(({ kernel, text }: VerifyCase) => kernel !== "too slow" && text !== "");
  it.each(asked)("on $name", ({ text, message, kernel }) => {
    const said = askKernel(assemble(text), caseFds);
    if (kernel === "accepts") {
      expect(said).toBeUndefined();
      return;
    }
    // What follows is the kernel's next line.
    const [first] = message.split(": R");
    expect(said).toContain(typeof kernel === "object" ? kernel.says : first);
  });

  it("differs on random programs only where it is meant to", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 0x7fffffff }), (seed) => {
        const insns = randomProgram(seed);
        const ours = verifyProgram({ insns }, randomProgramMaps, { maxVisits: 5000 });
        // The kernel walks an endless loop a million steps.
        if (ours.kind === "rejected" && /too (large|complex)|infinite/.test(ours.message)) return;
        const kernel = askKernel(insns, randomFds);
        if ((ours.kind === "accepted") === (kernel === undefined)) return;
        const said = ours.kind === "rejected" ? ours.message : kernel!.split("\n").slice(-3).join("\n");
        const allowed = ours.kind === "rejected" ? isStricter : knowsMore;
        if (!allowed.some((pattern) => pattern.test(said)))
          throw new Error(`${said}\n${printProgram(insns)}`);
      }),
      { numRuns: 150 },
    );
  });
});

/**
 * The code of the JIT beside that of the kernel's JIT: the same bytecode, its size compiled and the time of a run.
 *
 * Both run in loops of their own: the kernel's in BPF_PROG_TEST_RUN on a socket filter, ours in a loop around the
 * call. What an empty program takes is subtracted from each; work that has to wait for itself runs beside what the
 * kernel does between two runs, so that short programs look better there than they are. The kernel's calls and returns
 * go through its mitigations (return thunks). Programs take their numbers from a map, so that nothing can be computed
 * beforehand, and leave their result there. Rounds alternate; medians are shown.
 *
 * ubpf is not measured: neither Debian nor npm has it.
 */
import { type KernelMapSpec, KernelProgram, whyNoKernelBpf } from "./kernel-bpf.ts";
import {
  compileNative,
  type Insn,
  layoutMaps,
  loadModules,
  type Modules,
  parseInsns,
} from "./native-program.ts";
import { median } from "./statistics.ts";

interface ProgramCase {
  readonly name: string;
  /** Instructions as text; map 0 is an array of one element of 256 bytes, map 1 a hash. */
  readonly text: string;
  /** Runs per measurement. */
  readonly runs: number;
  /** Why the kernel does not take it. */
  readonly notInKernel?: string;
}

export interface ProgramResult {
  readonly name: string;
  readonly insns: number;
  readonly ours: { readonly codeBytes: number; readonly ns: number };
  /** Or why there is none. */
  readonly kernel: { readonly codeBytes: number; readonly ns: number } | string;
}

const maps: readonly (KernelMapSpec & { readonly name: string })[] = [
  { name: "numbers", kind: "array", keyBytes: 4, valueBytes: 256, maxEntries: 1 },
  { name: "counts", kind: "hash", keyBytes: 8, valueBytes: 8, maxEntries: 1024 },
];

const repeat = (times: number, write: (i: number) => string) =>
  Array.from({ length: times }, (_, i) => write(i)).join("\n");

const EMPTY = "r0 = 0\nexit";

const cases: readonly ProgramCase[] = [
  {
    name: "arithmetic: 32 times 8 rounds of xorshift and multiply",
    runs: 50_000,
    text: `r6 = map[0][0]+0
      r1 = *(u64 *)(r6 +0)
      r4 = 0
      again: r3 = r4
      ${repeat(8, () => "r2 = r1\nr2 <<= 13\nr1 ^= r2\nr2 = r1\nr2 >>= 7\nr1 ^= r2\nr1 *= 31\nw3 = w1\nr1 += r3")}
      r4 += 1
      if r4 < 32 goto again
      *(u64 *)(r6 +0) = r1
      r0 = 0
      exit`,
  },
  {
    name: "division: 32 times 4 by a variable, 4 by constants",
    runs: 50_000,
    text: `r6 = map[0][0]+0
      r1 = *(u64 *)(r6 +8)
      r2 = *(u64 *)(r6 +16)
      r2 |= 3
      r4 = 0
      again: r1 += 1000003
      ${repeat(4, (i) => `r3 = r1\nr3 /= r2\nr1 ^= r3\nr3 = r1\nr3 %= ${[8, 10, 1000, 64][i]}\nr1 += r3`)}
      r4 += 1
      if r4 < 32 goto again
      *(u64 *)(r6 +8) = r1
      r0 = 0
      exit`,
  },
  {
    name: "memory: 16 words to the stack and back, all widths",
    runs: 2_000_000,
    text: `r6 = map[0][0]+0
      ${repeat(16, (i) => `r1 = *(u64 *)(r6 +${i * 8})\nr1 += ${i}\n*(u64 *)(r10 -${i * 8 + 8}) = r1`)}
      r2 = 0
      ${repeat(16, (i) => `r1 = *(u${[8, 16, 32, 64][i % 4]} *)(r10 -${i * 8 + 8})\nr2 += r1`)}
      *(u64 *)(r6 +0) = r2
      r0 = 0
      exit`,
  },
  {
    name: "loop: sum of 256 bytes",
    runs: 300_000,
    text: `r6 = map[0][0]+0
      r1 = 0
      r2 = 0
      again: r3 = r6
      r3 += r1
      r4 = *(u8 *)(r3 +0)
      r2 += r4
      r1 += 1
      if r1 < 256 goto again
      *(u64 *)(r6 +8) = r2
      r0 = 0
      exit`,
  },
  {
    name: "branches: 32 comparisons",
    runs: 2_000_000,
    text: `r6 = map[0][0]+0
      r1 = *(u64 *)(r6 +0)
      r2 = 0
      ${repeat(32, (i) => `if r1 s> ${i * 1000} goto c${i}\nr2 += ${i + 1}\nc${i}: r1 += 7`)}
      *(u64 *)(r6 +0) = r2
      r0 = 0
      exit`,
  },
  {
    name: "array: look up and count",
    runs: 2_000_000,
    text: `*(u32 *)(r10 -4) = 0
      r1 = map[0]
      r2 = r10
      r2 += -4
      call bpf_map_lookup_elem#1
      if r0 == 0 goto none
      r1 = 1
      lock *(u64 *)(r0 +0) += r1
      none: r0 = 0
      exit`,
  },
  {
    name: "hash: count by key",
    runs: 1_000_000,
    text: `r6 = map[0][0]+0
      r1 = *(u64 *)(r6 +24)
      *(u64 *)(r10 -8) = r1
      r1 = map[1]
      r2 = r10
      r2 += -8
      call bpf_map_lookup_elem#1
      if r0 != 0 goto found
      *(u64 *)(r10 -16) = 1
      r1 = map[1]
      r2 = r10
      r2 += -8
      r3 = r10
      r3 += -16
      r4 = 0
      call bpf_map_update_elem#2
      r0 = 0
      exit
      found: r1 = 1
      lock *(u64 *)(r0 +0) += r1
      r0 = 0
      exit`,
  },
  {
    name: "calls: 8 of a function that keeps two values",
    runs: 1_000_000,
    text: `r6 = map[0][0]+0
      r7 = *(u64 *)(r6 +0)
      ${repeat(8, (i) => `r1 = r7\nr2 = ${i}\ncall pc+${(7 - i) * 4 + 4}\nr7 ^= r0`)}
      *(u64 *)(r6 +0) = r7
      r0 = 0
      exit
      r6 = r1
      r7 = r2
      r0 = r6
      r0 *= 31
      r0 += r7
      exit`,
  },
  {
    name: "bpf_loop: 256 iterations",
    runs: 200_000,
    notInKernel: "the kernel wants BTF for callbacks",
    text: `r6 = map[0][0]+0
      *(u64 *)(r10 -8) = 0
      r1 = 256
      r2 = subprog[+9]
      r3 = r10
      r3 += -8
      r4 = 0
      call bpf_loop#181
      r1 = *(u64 *)(r10 -8)
      *(u64 *)(r6 +0) = r1
      r0 = 0
      exit
      r3 = *(u64 *)(r2 +0)
      r3 += r1
      *(u64 *)(r2 +0) = r3
      r0 = 0
      exit`,
  },
];

/** With the descriptors of the kernel's maps in place of their indexes. */
function encodeForKernel(modules: Modules, insns: readonly Insn[], fds: readonly number[]): Uint8Array {
  const LDIMM64 = 0x18;
  return modules.bpf.encodeInsns(
    insns.map((insn) =>
      insn.opcode === LDIMM64 && (insn.src === 1 || insn.src === 2) ? { ...insn, imm: fds[insn.imm]! } : insn,
    ),
  );
}

export async function measurePrograms(
  rounds: number,
  progress: (what: string) => void,
): Promise<ProgramResult[]> {
  const modules = await loadModules();
  const parse = (text: string) => parseInsns(modules, text);
  const compile = (insns: readonly Insn[]) => {
    const data = new modules.native.NativeMemory(layoutMaps(modules, maps).lenBytes);
    return compileNative(modules, maps, insns, data.at);
  };
  const noKernel = whyNoKernelBpf();
  const kernelOf = (insns: readonly Insn[]) =>
    new KernelProgram(maps, (fds) => encodeForKernel(modules, insns, fds));

  const empty = parse(EMPTY);
  const ourEmpty = compile(empty);
  using kernelEmpty = noKernel === undefined ? kernelOf(empty) : undefined;
  const results: ProgramResult[] = [];
  for (const { name, text, runs, notInKernel = noKernel } of cases) {
    progress(name);
    const insns = parse(text);
    const ours = compile(insns);
    using kernel = notInKernel === undefined ? kernelOf(insns) : undefined;
    const times: { ours: number[]; kernel: number[] } = { ours: [], kernel: [] };
    for (let round = 0; round < rounds; round++) {
      times.ours.push(ours.run(runs) - ourEmpty.run(runs));
      if (kernel && kernelEmpty) times.kernel.push(kernel.run(runs).ns - kernelEmpty.run(runs).ns);
    }
    results.push({
      name,
      insns: insns.length,
      ours: { codeBytes: ours.codeBytes, ns: median(times.ours) },
      kernel: kernel ? { codeBytes: kernel.codeBytes(), ns: median(times.kernel) } : (notInKernel ?? ""),
    });
  }
  return results;
}

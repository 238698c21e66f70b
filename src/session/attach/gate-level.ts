/**
 * Which gate programs run behind in a process: on the thread's own stack, on a private one, or on that with signals deferred and
 * under a protection key.
 *
 * The rule of `auto`: a private stack where a thread may have little room on its own (goroutines; programs that switch stacks
 * by hand, or give handlers one) and for probes whose programs need much, its own elsewhere, which is a nanosecond or two
 * cheaper. Nobody gets `strict`, which makes two system calls a hit, without asking for it.
 *
 * A probe may be given another level than its session's. Where several probes are at one point, the highest is theirs. The key
 * is the session's: where there is one, it is open in gates of `strict` only, so all of them are.
 */
import { HELPER_TAIL_CALL } from "../../bpf/helpers.ts";
import type { Proof } from "../../bpf/index.ts";
import type { ThreadSource } from "../../gate/index.ts";
import { LOAD_GATE_FUNCTION } from "../../patch/load-gate.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import type { GateChoice, GateLevel } from "../options.ts";
import { isGoProgram } from "./return-ways.ts";

/** From the lowest on. */
const gateLevels: readonly GateLevel[] = ["none", "stack", "strict"];

export const highest = (levels: readonly GateLevel[]): GateLevel =>
  gateLevels[Math.max(0, ...levels.map((level) => gateLevels.indexOf(level)))]!;

/** Functions of the C library and of others with which a program makes stacks of its own. */
const stackMakers = [
  "makecontext",
  "swapcontext",
  "jump_fcontext",
  "make_fcontext",
  "co_create",
  "coro_create",
  "sigaltstack",
];

/** The part of an image that is looked at. */
export type GateImage = Pick<MappedImage, "name" | "elf">;

export interface ChosenGate {
  readonly level: GateLevel;
  readonly reason: string;
}

/** That of all probes of a process of which nothing else is said. */
export interface ProcessGate extends ChosenGate {
  /** A probe whose programs need much stack gets a private one. */
  readonly isAuto: boolean;
}

/** `program`: the one that the process runs; undefined: it cannot be read. */
export function chooseGate(
  choice: GateChoice,
  program: GateImage | undefined,
  isUnderSeccomp: boolean,
): ProcessGate {
  if (choice !== "auto") return { level: choice, reason: `--gate ${choice} was asked for`, isAuto: false };
  const auto = (level: GateLevel, reason: string) => ({ level, reason, isAuto: true });
  if (program !== undefined && isGoProgram(program))
    return auto("stack", `${program.name} has goroutines, whose stacks are small`);
  if (isUnderSeccomp) {
    const reason = "a seccomp filter may forbid what private stacks ask the kernel for";
    return { level: "none", reason, isAuto: false };
  }
  const maker = stackMakers.find((name) => program?.elf.symbols.imports(name));
  if (maker !== undefined) return auto("stack", `${program!.name} makes stacks of its own, with ${maker}`);
  return auto("none", "threads have room on their stacks");
}

/** The part of a proof that is looked at. */
export type StackProof = Pick<Proof, "stackBytes" | "subprograms" | "helpers">;

/** Bytes that a program may take of a thread's own stack. The smallest alternate stack has 2048, beside a signal's frame. */
const MOST_OWN_STACK = 1024;

/** The gate of one probe: as asked for it, else that of the process, if its program, the `index`th, has room there. */
export function gateOfProbe(
  gate: ProcessGate,
  asked: GateLevel | undefined,
  { proofs, index }: { readonly proofs: readonly StackProof[]; readonly index: number },
): ChosenGate {
  if (asked !== undefined) return { level: asked, reason: "it was asked for this probe" };
  const needed = neededStack(proofs, index);
  if (gate.isAuto && gate.level === "none" && needed > MOST_OWN_STACK)
    return { level: "stack", reason: `its program may need ${needed} bytes of stack` };
  return gate;
}

/** A program that makes tail calls may go on as any other. */
function neededStack(proofs: readonly StackProof[], index: number): number {
  const own = proofs[index];
  if (own === undefined) return 0;
  return Math.max(...(own.helpers.has(HELPER_TAIL_CALL) ? proofs : [own]).map(mostStack));
}

/** All functions of a program below each other. */
const mostStack = ({ stackBytes, subprograms }: StackProof): number =>
  subprograms.slice(1).reduce((sum, each) => sum + each.stackBytes, stackBytes);

/** What the probes of one process run behind. */
export interface Gates {
  readonly process: ProcessGate;
  /** Probes that run behind another one than the process's. */
  readonly others: readonly { readonly probe: string; readonly gate: ChosenGate }[];
}

/** The part of an attach request that is looked at. */
export interface GateRequest {
  readonly attachPoint: { readonly name: string };
  readonly programIndex: number;
  readonly gate?: GateLevel | undefined;
}

export function chooseGates(
  process: ProcessGate,
  { requests, proofs }: { readonly requests: readonly GateRequest[]; readonly proofs: readonly StackProof[] },
): Gates {
  const all = requests.map(({ attachPoint, gate: asked, programIndex }) => ({
    probe: attachPoint.name,
    gate: gateOfProbe(process, asked, { proofs, index: programIndex }),
  }));
  return { process, others: all.filter(({ gate }) => gate.level !== process.level) };
}

/** Each level that occurs. */
export const levelsOf = ({ process, others }: Gates): GateLevel[] => [
  ...new Set([process, ...others.map(({ gate }) => gate)].map(({ level }) => level)),
];

/**
 * How threads are told apart in the code of an image. `hasThreadPointers`: all threads are known to have their fs base in
 * memory as well. Before its first instruction a command's thread has none at all; its dynamic loader makes one before any code but
 * the loader's own runs.
 */
export function threadSourceIn(
  image: GateImage | undefined,
  images: readonly GateImage[],
  hasThreadPointers: boolean,
): ThreadSource {
  if (hasThreadPointers) return "fs:0";
  const isLoader = ({ elf }: GateImage) => elf.symbols.find(LOAD_GATE_FUNCTION).length > 0;
  return image !== undefined && !isLoader(image) && images.some(isLoader) ? "fs:0" : "fs base";
}

/**
 * Whether threads may come by on an alternate stack that another handler would begin again while they are on a private one. Where
 * signals wait nothing comes between; handlers of Go block all signals.
 */
export function mayFindAlternate(level: GateLevel, program: GateImage | undefined): boolean {
  return level === "stack" && !(program !== undefined && isGoProgram(program));
}

/**
 * Which gate programs run behind in a process: on the thread's own stack, on a private one, or on that with signals deferred and
 * under a protection key.
 *
 * The rule of `auto`: a private stack where a thread may have little room on its own (goroutines; programs that switch stacks
 * by hand) or where programs need much, its own elsewhere, which is a nanosecond or two cheaper. Nobody gets `strict`, which makes two
 * system calls a hit, without asking for it.
 */
import type { Proof } from "../../bpf/index.ts";
import type { ThreadSource } from "../../gate/index.ts";
import { LOAD_GATE_FUNCTION } from "../../patch/load-gate.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import type { GateChoice } from "../options.ts";
import { isGoProgram } from "./return-ways.ts";

export type GateLevel = "none" | "stack" | "strict";

/** Functions of the C library and of others with which a program makes stacks of its own. */
const stackMakers = [
  "makecontext",
  "swapcontext",
  "jump_fcontext",
  "make_fcontext",
  "co_create",
  "coro_create",
];

/** The part of an image that is looked at. */
export type GateImage = Pick<MappedImage, "name" | "elf">;

export interface ChosenGate {
  readonly level: GateLevel;
  readonly reason: string;
}

/** Bytes that a program may take of a thread's own stack. The smallest alternate stack has 2048, beside a signal's frame. */
const MOST_OWN_STACK = 1024;

export function chooseGate(
  choice: GateChoice,
  images: readonly GateImage[],
  proofs: readonly Pick<Proof, "stackBytes" | "subprograms">[] = [],
): ChosenGate {
  if (choice !== "auto") return { level: choice, reason: `--gate ${choice} was asked for` };
  for (const image of images) {
    if (isGoProgram(image))
      return { level: "stack", reason: `${image.name} has goroutines, whose stacks are small` };
    const maker = stackMakers.find((name) => image.elf.symbols.imports(name));
    if (maker !== undefined)
      return { level: "stack", reason: `${image.name} makes stacks of its own, with ${maker}` };
  }
  const deepest = Math.max(0, ...proofs.map(mostStack));
  if (deepest > MOST_OWN_STACK)
    return { level: "stack", reason: `a program may need ${deepest} bytes of stack` };
  return { level: "none", reason: "threads have room on their stacks" };
}

/** All functions of a program below each other. */
const mostStack = ({ stackBytes, subprograms }: Pick<Proof, "stackBytes" | "subprograms">): number =>
  subprograms.slice(1).reduce((sum, each) => sum + each.stackBytes, stackBytes);

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

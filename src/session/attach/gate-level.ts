/**
 * Which gate programs run behind in a process: on the thread's own stack, or on a private one.
 *
 * The rule of `auto`: a private stack where a thread may have little room on its own (goroutines; programs that switch stacks
 * by hand), its own elsewhere, which is some nanoseconds cheaper.
 */
import type { MappedImage } from "../../target/process/mapped-image.ts";
import type { GateChoice } from "../options.ts";
import { isGoProgram } from "./return-ways.ts";

export type GateLevel = "none" | "stack";

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

export function chooseGate(choice: GateChoice, images: readonly GateImage[]): ChosenGate {
  if (choice !== "auto") return { level: choice, reason: `--gate ${choice} was asked for` };
  for (const image of images) {
    if (isGoProgram(image))
      return { level: "stack", reason: `${image.name} has goroutines, whose stacks are small` };
    const maker = stackMakers.find((name) => image.elf.symbols.imports(name));
    if (maker !== undefined)
      return { level: "stack", reason: `${image.name} makes stacks of its own, with ${maker}` };
  }
  return { level: "none", reason: "threads have room on their stacks" };
}

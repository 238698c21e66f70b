/**
 * How the returns of each function are probed: at its exits, which leaves the return address as it is, or by a replaced
 * return address.
 *
 * The rule of `auto`: at the exits, if they are all known and none of them needs an `int3`. Where one does, a replaced return
 * address costs less than a trap for every return, so it is taken if the entry takes a jump; not where it may do harm: under
 * shadow stacks, in functions that exceptions pass through, in Go programs, whose stacks move.
 */
import {
  doesReturnTwice,
  type ExitsRefusal,
  findReturnRefusal,
  type PlannedSite,
  type PlanOptions,
  planSites,
  type Refusal,
  refusalText,
} from "../../patch/index.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import { readStatus } from "../../target/process/proc-fs.ts";
import { type FunctionExit, findExits } from "../../x86/function-exits.ts";
import type { ImageCode } from "../../x86/regions.ts";
import type { ReturnChoice } from "../options.ts";

export type ReturnWay =
  | { readonly kind: "exits"; readonly exits: readonly FunctionExit[] }
  /** `refusal`: why not at the exits. */
  | { readonly kind: "stack"; readonly refusal: ExitsRefusal }
  | { readonly kind: "impossible"; readonly reason: string };

/** What a point has to do with the returns of a function. */
export type ReturnRole =
  | { readonly kind: "exit"; readonly of: bigint; readonly exit: FunctionExit["kind"] }
  | { readonly kind: "stack"; readonly refusal: ExitsRefusal };

export interface ReturnWaysInput {
  readonly code: ImageCode;
  /** Whether it is a program by Go's own compiler. */
  readonly isGo: boolean;
  readonly choice: ReturnChoice;
  /** Why return addresses cannot be replaced in this process, if they cannot. */
  readonly obstacle: string | undefined;
  readonly print: (at: bigint) => string;
}

/** The ways of all functions of one image that have return probes. */
export class ReturnWays {
  readonly #input: ReturnWaysInput;
  readonly #ways = new Map<bigint, ReturnWay>();
  /** Why return addresses cannot be replaced in this image, if they cannot. */
  readonly #obstacle: string | undefined;

  constructor(input: ReturnWaysInput, functions: readonly bigint[]) {
    this.#input = input;
    const { code, choice, isGo } = input;
    this.#obstacle = input.obstacle ?? (isGo ? GO_OBSTACLE : undefined);
    if (choice === "stack") {
      for (const start of functions)
        this.#ways.set(start, { kind: "stack", refusal: { reason: "stack-forced" } });
      return;
    }
    const found = findExits(code, functions);
    for (const [i, start] of functions.entries()) {
      const result = found[i]!;
      if (result.kind === "refused") this.#withoutExits(start, result.refusal);
      else {
        const tail = result.exits.find(({ kind }) => kind !== "return");
        if (
          tail !== undefined &&
          (this.#obstacle !== undefined || doesReturnTwice(code.functionAt(start)?.name))
        )
          this.#withoutExits(start, { reason: "tail-call-hijacks", at: tail.at });
        else this.#ways.set(start, result);
      }
    }
  }

  of(start: bigint): ReturnWay | undefined {
    return this.#ways.get(start);
  }

  /** Looks at what was planned for the exits; true if another way was chosen for a function. */
  revise(planOf: (at: bigint) => PlannedSite | undefined, options: PlanOptions): boolean {
    const { choice } = this.#input;
    let isChanged = false;
    for (const [start, way] of this.#ways) {
      if (way.kind !== "exits") continue;
      for (const { at } of way.exits) {
        const plan = planOf(at);
        const isHeldBranch =
          plan?.kind === "planned" && plan.held !== undefined && plan.region.insns[0]!.flow === "branch";
        if (plan?.kind === "refused" || isHeldBranch) {
          // The branch is taken in the other tracer's detour, where this one does not see it.
          const refusal: Refusal = isHeldBranch
            ? { reason: "other-tracer-displaces", at, tracer: plan.held!.tracer }
            : plan.refused.at(-1)!.refusal;
          this.#withoutExits(start, { reason: "exit-refused", at, refusal });
          isChanged = true;
          break;
        }
        if (choice === "auto" && plan?.mechanism === "int3" && this.#hasCheapEntry(start, options)) {
          this.#ways.set(start, { kind: "stack", refusal: { reason: "exit-needs-int3", at } });
          isChanged = true;
          break;
        }
      }
    }
    return isChanged;
  }

  #withoutExits(start: bigint, refusal: ExitsRefusal): void {
    const { choice, print } = this.#input;
    const obstacle = this.#obstacle;
    const why = refusalText(refusal, print);
    const reason =
      choice === "sites"
        ? `its returns cannot be probed at its exits: ${why}`
        : obstacle === undefined
          ? undefined
          : `${obstacle}, and its returns cannot be probed at its exits: ${why}`;
    this.#ways.set(start, reason === undefined ? { kind: "stack", refusal } : { kind: "impossible", reason });
  }

  /** Could the return address be replaced by a jump at the entry, without doing harm? */
  #hasCheapEntry(start: bigint, options: PlanOptions): boolean {
    const { code } = this.#input;
    const fn = code.functionAt(start);
    if (this.#obstacle !== undefined || fn === undefined) return false;
    if (code.image.landingPads(fn).length > 0) return false;
    const [entry] = planSites(code, [start], {
      ...options,
      alone: true,
      callObstacle: (at) => ({ reason: "return-address-claimed", at }),
    });
    return (
      entry?.kind === "planned" && entry.mechanism !== "int3" && findReturnRefusal(entry, code) === undefined
    );
  }
}

const GO_OBSTACLE = "Go looks for return addresses when it moves a stack";

/** Programs by Go's own compiler have a table of functions in a section of this name. */
export function isGoProgram(image: Pick<MappedImage, "elf">): boolean {
  return image.elf.findSection(".gopclntab") !== undefined;
}

/** One line for people. */
export function describeReturn(role: ReturnRole, print: (at: bigint) => string): string {
  if (role.kind === "stack")
    return `returns: by a replaced return address, not at the exits: ${refusalText(role.refusal, print)}`;
  const what: Record<FunctionExit["kind"], string> = {
    return: "returns here, with its return address as it is",
    "tail-jump":
      "calls another function here as its last act: the return address is replaced until that returns",
    "tail-branch":
      "may call another function here as its last act: the return address is then replaced until that returns",
  };
  return `returns: ${print(role.of)} ${what[role.exit]}`;
}

/** A hijacked return address is a fault where the processor keeps a second stack of them. */
export function findReturnObstacle(pid: number): string | undefined {
  return readStatus(pid).threadFeatures.includes("shstk")
    ? "the process uses shadow stacks, where a changed return address is a fault"
    : undefined;
}

/**
 * Virtual registers to r0 to r9, or to stack slots where ten are not enough.
 *
 * Graph colouring in one pass: two registers interfere if one is written while the other is live; what is live
 * over a call stays out of r0 to r5. The hardest-used registers choose first, and choose, if they can, the
 * register that makes a move disappear: r0 for a call's result, r1 to r5 for its arguments, the other side of a
 * copy. What finds no register goes to a slot; then the round starts again with short-lived registers around each
 * use of the slot. Constants and addresses are computed again instead of stored.
 */
import { type CallArgument, definitionOf, type IrInsn, isVReg, usesOf, type VReg } from "./ir.ts";
import { removeDeadCode, visitLiveness } from "./liveness.ts";

/** Where a virtual register lives. */
export type Location =
  | { readonly kind: "register"; readonly reg: number }
  /** Offset from the frame pointer. */
  | { readonly kind: "slot"; readonly offset: number };

export interface Allocation {
  readonly insns: readonly IrInsn[];
  readonly locations: ReadonlyMap<number, Location>;
  /** Bytes of the frame, slots included. */
  readonly frameBytes: number;
}

const REGISTERS = 10;
/** r0 to r5, which a call changes. */
const CALL_CLOBBERED = 0b111111;
const MAX_ROUNDS = 40;

interface Node {
  readonly neighbours: Set<number>;
  /** Bit mask of registers that it must not have. */
  forbidden: number;
  weight: number;
  /** Registers on the other side of moves. */
  readonly partners: Set<number>;
  /** Bit mask of registers that a call would like it to have. */
  wanted: number;
}

/** `frameBytes` is what the program's own frame takes; slots lie below it. */
export function allocateRegisters(
  source: readonly IrInsn[],
  registerCount: number,
  frameBytes: number,
): Allocation {
  let insns: readonly IrInsn[] = removeDeadCode(source);
  let nextRegister = registerCount;
  let bytes = frameBytes;
  const slots = new Map<number, Location>();
  /** Short-lived registers that must get a real one. */
  const pinned = new Set<number>();
  for (let round = 0; round < MAX_ROUNDS; round++) {
    const graph = buildGraph(insns, slots);
    const merged = mergeMoves(graph, insns, pinned);
    const { colours, spilled } = colour(graph, pinned);
    if (spilled.length === 0) {
      const locations = new Map<number, Location>(slots);
      for (const [id, reg] of colours) locations.set(id, { kind: "register", reg });
      for (const [id, into] of merged) locations.set(id, { kind: "register", reg: colours.get(into)! });
      return { insns, locations, frameBytes: bytes };
    }
    // What was merged with a register that is spilled is spilled with it, each to its own slot.
    const parts = [...merged.keys()].filter((id) => spilled.includes(merged.get(id)!));
    const all = [...spilled, ...parts];
    const rewriter = new SpillRewriter(insns, nextRegister, pinned);
    for (const id of all) {
      if (rewriter.recompute(id)) continue;
      bytes += 8;
      slots.set(id, { kind: "slot", offset: -bytes });
    }
    insns = rewriter.rewrite(new Set(all), slots);
    nextRegister = rewriter.nextRegister;
  }
  throw new Error("generate bpf: registers were not assigned after many rounds");
}

function buildGraph(insns: readonly IrInsn[], slots: ReadonlyMap<number, Location>): Map<number, Node> {
  const graph = new Map<number, Node>();
  const nodeOf = (id: number): Node => {
    let node = graph.get(id);
    if (!node) {
      node = { neighbours: new Set(), forbidden: 0, weight: 0, partners: new Set(), wanted: 0 };
      graph.set(id, node);
    }
    return node;
  };
  visitLiveness(insns, (insn, _index, liveAfter) => {
    const definition = definitionOf(insn);
    for (const use of usesOf(insn)) if (!slots.has(use.id)) nodeOf(use.id).weight++;
    if (definition && !slots.has(definition.id)) {
      const node = nodeOf(definition.id);
      node.weight++;
      const copied = insn.op === "move" && isVReg(insn.src) ? insn.src.id : undefined;
      for (const id of liveAfter) {
        if (id === definition.id || id === copied || slots.has(id)) continue;
        node.neighbours.add(id);
        nodeOf(id).neighbours.add(definition.id);
      }
      if (copied !== undefined && !slots.has(copied)) {
        node.partners.add(copied);
        nodeOf(copied).partners.add(definition.id);
      }
    }
    constrain(insn, liveAfter, nodeOf, slots);
  });
  return graph;
}

/**
 * Makes one register of the two sides of a move where they do not interfere, so that the move disappears. A merge
 * that might leave no free register is not made (P. Briggs' rule: neighbours that find a register in any case do
 * not count). Gives what was merged into what.
 */
function mergeMoves(
  graph: Map<number, Node>,
  insns: readonly IrInsn[],
  pinned: ReadonlySet<number>,
): ReadonlyMap<number, number> {
  const merged = new Map<number, number>();
  const rootOf = (id: number): number => {
    let root = id;
    for (let next = merged.get(root); next !== undefined; next = merged.get(root)) root = next;
    return root;
  };
  for (const insn of insns) {
    if (insn.op !== "move" || !isVReg(insn.src)) continue;
    if (pinned.has(insn.src.id) || pinned.has(insn.dst.id)) continue;
    const into = rootOf(insn.src.id);
    const from = rootOf(insn.dst.id);
    const a = graph.get(into);
    const b = graph.get(from);
    if (into === from || !a || !b || a.neighbours.has(from)) continue;
    const forbidden = a.forbidden | b.forbidden;
    const crowded = [...new Set([...a.neighbours, ...b.neighbours])].filter((id) =>
      isCrowded(graph.get(id)!),
    );
    if (crowded.length >= REGISTERS - countBits(forbidden)) continue;
    for (const other of b.neighbours) {
      const node = graph.get(other)!;
      node.neighbours.delete(from);
      node.neighbours.add(into);
      a.neighbours.add(other);
    }
    a.forbidden = forbidden;
    a.weight += b.weight;
    a.wanted |= b.wanted;
    for (const partner of b.partners) a.partners.add(partner);
    graph.delete(from);
    merged.set(from, into);
  }
  return new Map([...merged.keys()].map((id) => [id, rootOf(id)]));
}

/** Whether the neighbours of a register could take all that it may have. */
function isCrowded(node: Node): boolean {
  return node.neighbours.size >= REGISTERS - countBits(node.forbidden);
}

function countBits(mask: number): number {
  let count = 0;
  for (let rest = mask; rest !== 0; rest &= rest - 1) count++;
  return count;
}

/** What calls and compare-exchange ask of the registers around them. */
function constrain(
  insn: IrInsn,
  liveAfter: ReadonlySet<number>,
  nodeOf: (id: number) => Node,
  slots: ReadonlyMap<number, Location>,
): void {
  const forbidOthers = (dst: VReg | undefined, mask: number): void => {
    for (const id of liveAfter) if (id !== dst?.id && !slots.has(id)) nodeOf(id).forbidden |= mask;
  };
  if (insn.op === "context") nodeOf(insn.dst.id).wanted |= 1 << 1;
  if (insn.op === "call") {
    forbidOthers(insn.dst, CALL_CLOBBERED);
    if (insn.dst && !slots.has(insn.dst.id)) nodeOf(insn.dst.id).wanted |= 1;
    for (const [i, arg] of insn.args.entries()) {
      if (isVReg(arg) && !slots.has(arg.id)) nodeOf(arg.id).wanted |= 1 << (i + 1);
    }
  }
  if (insn.op === "compare-exchange") {
    forbidOthers(insn.dst, 1);
    nodeOf(insn.base.id).forbidden |= 1;
    nodeOf(insn.src.id).forbidden |= 1;
    nodeOf(insn.expected.id).wanted |= 1;
    nodeOf(insn.dst.id).wanted |= 1;
  }
}

function colour(
  graph: ReadonlyMap<number, Node>,
  pinned: ReadonlySet<number>,
): { readonly colours: Map<number, number>; readonly spilled: number[] } {
  const colours = new Map<number, number>();
  const spilled: number[] = [];
  const order = [...graph.keys()].sort((a, b) => {
    const nodeA = graph.get(a)!;
    const nodeB = graph.get(b)!;
    const pins = Number(pinned.has(b)) - Number(pinned.has(a));
    if (pins !== 0) return pins;
    const density = nodeB.weight / (nodeB.neighbours.size + 1) - nodeA.weight / (nodeA.neighbours.size + 1);
    return density !== 0 ? density : a - b;
  });
  for (const id of order) {
    const node = graph.get(id)!;
    let taken = node.forbidden;
    for (const neighbour of node.neighbours) {
      const reg = colours.get(neighbour);
      if (reg !== undefined) taken |= 1 << reg;
    }
    const reg = choose(node, taken, colours, graph);
    if (reg === undefined) spilled.push(id);
    else colours.set(id, reg);
  }
  if (spilled.length === 0) return { colours, spilled };
  // A pinned register must not be spilled again: give up one of the long-lived ones in its way instead.
  const unlucky = spilled.filter((id) => pinned.has(id));
  if (unlucky.length === 0) return { colours, spilled };
  const victims = new Set(spilled.filter((id) => !pinned.has(id)));
  for (const id of unlucky) {
    const neighbours = [...graph.get(id)!.neighbours].filter((other) => !pinned.has(other));
    const lightest = neighbours.sort((a, b) => graph.get(a)!.weight - graph.get(b)!.weight)[0];
    if (lightest === undefined) throw new Error("generate bpf: one instruction needs too many registers");
    victims.add(lightest);
  }
  return { colours, spilled: [...victims] };
}

/** A free register: one that a move or call would like, else the first. */
function choose(
  node: Node,
  taken: number,
  colours: ReadonlyMap<number, number>,
  graph: ReadonlyMap<number, Node>,
): number | undefined {
  for (const partner of node.partners) {
    const reg = colours.get(partner);
    if (reg !== undefined && (taken & (1 << reg)) === 0) return reg;
  }
  for (const mask of [node.wanted, partnersWish(node, graph)]) {
    const free = mask & ~taken;
    if (free !== 0) return 31 - Math.clz32(free & -free);
  }
  for (let reg = 0; reg < REGISTERS; reg++) if ((taken & (1 << reg)) === 0) return reg;
  return undefined;
}

function partnersWish(node: Node, graph: ReadonlyMap<number, Node>): number {
  let mask = 0;
  for (const partner of node.partners) mask |= graph.get(partner)?.wanted ?? 0;
  return mask;
}

/** Replaces registers that live in slots by short-lived ones around each use. */
class SpillRewriter {
  readonly #insns: readonly IrInsn[];
  readonly #pinned: Set<number>;
  /** Registers with one cheap definition that is repeated at each use. */
  readonly #recomputed = new Map<number, IrInsn>();
  nextRegister: number;

  constructor(insns: readonly IrInsn[], nextRegister: number, pinned: Set<number>) {
    this.#insns = insns;
    this.#pinned = pinned;
    this.nextRegister = nextRegister;
  }

  /** Whether the register can be computed again at each use instead of being stored. */
  recompute(id: number): boolean {
    const definitions = this.#insns.filter((insn) => definitionOf(insn)?.id === id);
    const only = definitions[0];
    if (definitions.length !== 1 || only === undefined) return false;
    const cheap =
      only.op === "map-value" || only.op === "frame-address" || (only.op === "move" && !isVReg(only.src));
    if (cheap) this.#recomputed.set(id, only);
    return cheap;
  }

  rewrite(spilled: ReadonlySet<number>, slots: ReadonlyMap<number, Location>): IrInsn[] {
    const result: IrInsn[] = [];
    for (const insn of this.#insns) {
      const definition = definitionOf(insn);
      if (definition && this.#recomputed.has(definition.id)) continue;
      if (insn.op === "call") this.#rewriteCall(insn, result);
      else this.#rewriteInsn(insn, spilled, slots, result);
    }
    return result;
  }

  /** A call takes arguments from slots and leaves its result in one; only recomputed values need an instruction. */
  #rewriteCall(insn: IrInsn & { readonly op: "call" }, result: IrInsn[]): void {
    const args = insn.args.map((arg): CallArgument => {
      if (isVReg(arg)) {
        const definition = this.#recomputed.get(arg.id);
        if (definition === undefined) return arg;
        if (definition.op === "map-value") {
          return { kind: "map-value", map: definition.map, offset: definition.offset };
        }
        if (definition.op === "frame-address") return { kind: "frame", offset: definition.offset };
        if (definition.op === "move" && !isVReg(definition.src)) return definition.src;
        return arg;
      }
      if (typeof arg === "object" && arg.kind === "offset" && this.#recomputed.has(arg.base.id)) {
        return { ...arg, base: this.#again(arg.base.id, result) };
      }
      return arg;
    });
    result.push({ ...insn, args });
  }

  #rewriteInsn(
    insn: IrInsn,
    spilled: ReadonlySet<number>,
    slots: ReadonlyMap<number, Location>,
    result: IrInsn[],
  ): void {
    const replacements = new Map<number, VReg>();
    for (const use of usesOf(insn)) {
      if (replacements.has(use.id)) continue;
      if (this.#recomputed.has(use.id)) {
        replacements.set(use.id, this.#again(use.id, result));
        continue;
      }
      const slot = spilled.has(use.id) ? slots.get(use.id) : undefined;
      if (slot?.kind !== "slot") continue;
      const fresh = this.#fresh();
      replacements.set(use.id, fresh);
      result.push({ op: "load", dst: fresh, base: "frame", offset: slot.offset, bytes: 8, signed: false });
    }
    const definition = definitionOf(insn);
    const slot = definition && spilled.has(definition.id) ? slots.get(definition.id) : undefined;
    if (definition && slot?.kind === "slot" && !replacements.has(definition.id)) {
      replacements.set(definition.id, this.#fresh());
    }
    result.push(replaceRegisters(insn, replacements));
    if (definition && slot?.kind === "slot") {
      const src = replacements.get(definition.id)!;
      result.push({ op: "store", base: "frame", offset: slot.offset, bytes: 8, src });
    }
  }

  #again(id: number, result: IrInsn[]): VReg {
    const fresh = this.#fresh();
    result.push(replaceRegisters(this.#recomputed.get(id)!, new Map([[id, fresh]])));
    return fresh;
  }

  #fresh(): VReg {
    const id = this.nextRegister++;
    this.#pinned.add(id);
    return { kind: "vreg", id };
  }
}

/** The same instruction on other registers. */
function replaceRegisters(insn: IrInsn, replacements: ReadonlyMap<number, VReg>): IrInsn {
  const swap = <T>(value: T): T => {
    if (!isVReg(value)) return value;
    return (replacements.get(value.id) ?? value) as T;
  };
  switch (insn.op) {
    case "context":
    case "map-value":
    case "frame-address":
    case "negate":
    case "swap":
      return { ...insn, dst: swap(insn.dst) };
    case "move":
    case "alu":
      return { ...insn, dst: swap(insn.dst), src: swap(insn.src) } as IrInsn;
    case "extend":
      return { ...insn, dst: swap(insn.dst), src: swap(insn.src) };
    case "load":
      return { ...insn, dst: swap(insn.dst), base: swap(insn.base) };
    case "store":
      return { ...insn, base: swap(insn.base), src: swap(insn.src) };
    case "atomic":
      return { ...insn, base: swap(insn.base), src: swap(insn.src) };
    case "fetch":
      return { ...insn, base: swap(insn.base), reg: swap(insn.reg) };
    case "compare-exchange":
      return {
        ...insn,
        base: swap(insn.base),
        expected: swap(insn.expected),
        src: swap(insn.src),
        dst: swap(insn.dst),
      };
    case "jump":
      return { ...insn, left: swap(insn.left), right: swap(insn.right) };
    case "call":
    case "goto":
    case "label":
    case "exit":
      return insn;
  }
}

/**
 * What becomes of an instruction of the application that has touched memory under our key: the rule that the user has chosen, as
 * far as it can be followed for this instruction. Where it cannot, the access is a fault.
 */
import type { GateKey, PrivateStacks } from "../../gate/index.ts";
import type { Answer } from "../../patch/mailbox.ts";
import { emitAccessCopy } from "../../patch/stray-access.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import { decodeBlock, effectsOf, type Insn } from "../../x86/decode.ts";
import { hasReg, RSP } from "../../x86/registers.ts";
import { relocate } from "../../x86/relocate.ts";
import { CODE_NAME_PREFIX, type CodeNames } from "../names/code-names.ts";
import type { ViolationChoice } from "../options.ts";
import type { CodeSpaces } from "./code-space.ts";
import { PAGE } from "./session-memory.ts";

export interface AccessAnswersInput {
  readonly choice: ViolationChoice;
  readonly key: GateKey;
  readonly target: Pick<ProcessTarget, "findMany" | "write">;
  readonly spaces: CodeSpaces;
  readonly names: CodeNames;
  /** The mapping that code lies in, and its name; undefined: there is none. */
  mappingAt(ip: bigint): { readonly name: string; readonly range: AddrRange } | undefined;
  /** The stacks of the gate; undefined: nothing is armed. */
  stacks(): PrivateStacks | undefined;
}

export interface AccessAnswer {
  readonly answer: Answer;
  /** Where execution goes on, or the copy is. */
  readonly argument: bigint;
  /** Why it is not what was asked for. */
  readonly why?: string;
}

const LONGEST_INSN = 15;
const COPY_SPACE_BYTES = 512;
/** These change what is open, or where the thread's memory is. */
const refusedNames = /^(wrpkru|rdpkru|xrstor|xsave|wrfsbase|wrgsbase|popf|iret|swapgs)/;

export class AccessAnswers {
  readonly choice: ViolationChoice;
  readonly key: GateKey;
  readonly #input: AccessAnswersInput;
  readonly #known = new Map<bigint, AccessAnswer>();

  constructor(input: AccessAnswersInput) {
    this.#input = input;
    this.choice = input.choice;
    this.key = input.key;
  }

  async answerTo(ip: bigint): Promise<AccessAnswer> {
    const known = this.#known.get(ip) ?? (await this.#find(ip));
    this.#known.set(ip, known);
    return known;
  }

  async #find(ip: bigint): Promise<AccessAnswer> {
    if (this.choice === "kill") return { answer: "kill", argument: 0n };
    const { names } = this.#input;
    if (names.find(ip) !== undefined) return refused("it comes from code of the session");
    const insn = await this.#decode(ip);
    if (insn === undefined) return refused("what has made it is no instruction any more");
    const next = ip + BigInt(insn.lenBytes);
    if (this.choice === "skip") return { answer: "skip", argument: next };
    return await this.#copy(insn, next);
  }

  async #decode(ip: bigint): Promise<Insn | undefined> {
    // The next page may not be there.
    const left = PAGE - Number(ip % BigInt(PAGE));
    for (const lenBytes of [LONGEST_INSN, Math.min(left, LONGEST_INSN)]) {
      const [bytes] = await this.#input.target.findMany([{ at: ip, lenBytes }]);
      if (bytes !== undefined) return decodeBlock(ip, bytes).insns()[0];
    }
    return undefined;
  }

  async #copy(insn: Insn, next: bigint): Promise<AccessAnswer> {
    const { target, spaces, names, key } = this.#input;
    const { writes, mnemonic } = effectsOf(insn.bytes);
    if (insn.flow !== "next") return refused("the instruction branches");
    if (hasReg(writes, RSP)) return refused("the instruction moves the stack pointer");
    if (refusedNames.test(mnemonic)) return refused(`${mnemonic} is not executed for others`);
    const stacks = this.#input.stacks();
    const mapping = this.#input.mappingAt(insn.addr);
    if (stacks === undefined || mapping === undefined) return refused("there is no place for a copy");
    const [space] = await spaces.provide([
      { name: mapping.name, image: mapping.range, lenBytes: COPY_SPACE_BYTES },
    ]);
    const at = space!.next;
    const region = {
      start: insn.addr,
      lenBytes: insn.lenBytes,
      insns: [insn],
      paddingBytes: 0,
      fallsThrough: true,
    };
    const moved = relocate(region, at);
    if (moved.kind === "refused") return refused("the instruction cannot be executed elsewhere");
    const code = emitAccessCopy({
      at,
      insn: moved.bytes.subarray(0, moved.parts[0]!.lenBytes),
      next,
      stacks,
      key,
    });
    space!.take(code.bytes.length);
    await target.write(at, code.bytes);
    names.add({ ...code, name: `${CODE_NAME_PREFIX}access:0x${insn.addr.toString(16)}` });
    return { answer: "report", argument: at };
  }
}

const refused = (why: string): AccessAnswer => ({ answer: "kill", argument: 0n, why });

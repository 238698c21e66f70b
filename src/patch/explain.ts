/**
 * Generated code as text: every instruction with its bytes, and behind it what it is for.
 *
 *     7f12a0001000  48 89 bc 24 70 00 00 00  mov [rsp+0x70], rdi    ; rdi: read by a program
 */
import type { CodeNote, WrittenCode } from "../gate/code-writer.ts";
import type { GateFrame } from "../gate/gate-frame.ts";
import { decodeBlock, textOf } from "../x86/decode.ts";
import { regNames } from "../x86/registers.ts";
import type { Detour } from "./detour.ts";
import type { FunctionTrampoline } from "./function-trampoline.ts";
import type { HeldSite, SitePlan } from "./plan.ts";
import { refusalText } from "./refusal.ts";
import { evictedBy, landingsOf, type Route, type RoutePatch } from "./route.ts";

export interface CodeLine {
  readonly addr: bigint;
  readonly bytes: Uint8Array;
  /** Intel syntax; constants as `.quad`. */
  readonly text: string;
  /** What the instruction is for: only at the first one that serves this purpose. */
  readonly note: string | undefined;
}

/** The lines of any code that was written with notes. */
export function codeLines(code: Pick<WrittenCode, "at" | "bytes" | "notes">): CodeLine[] {
  const lines: CodeLine[] = [];
  const notes = [...code.notes].sort((a, b) => a.offset - b.offset);
  const starts = notes.map((note) => note.offset);
  if (starts[0] !== 0) notes.unshift({ offset: 0, text: "", isData: false });
  for (const [i, note] of notes.entries()) {
    const end = notes[i + 1]?.offset ?? code.bytes.length;
    const bytes = code.bytes.subarray(note.offset, end);
    const at = code.at + BigInt(note.offset);
    const part = note.isData ? dataLines(at, bytes) : insnLines(at, bytes);
    for (const [j, line] of part.entries())
      lines.push({ ...line, note: j === 0 && note.text !== "" ? note.text : undefined });
  }
  return lines;
}

function insnLines(at: bigint, bytes: Uint8Array): Omit<CodeLine, "note">[] {
  const block = decodeBlock(at, bytes);
  const lines = block.insns().map((insn) => ({ addr: insn.addr, bytes: insn.bytes, text: textOf(insn) }));
  const rest = block.undecodableAt;
  if (rest !== undefined) lines.push(...dataLines(rest, bytes.subarray(Number(rest - at))));
  return lines;
}

function dataLines(at: bigint, bytes: Uint8Array): { addr: bigint; bytes: Uint8Array; text: string }[] {
  const lines: { addr: bigint; bytes: Uint8Array; text: string }[] = [];
  let offset = 0;
  while (offset < bytes.length) {
    const addr = at + BigInt(offset);
    const left = bytes.length - offset;
    const lenBytes = addr % 8n === 0n && left >= 8 ? 8 : left % 8 === 0 && left > 0 ? 8 : left % 8;
    const word = bytes.subarray(offset, offset + lenBytes);
    const value = word.reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
    const text = lenBytes === 8 ? `.quad 0x${value.toString(16)}` : `.byte ${hexBytes(word)}`;
    lines.push({ addr, bytes: word, text });
    offset += lenBytes;
  }
  return lines;
}

export function hexBytes(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

export function printCodeLines(lines: readonly CodeLine[]): string[] {
  const texts = lines.map(
    (line) => `${line.addr.toString(16)}  ${hexBytes(line.bytes).padEnd(29)}  ${line.text}`,
  );
  const width = Math.min(80, Math.max(0, ...texts.map((text) => text.length)));
  return texts.map((text, i) => {
    const { note } = lines[i]!;
    return note === undefined ? text : `${text.padEnd(width)}  ; ${note}`;
  });
}

/** How a punned site gets to its detour, one line a step; addresses as far as they are known. */
export function routeLines(route: Route, patch: RoutePatch | undefined): string[] {
  const lines: string[] = [];
  const landings = landingsOf(route).map((at) => `0x${at.toString(16)}`);
  switch (route.tactic) {
    case "pun":
      lines.push(`pun: the jump ends in the bytes that follow, ${hexBytes(route.kept)}`);
      lines.push(`lands at ${landings[0]}`);
      break;
    case "padding":
      lines.push(`padding: hops to 0x${route.pad.toString(16)}, which nothing executes`);
      break;
    case "neighbour":
      lines.push(
        `neighbour: hops into the instructions from 0x${route.evicted.start.toString(16)} on, which make way`,
      );
      break;
    case "successor":
      lines.push(
        `successor: the jump ends in the jump by which the instructions from 0x${route.evicted.start.toString(16)} on make way`,
      );
      lines.push(`lands at ${landings[0]}; the successor's jump at ${landings[1]}`);
      break;
    default:
      route satisfies never;
  }
  const evicted = evictedBy(route);
  for (const insn of evicted?.insns ?? [])
    lines.push(`  ${insn.addr.toString(16)}  ${hexBytes(insn.bytes).padEnd(29)}  ${textOf(insn)}`);
  for (const { at, oldBytes, newBytes } of patch?.sides ?? [])
    lines.push(`at 0x${at.toString(16)}  ${hexBytes(oldBytes)} -> ${hexBytes(newBytes)}`);
  return lines;
}

/** Whether the site's own text is changed: one that another tracer has changed already only if a call becomes a jump. */
const isWritten = ({ held }: SitePlan): boolean => held === undefined || held.mechanism === "call";

function heldText({ tracer, mechanism, slot }: HeldSite): string {
  return mechanism === "call"
    ? `held by process ${tracer}, by a call; the call becomes a jump, and what it calls runs behind the programs`
    : `held by process ${tracer}; chained: the text stays, and the slot at 0x${slot.toString(16)} leads to the detour`;
}

/** Bytes before and after, mechanism, reasons, what is saved, and the detour line by line. */
export function explainSite(
  plan: SitePlan,
  detour: Detour | FunctionTrampoline | undefined,
  patch: Uint8Array | RoutePatch | undefined,
  print: (addr: bigint) => string = (addr) => `0x${addr.toString(16)}`,
): string[] {
  const lines: string[] = [];
  const name = plan.fn?.name;
  const offset =
    plan.fn === undefined
      ? ""
      : plan.at === plan.fn.start
        ? ""
        : `+0x${(plan.at - plan.fn.start).toString(16)}`;
  const place = name === undefined ? plan.image : `${plan.image}:${name}${offset}`;
  lines.push(
    `site 0x${plan.at.toString(16)} (${place}): ${plan.mechanism}${plan.isEntry ? ", function entry" : ""}`,
  );
  for (const { mechanism, refusal } of plan.refused)
    lines.push(`  not ${mechanism}: ${refusalText(refusal, print)}`);
  lines.push(`  before  ${hexBytes(plan.oldBytes)}`);
  const routePatch = patch instanceof Uint8Array ? undefined : patch;
  const after = patch instanceof Uint8Array ? patch : patch?.siteBytes;
  if (after !== undefined && isWritten(plan)) lines.push(`  after   ${hexBytes(after)}`);
  if (plan.held !== undefined) lines.push(`  ${heldText(plan.held)}`);
  if (plan.route !== undefined) {
    const [first, ...rest] = routeLines(plan.route, routePatch);
    lines.push(`  by ${first}`, ...rest.map((line) => `    ${line}`));
  }
  const isCall = plan.mechanism === "call";
  if (plan.region.start !== plan.at) lines.push(`  at 0x${plan.region.start.toString(16)}, behind endbr64`);
  lines.push(isCall ? "  nops that the call replaces" : "  displaced instructions");
  for (const insn of plan.region.insns)
    lines.push(`    ${insn.addr.toString(16)}  ${hexBytes(insn.bytes).padEnd(29)}  ${textOf(insn)}`);
  if (plan.region.paddingBytes > 0) lines.push(`    and ${plan.region.paddingBytes} bytes of padding`);
  if (detour === undefined) return lines;
  const kept = keptBy(detour.frame);
  lines.push(`  kept: ${kept.length === 0 ? "nothing is both live and changed" : kept.join(", ")}`);
  if (isCall)
    lines.push("  any function with the same programs leads here; which one it is, its return address tells");
  lines.push(
    `  ${isCall ? "trampoline" : "detour"} 0x${detour.at.toString(16)}, ${detour.bytes.length} bytes`,
  );
  for (const line of printCodeLines(codeLines(detour))) lines.push(`    ${line}`);
  return lines;
}

/** What the gate puts back. */
function keptBy({ regs, flagsSlot, sill }: GateFrame): string[] {
  const restored = regs.filter(({ isRestored }) => isRestored).map(({ reg }) => reg);
  const onSill = sill?.regs.filter(({ isLive }) => isLive).map(({ reg }) => reg) ?? [];
  return [
    ...[...restored, ...onSill].toSorted((a, b) => a - b).map((reg) => regNames[reg]!),
    ...((sill?.flagsSlot ?? flagsSlot) === undefined ? [] : ["status flags"]),
    ...(sill?.maskSlot === undefined ? [] : ["signal mask"]),
  ];
}

export type { CodeNote };

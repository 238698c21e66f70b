/**
 * Arguments of static probes as libbpf's usdt.bpf.h wants them: the attach cookie of a site is an index into the map
 * `__bpf_usdt_specs`, whose values say where each argument is.
 *
 *     struct __bpf_usdt_arg_spec   0 u64 constant or offset   8 u32 kind   12 s16 offset in pt_regs   14 u8 signed
 *                                  15 u8 bits to be shifted out on the left of 64
 *     struct __bpf_usdt_spec       12 of them   192 u64 cookie   200 s16 count   (208 bytes)
 *
 * Not handled: operands with an index register or relative to rip, which that header has no kind for.
 */
import { ptRegsOffset } from "../../x86/registers.ts";

export const USDT_SPECS_MAP = "__bpf_usdt_specs";
export const USDT_SPEC_BYTES = 208;
const MAX_ARGS = 12;
const ARG_BYTES = 16;
const COOKIE_AT = 192;
const COUNT_AT = 200;

/** Names of the registers by encoding number, widest first. */
const registers: readonly (readonly string[])[] = [
  ...["a", "c", "d", "b"].map((name) => [`r${name}x`, `e${name}x`, `${name}x`, `${name}l`]),
  ...["sp", "bp", "si", "di"].map((name) => [`r${name}`, `e${name}`, name, `${name}l`]),
  ...[8, 9, 10, 11, 12, 13, 14, 15].map((n) => [`r${n}`, `r${n}d`, `r${n}w`, `r${n}b`]),
];

type UsdtArg =
  | { readonly kind: "constant"; readonly value: bigint }
  | { readonly kind: "register"; readonly regOffset: number }
  | { readonly kind: "memory"; readonly regOffset: number; readonly offset: bigint };

const kinds: Readonly<Record<UsdtArg["kind"], number>> = { constant: 0, register: 1, memory: 2 };

export type UsdtSpecResult =
  | { readonly kind: "spec"; readonly bytes: Uint8Array }
  | { readonly kind: "bad"; readonly reason: string };

/** The map's value for the arguments of a note, such as `-4@%eax 8@-16(%rbp) 4@$7`. */
export function encodeUsdtSpec(args: string, cookie = 0n): UsdtSpecResult {
  // Blanks may stand inside of an operand, but only `N@` begins one.
  const words = [...args.matchAll(/(-?\d+)f?@(.*?)(?=\s+-?\d+f?@|\s*$)/g)];
  if (words.length > MAX_ARGS)
    return {
      kind: "bad",
      reason: `it has ${words.length} arguments, and at most ${MAX_ARGS} can be described`,
    };
  const bytes = new Uint8Array(USDT_SPEC_BYTES);
  const view = new DataView(bytes.buffer);
  for (const [index, [word, size, operand]] of words.entries()) {
    const sizeBytes = Math.abs(Number(size));
    const arg = [1, 2, 4, 8].includes(sizeBytes) ? parseOperand(operand!.trim()) : undefined;
    if (arg === undefined)
      return { kind: "bad", reason: `its argument ${index}, ${word.trim()}, cannot be described` };
    const at = index * ARG_BYTES;
    if (arg.kind === "constant") view.setBigInt64(at, BigInt.asIntN(64, arg.value), true);
    if (arg.kind === "memory") view.setBigInt64(at, arg.offset, true);
    view.setUint32(at + 8, kinds[arg.kind], true);
    view.setInt16(at + 12, arg.kind === "constant" ? 0 : arg.regOffset, true);
    view.setUint8(at + 14, size!.startsWith("-") ? 1 : 0);
    view.setUint8(at + 15, 64 - sizeBytes * 8);
  }
  view.setBigUint64(COOKIE_AT, BigInt.asUintN(64, cookie), true);
  view.setInt16(COUNT_AT, words.length, true);
  return { kind: "spec", bytes };
}

function parseOperand(operand: string): UsdtArg | undefined {
  const constant = /^\$(-?(?:0x[0-9a-f]+|\d+))$/i.exec(operand)?.[1];
  if (constant !== undefined) return { kind: "constant", value: parseInteger(constant) };
  const register = /^%(\w+)$/.exec(operand)?.[1];
  if (register !== undefined) {
    const regOffset = findRegister(register);
    return regOffset === undefined ? undefined : { kind: "register", regOffset };
  }
  const memory = /^(-?(?:0x[0-9a-f]+|\d+))?\(%(\w+)\)$/i.exec(operand);
  const regOffset = memory === null ? undefined : findRegister(memory[2]!);
  if (memory === null || regOffset === undefined) return undefined;
  return { kind: "memory", regOffset, offset: parseInteger(memory[1] ?? "0") };
}

/** Offset in struct pt_regs. */
function findRegister(name: string): number | undefined {
  const number = registers.findIndex((names) => names.includes(name));
  return ptRegsOffset[number];
}

function parseInteger(text: string): bigint {
  return text.startsWith("-") ? -BigInt(text.slice(1)) : BigInt(text);
}

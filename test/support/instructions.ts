/** Where instructions begin in a function of a built program, by objdump. */
import { outputOf } from "./build-program.ts";

/** Offsets from the function's start of all its instructions. */
export function instructionOffsets(path: string, functionName: string): number[] {
  const text = outputOf("objdump", ["-d", "--no-show-raw-insn", `--disassemble=${functionName}`, path]);
  const addresses = [...text.matchAll(/^\s+([0-9a-f]+):\t/gm)].map((match) => Number.parseInt(match[1]!, 16));
  if (addresses.length === 0) throw new Error(`${path} has no function ${functionName}`);
  return addresses.map((address) => address - addresses[0]!);
}

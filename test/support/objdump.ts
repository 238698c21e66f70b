/** Disassembly by binutils, as a second opinion about machine code. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Instruction texts, with spaces normalised; each with its length in bytes. */
export function disassemble(code: Uint8Array, base: bigint): { text: string; lenBytes: number }[] {
  const folder = mkdtempSync(join(tmpdir(), "trapline-asm-"));
  try {
    const file = join(folder, "code.bin");
    writeFileSync(file, code);
    const out = execFileSync(
      "objdump",
      [
        "-D",
        "-b",
        "binary",
        "-m",
        "i386:x86-64",
        "-Mintel",
        "--insn-width=16",
        `--adjust-vma=0x${base.toString(16)}`,
        file,
      ],
      { encoding: "utf8", maxBuffer: 64 << 20 },
    );
    return [...out.matchAll(/^\s*[0-9a-f]+:\t((?:[0-9a-f]{2} )+)\s*\t?(.*)$/gm)].map((match) => ({
      text: match[2]!.replace(/\s+/g, " ").replace(/ #.*$/, "").trim(),
      lenBytes: match[1]!.trim().split(" ").length,
    }));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

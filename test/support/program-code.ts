/** Machine code of programs in a target, found by the names that perf gets, and spoiled: for tests of what happens when one is wrong. */
import { readFileSync } from "node:fs";
import { MemoryFile } from "../../src/target/process/memory-file.ts";

export class ProgramCode {
  readonly at: bigint;
  readonly bytes: Uint8Array;
  readonly #pid: number;

  private constructor(pid: number, at: bigint, bytes: Uint8Array) {
    this.#pid = pid;
    this.at = at;
    this.bytes = bytes;
  }

  /** The code of the nth program of this name. */
  static find(pid: number, name: string, nth = 0): ProgramCode {
    const lines = readFileSync(`/tmp/perf-${pid}.map`, "utf8").split("\n");
    const found = lines.filter((line) => line.endsWith(` trapline:program:${name}`))[nth];
    if (found === undefined) throw new Error(`process ${pid} has no program ${name}:\n${lines.join("\n")}`);
    const [at, length] = found.split(" ");
    const memory = MemoryFile.open(pid, "r");
    const bytes = memory.read(BigInt(`0x${at}`), Number.parseInt(length!, 16));
    memory.close();
    return new ProgramCode(pid, BigInt(`0x${at}`), bytes);
  }

  /** Writes other code over it: at its start, or right behind where it counts its hit. */
  spoil(code: readonly number[], where: "start" | "counted"): void {
    // lock inc [base + index]: f0, REX, ff
    const count = this.bytes.findIndex(
      (byte, index) =>
        byte === 0xf0 && (this.bytes[index + 1]! & 0xf0) === 0x40 && this.bytes[index + 2] === 0xff,
    );
    if (where === "counted" && count < 0) throw new Error("the program counts nothing");
    // ff /0 with a SIB byte, and a displacement where the base needs one.
    const offset = where === "start" ? 0 : count + ((this.bytes[count + 3]! & 0xc0) === 0x40 ? 6 : 5);
    this.#write(offset, code);
  }

  /** Writes other code over what begins with these bytes, behind them. */
  spoilBehind(bytes: readonly number[], code: readonly number[]): void {
    const offset = Buffer.from(this.bytes).indexOf(Uint8Array.from(bytes));
    if (offset < 0)
      throw new Error(`the program has no ${bytes}: ${Buffer.from(this.bytes).toString("hex")}`);
    this.#write(offset + bytes.length, code);
  }

  #write(offset: number, code: readonly number[]): void {
    const memory = MemoryFile.open(this.#pid);
    memory.write(this.at + BigInt(offset), Uint8Array.from(code));
    memory.close();
  }
}

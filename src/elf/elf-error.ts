/** Why an ELF file cannot be used; a closed set, so that callers can give each its own advice. */
export type ElfErrorReason =
  | "not-elf"
  | "32-bit"
  | "big-endian"
  | "other-machine"
  | "not-loadable"
  | "truncated"
  | "malformed";

/** An ELF image could not be parsed. `file` names it as the caller did; the message says what was found instead. */
export class ElfError extends Error {
  readonly code = "ELF_UNUSABLE";
  readonly reason: ElfErrorReason;
  readonly file: string;

  constructor(reason: ElfErrorReason, file: string, detail: string) {
    super(`read ELF image ${file}: ${detail}`);
    this.name = "ElfError";
    this.reason = reason;
    this.file = file;
  }
}

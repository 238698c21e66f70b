/**
 * Our code as gdb knows code of its own: a symbol file with the names (code-names.ts) and how to unwind out of each piece.
 */
import { encodeSymbolFile } from "../../elf/symbol-file.ts";
import { encodeEhFrame, type FramedCode } from "../../patch/code-frames.ts";
import type { NamedCode } from "./code-names.ts";

export function symbolFileOf(codes: readonly NamedCode[]): Uint8Array {
  const framed = codes.map(({ at, bytes, point }): FramedCode => {
    const detour = point?.detour;
    return {
      at,
      bytes,
      detour:
        detour?.kind === "detour"
          ? { site: point!.plan.at, displacedOffset: detour.displacedOffset, twins: detour.twins }
          : undefined,
    };
  });
  return encodeSymbolFile(
    codes.map(({ at, bytes, name }) => ({ at, lenBytes: bytes.length, name })),
    encodeEhFrame(framed),
  );
}

/**
 * From what a probe names (a function, a pattern, an address) to addresses in one image.
 *
 * Offsets are counted from the symbol; addresses are file addresses as objdump prints them, which for programs linked
 * to fixed addresses are the run-time addresses too. Offsets in the file, which the kernel's own uprobes take, are not
 * meant anywhere here. Whether an address is the start of an instruction is not asked
 * here: that takes a decoder.
 *
 * A pattern never selects a resolver (STT_GNU_IFUNC): its code runs once, at load time, and counting it would look
 * like counting calls. An exact name that is a resolver's is handed back as such, for the caller to find out which
 * implementation the process uses.
 */
import type { ElfFile } from "./elf-file.ts";
import { Glob, isGlob } from "./glob.ts";
import type { ElfSymbol } from "./symbol-table.ts";

/** The place part of a probe. */
export type Place =
  | {
      readonly kind: "symbol";
      /** Name or shell pattern. */
      readonly symbol: string;
      /** Bytes behind the start of the symbol. */
      readonly offsetBytes?: number;
    }
  | { readonly kind: "address"; readonly address: bigint };

/** One address in an image. */
export interface FileLocation {
  /** File address. */
  readonly addr: bigint;
  /** The symbol that the place was named by, or that contains the address. */
  readonly symbol: ElfSymbol | undefined;
  /** Bytes behind the start of the symbol; 0 without one. */
  readonly offsetBytes: number;
}

/** Why a place is not in an image. */
export type PlaceRefusal =
  | { readonly reason: "no-symbols"; readonly symbol: string }
  | {
      readonly reason: "unknown-symbol";
      readonly symbol: string;
      readonly nearest: readonly string[];
      /** Whether the image calls a function of this name in another image. */
      readonly imported: boolean;
      /** For a qualified C++ name: a pattern over mangled names that selects functions of that name. */
      readonly mangledPattern: string | undefined;
    }
  | { readonly reason: "no-match"; readonly pattern: string }
  | {
      readonly reason: "offset-outside-symbol";
      readonly symbol: string;
      readonly offsetBytes: number;
      readonly sizeBytes: number;
    }
  | {
      readonly reason: "resolver";
      readonly symbol: string;
      /** File addresses of the resolvers of that name (symbol versions may have several). */
      readonly resolvers: readonly bigint[];
      /** Functions whose names look like implementations, such as `__memcpy_avx_unaligned_erms`. */
      readonly implementations: readonly string[];
    }
  | {
      readonly reason: "not-code";
      readonly address: bigint;
      /** Section or segment that holds the address; undefined when it is outside the image. */
      readonly where: string | undefined;
    };

export interface PlaceMatches {
  /** Ascending, one for each address. */
  readonly locations: readonly FileLocation[];
  /** Set when there are no locations; or, with reason "resolver", when plain functions share the name: the locations. */
  readonly refusal: PlaceRefusal | undefined;
}

const found = (locations: readonly FileLocation[]): PlaceMatches => ({ locations, refusal: undefined });
const refused = (refusal: PlaceRefusal): PlaceMatches => ({ locations: [], refusal });

/** All addresses in the image that the place selects. */
export function findPlace(elf: ElfFile, place: Place): PlaceMatches {
  switch (place.kind) {
    case "address":
      return findAddress(elf, place.address);
    case "symbol": {
      const { symbol, offsetBytes = 0 } = place;
      return isGlob(symbol) ? findPattern(elf, symbol, offsetBytes) : findSymbol(elf, symbol, offsetBytes);
    }
    default:
      return place satisfies never;
  }
}

function findAddress(elf: ElfFile, address: bigint): PlaceMatches {
  if (!elf.isCode(address)) {
    const section = elf.findSectionAt(address);
    const where = section?.name ?? (elf.findSegmentAt(address) ? "data" : undefined);
    return refused({ reason: "not-code", address, where });
  }
  const enclosing = elf.symbols.enclosing(address);
  return found([{ addr: address, symbol: enclosing?.symbol, offsetBytes: enclosing?.offsetBytes ?? 0 }]);
}

function findPattern(elf: ElfFile, pattern: string, offsetBytes: number): PlaceMatches {
  if (elf.symbols.count === 0) return refused({ reason: "no-symbols", symbol: pattern });
  const symbols = elf.symbols.match(new Glob(pattern)).filter((symbol) => symbol.kind === "func");
  if (symbols.length === 0) return refused({ reason: "no-match", pattern });
  return atOffset(symbols, offsetBytes);
}

function findSymbol(elf: ElfFile, name: string, offsetBytes: number): PlaceMatches {
  // A backslash makes a literal of what would be a pattern.
  const plain = name.replaceAll(/\\(.)/g, "$1");
  const symbols = elf.symbols.find(plain);
  const resolvers = symbols.filter((symbol) => symbol.kind === "ifunc");
  const code = symbols.filter((symbol) => symbol.kind !== "ifunc");
  if (resolvers.length > 0) {
    return {
      locations: code.length > 0 ? atOffset(code, offsetBytes).locations : [],
      refusal: {
        reason: "resolver",
        symbol: plain,
        resolvers: resolvers.map((symbol) => symbol.addr),
        implementations: findImplementations(elf, plain),
      },
    };
  }
  if (code.length > 0) return atOffset(code, offsetBytes);
  if (elf.symbols.count === 0) return refused({ reason: "no-symbols", symbol: plain });
  return refused({
    reason: "unknown-symbol",
    symbol: plain,
    nearest: elf.symbols.nearest(plain),
    imported: elf.symbols.imports(plain),
    mangledPattern: findMangledPattern(elf, plain),
  });
}

/** `a::b::c(int)` appears mangled as `_ZN1a1b1c…`: each part with its length before it (Itanium C++ ABI 5.1.3). */
function findMangledPattern(elf: ElfFile, name: string): string | undefined {
  const parts = name.replace(/\(.*/, "").split("::");
  if (parts.length < 2 || !parts.every((part) => /^\w+$/.test(part))) return undefined;
  const pattern = `_ZN*${parts.map((part) => part.length + part).join("")}*`;
  return elf.symbols.match(new Glob(pattern)).length > 0 ? pattern : undefined;
}

/** glibc names the implementations of `memcpy` `__memcpy_avx_unaligned` and the like; known only in unstripped images. */
function findImplementations(elf: ElfFile, name: string): string[] {
  return elf.symbols
    .match(new Glob(`__${name.replace(/^_+/, "")}_*`))
    .filter((symbol) => symbol.kind === "func" && !/_chk(_|$)/.test(symbol.name))
    .map((symbol) => symbol.name);
}

/** Symbols too small for the offset fall away; when all do, that is the refusal. A size of 0 is unknown. */
function atOffset(symbols: readonly ElfSymbol[], offsetBytes: number): PlaceMatches {
  const fits = (symbol: ElfSymbol) =>
    offsetBytes === 0 || (offsetBytes > 0 && (symbol.sizeBytes === 0 || offsetBytes < symbol.sizeBytes));
  const locations = symbols
    .filter(fits)
    .map((symbol) => ({ addr: symbol.addr + BigInt(offsetBytes), symbol, offsetBytes }));
  if (locations.length > 0) return found(locations);
  const [first] = symbols;
  return refused({
    reason: "offset-outside-symbol",
    symbol: first!.name,
    offsetBytes,
    sizeBytes: Math.max(...symbols.map((symbol) => symbol.sizeBytes)),
  });
}

/** Message and advice for a refusal, without the name of the image. */
export function describePlaceRefusal(refusal: PlaceRefusal): { message: string; hint: string | undefined } {
  switch (refusal.reason) {
    case "no-symbols":
      return {
        message: `no symbol ${refusal.symbol}: the image is stripped and names no function`,
        hint: "give an address as objdump -d shows it",
      };
    case "unknown-symbol": {
      const nearest = refusal.nearest.length > 0 ? `did you mean ${refusal.nearest.join(", ")}?` : undefined;
      const imported = `it only calls ${refusal.symbol}: name the library that defines it`;
      const mangled = `C++ names are mangled in the image: try ${refusal.mangledPattern}`;
      return {
        message: `no function ${refusal.symbol}`,
        hint: refusal.imported ? imported : refusal.mangledPattern === undefined ? nearest : mangled,
      };
    }
    case "no-match":
      return { message: `no function matches ${refusal.pattern}`, hint: undefined };
    case "offset-outside-symbol":
      return {
        message: `offset ${refusal.offsetBytes} is outside ${refusal.symbol}, which has ${refusal.sizeBytes} bytes`,
        hint: undefined,
      };
    case "resolver": {
      const names = refusal.implementations;
      return {
        message: `${refusal.symbol} is chosen at load time (IFUNC) and the implementation in use cannot be told`,
        hint:
          names.length > 0
            ? `name one: ${names.slice(0, 6).join(", ")}${names.length > 6 ? ", ..." : ""}`
            : "give the implementation's address",
      };
    }
    case "not-code": {
      const at = `0x${refusal.address.toString(16)}`;
      return {
        message:
          refusal.where === undefined
            ? `address ${at} is outside the image`
            : `address ${at} is in ${refusal.where}, not in code`,
        hint: "addresses are file addresses, as objdump -d shows them",
      };
    }
    default:
      return refusal satisfies never;
  }
}

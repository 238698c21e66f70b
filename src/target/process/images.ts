/**
 * The images of a live process: which are mapped, which of them a probe means, where its places are, and what code an
 * address belongs to.
 *
 * A list is taken from maps and can be taken again (`refresh`) when the process has loaded or unloaded libraries; an
 * image that stays is the same object. Only what is mapped executable and backed by a file is an image: the vDSO and
 * generated code are not (the vDSO can be read by itself, `vdso`).
 *
 * Not handled: programs that copy their text to anonymous memory (huge-page remapping at start-up); their functions are
 * reported as not mapped.
 */
import {
  byteSourceOf,
  type ElfFile,
  type FileLocation,
  findPlace,
  nearestNames,
  type Place,
  type PlaceRefusal,
  parseElf,
} from "../../elf/index.ts";
import { ElfCache } from "./elf-cache.ts";
import { nameableAs, selectByName } from "./image-name.ts";
import type { LocationRefusal } from "./location-refusal.ts";
import { type ImageContext, MappedImage } from "./mapped-image.ts";
import { MemoryFile } from "./memory-file.ts";
import { AT_ENTRY, type MapEntry, readAuxv, readMaps } from "./proc-fs.ts";
import { findStat, TargetRoot } from "./target-root.ts";

/** One address that a probe selects in a process. */
export interface ResolvedLocation {
  readonly image: MappedImage;
  /** Run-time address. */
  readonly addr: bigint;
  /** The same as the image's file states it. */
  readonly fileAddr: bigint;
  /** The function that the probe names, or that holds the address; undefined in stripped code. */
  readonly symbol: string | undefined;
  /** Bytes behind the start of the function. */
  readonly offsetBytes: number;
  /** Whether the name is one whose implementation is chosen at load time, and `addr` lies in the one chosen. */
  readonly isImplementation: boolean;
}

export interface Resolution {
  /** Ascending by image and address; no address twice. */
  readonly locations: readonly ResolvedLocation[];
  /** Set when there are no locations. */
  readonly refusal: LocationRefusal | undefined;
}

/** What an address belongs to. */
export interface SymbolizedAddress {
  readonly addr: bigint;
  readonly image: MappedImage | undefined;
  readonly symbol: string | undefined;
  /** Bytes behind the start of the symbol; without a symbol 0. */
  readonly offsetBytes: number;
  /** `symbol+0x10 (libc.so.6)`, `0x26f30 (libc.so.6)` with the file address, or the bare address. */
  readonly text: string;
}

export interface ProcessImagesOptions {
  /** Shared between processes and reloads; the caller disposes of it. Without it each list has its own. */
  readonly cache?: ElfCache;
}

export class ProcessImages implements Disposable {
  readonly pid: number;
  readonly #ownCache: ElfCache | undefined;
  readonly #context: ImageContext;
  #memory: MemoryFile | undefined;
  #list: readonly MappedImage[] = [];
  #vdso: { readonly elf: ElfFile; readonly bias: bigint } | undefined;

  private constructor(pid: number, options: ProcessImagesOptions) {
    this.pid = pid;
    this.#ownCache = options.cache ? undefined : new ElfCache();
    this.#context = {
      pid,
      root: TargetRoot.of(pid),
      cache: options.cache ?? this.#ownCache!,
      readMemory: (at, lenBytes) => this.#readMemory(at, lenBytes),
    };
    this.refresh();
  }

  /** Lists the images of a process. Throws `ProcError` when it is gone or may not be looked into. */
  static open(pid: number, options: ProcessImagesOptions = {}): ProcessImages {
    return new ProcessImages(pid, options);
  }

  [Symbol.dispose](): void {
    this.#memory?.close();
    this.#memory = undefined;
    this.#ownCache?.[Symbol.dispose]();
  }

  #readMemory(at: bigint, lenBytes: number): Uint8Array | undefined {
    try {
      this.#memory ??= MemoryFile.open(this.pid, "r");
    } catch {
      return undefined;
    }
    const bytes = new Uint8Array(lenBytes);
    return this.#memory.readInto(at, bytes) === lenBytes ? bytes : undefined;
  }

  /** The images, ascending by address. */
  get list(): readonly MappedImage[] {
    return this.#list;
  }

  /** Takes the list again. Throws as `open`. */
  refresh(maps: readonly MapEntry[] = readMaps(this.pid)): {
    readonly added: readonly MappedImage[];
    readonly removed: readonly MappedImage[];
  } {
    const before = new Map(this.#list.map((image) => [identityOf(image), image]));
    const added: MappedImage[] = [];
    const list = groupImages(maps).map((group) => {
      const image = new MappedImage(this.#context, group);
      const known = before.get(identityOf(image));
      if (!known) added.push(image);
      before.delete(identityOf(image));
      return known ?? image;
    });
    this.#list = list;
    return { added, removed: [...before.values()] };
  }

  /** The program itself, as opposed to its libraries; undefined when that cannot be told. */
  get program(): MappedImage | undefined {
    try {
      const entry = readAuxv(this.pid).get(AT_ENTRY);
      return entry === undefined ? undefined : this.findImageAt(entry);
    } catch {
      return undefined;
    }
  }

  /** The image that a run-time address belongs to. */
  findImageAt(addr: bigint): MappedImage | undefined {
    return this.#list.find((image) => addr >= image.start && addr < image.end && image.contains(addr));
  }

  /** The images that a probe's image name means; none when there is no such image. */
  find(name: string): readonly MappedImage[] {
    // As programs for libbpf name their own binary; here it is the process that they are in.
    if (name === "/proc/self/exe") return this.program === undefined ? [] : [this.program];
    const selected = selectByName(name, this.#list);
    if (selected.length > 0 || name.startsWith("[")) return selected;
    // Another path of the same file: a link, a file in the tracer's own view, a program found through PATH.
    const { root } = this.#context;
    const stats = name.startsWith("/")
      ? [root.findStat(name), findStat(name)]
      : name.includes("/")
        ? [findStat(name)]
        : this.#foldersOfPrograms().map((folder) => root.findStat(`${folder}/${name}`));
    for (const stat of stats) {
      if (!stat?.isFile()) continue;
      const same = this.#list.filter((image) => image.isFile(stat));
      if (same.length > 0) return same;
    }
    return [];
  }

  /** Where programs and libraries of these names are usually linked to: `python3` for `python3.11`. */
  #foldersOfPrograms(): string[] {
    const folders = this.#list.map((image) => image.path.slice(0, image.path.lastIndexOf("/")));
    return [...new Set([...(process.env.PATH ?? "").split(":"), "/usr/bin", ...folders])].filter((folder) =>
      folder.startsWith("/"),
    );
  }

  /** All addresses that a probe's image name and place select. */
  resolve(imageName: string, place: Place): Resolution {
    const images = this.find(imageName);
    if (images.length === 0) return { locations: [], refusal: this.#unknownImage(imageName) };
    const locations = new Map<bigint, ResolvedLocation>();
    const refusals: LocationRefusal[] = [];
    for (const image of images) {
      const result = this.#resolveIn(image, place);
      for (const location of result.locations) {
        if (!locations.has(location.addr)) locations.set(location.addr, location);
      }
      // Copies of one file have the same to say.
      const { refusal } = result;
      if (refusal && !refusals.some((other) => imageOf(other) === imageOf(refusal))) refusals.push(refusal);
    }
    // A name that some images define and others do not is found; a resolver that hides the real function is not.
    const blocking = refusals.find((r) => r.kind === "place" && r.refusal.reason === "resolver");
    if (locations.size > 0 && !blocking) return { locations: [...locations.values()], refusal: undefined };
    return { locations: [], refusal: blocking ?? this.#mostTelling(refusals) };
  }

  #resolveIn(image: MappedImage, place: Place): Resolution {
    let elf: ElfFile;
    let bias: bigint;
    try {
      elf = image.elf;
      bias = image.bias;
    } catch (cause) {
      return { locations: [], refusal: { kind: "image-unreadable", image: image.path, cause } };
    }
    const matches = findPlace(elf, place);
    const locations = matches.locations
      .map((location) => located(image, location))
      .filter((location) => image.isExecutable(location.addr));
    const { refusal } = matches;
    if (refusal === undefined) {
      return locations.length > 0
        ? { locations, refusal: undefined }
        : { locations, refusal: { kind: "not-mapped", image: image.path } };
    }
    if (refusal.reason === "resolver" && place.kind === "symbol") {
      const chosen = this.#findImplementations(image, refusal);
      if (chosen.length > 0) {
        const offset = BigInt(place.offsetBytes ?? 0);
        return {
          locations: [
            ...locations,
            ...chosen.map((addr) => ({
              image,
              addr: addr + offset,
              fileAddr: addr + offset - bias,
              symbol: refusal.symbol,
              offsetBytes: Number(offset),
              isImplementation: true,
            })),
          ],
          refusal: undefined,
        };
      }
    }
    return {
      locations: [],
      refusal: {
        kind: "place",
        image: image.path,
        refusal,
        definedIn: this.#definedIn(refusal),
        fileAddress: this.#fileAddressOf(image, refusal),
      },
    };
  }

  /**
   * The implementations that the loader chose for a name: read from the slots that it filled. The image's own calls go
   * through slots that name the resolver, other images' through slots that name the symbol.
   */
  #findImplementations(image: MappedImage, refusal: PlaceRefusal & { reason: "resolver" }): bigint[] {
    const { elf, bias } = image;
    const plain = new Set(elf.symbols.find(refusal.symbol).map((symbol) => symbol.addr));
    const chosen = new Set<bigint>();
    const readSlot = (slot: bigint) => {
      const bytes = this.#readMemory(slot, 8);
      if (!bytes) return;
      const value = new DataView(bytes.buffer).getBigUint64(0, true);
      const fileAddr = value - bias;
      // Not yet bound: the slot leads to a procedure linkage table.
      const inLinkage = elf.findSectionAt(fileAddr)?.name.startsWith(".plt") ?? false;
      if (image.isExecutable(value) && elf.isCode(fileAddr) && !inLinkage && !plain.has(fileAddr))
        chosen.add(value);
    };
    const { places, targets } = elf.relocations.irelative;
    for (const resolver of refusal.resolvers) {
      const rel = elf.rel(resolver);
      targets.forEach((target, i) => {
        if (target === rel) readSlot(elf.addrOf(places[i]!) + bias);
      });
    }
    if (chosen.size > 0) return [...chosen];
    for (const other of this.#list) {
      try {
        for (const slot of other.elf.relocations.slotsOf(refusal.symbol)) {
          readSlot(other.elf.addrOf(slot) + other.bias);
        }
      } catch {
        // An image that cannot be read has no slots to look at.
      }
    }
    return [...chosen];
  }

  /** Other images that define the function that this one does not. */
  #definedIn(refusal: PlaceRefusal): string[] {
    if (refusal.reason !== "unknown-symbol") return [];
    const defines = (image: MappedImage) => {
      try {
        return image.elf.symbols.find(refusal.symbol).length > 0;
      } catch {
        return false;
      }
    };
    return this.#list.filter(defines).map((image) => image.name);
  }

  /** For a run-time address given where a file address is wanted: the file address. */
  #fileAddressOf(image: MappedImage, refusal: PlaceRefusal): bigint | undefined {
    if (refusal.reason !== "not-code" || image.bias === 0n) return undefined;
    return image.isExecutable(refusal.address) ? refusal.address - image.bias : undefined;
  }

  #unknownImage(name: string): LocationRefusal {
    const names = nameableAs(this.#list);
    return {
      kind: "unknown-image",
      name,
      nearest: nearestNames(name.slice(name.lastIndexOf("/") + 1), names),
      images: this.#list.map((image) => image.name),
    };
  }

  /** Of the refusals of several images the one that says most, with the suggestions of all. */
  #mostTelling(refusals: readonly LocationRefusal[]): LocationRefusal | undefined {
    const unknown = refusals.flatMap((r) =>
      r.kind === "place" && r.refusal.reason === "unknown-symbol" ? [{ whole: r, place: r.refusal }] : [],
    );
    if (unknown.length < 2) return refusals.find((r) => r.kind === "place") ?? refusals[0];
    const { whole, place } = unknown[0]!;
    const nearest = nearestNames(
      place.symbol,
      unknown.flatMap((each) => each.place.nearest),
    );
    const imported = unknown.some((each) => each.place.imported);
    return {
      ...whole,
      image: `${unknown.length} images`,
      refusal: { ...place, nearest, imported },
    };
  }

  /** What code or data an address belongs to. Never throws: unreadable images give the file address. */
  symbolize(addr: bigint): SymbolizedAddress {
    const image = this.findImageAt(addr);
    const plain = `0x${addr.toString(16)}`;
    if (!image) {
      const vdso = this.#symbolizeVdso(addr);
      return vdso ?? { addr, image: undefined, symbol: undefined, offsetBytes: 0, text: plain };
    }
    try {
      const found = image.code.findFunction(addr);
      if (found?.name === undefined) {
        const text = `0x${(addr - image.bias).toString(16)} (${image.name})`;
        return { addr, image, symbol: undefined, offsetBytes: 0, text };
      }
      const offsetBytes = Number(addr - found.start);
      const text = `${withOffset(found.name, offsetBytes)} (${image.name})`;
      return { addr, image, symbol: found.name, offsetBytes, text };
    } catch {
      return { addr, image, symbol: undefined, offsetBytes: 0, text: `${plain} (${image.name})` };
    }
  }

  #symbolizeVdso(addr: bigint): SymbolizedAddress | undefined {
    const vdso = this.vdso;
    const found = vdso?.elf.symbols.enclosing(addr - vdso.bias);
    if (!found) return undefined;
    const { name } = found.symbol;
    const text = `${withOffset(name, found.offsetBytes)} ([vdso])`;
    return { addr, image: undefined, symbol: name, offsetBytes: found.offsetBytes, text };
  }

  /** The vDSO, read from the process's memory; undefined when there is none or it may not be read. */
  get vdso(): { readonly elf: ElfFile; readonly bias: bigint } | undefined {
    this.#vdso ??= this.#readVdso();
    return this.#vdso;
  }

  #readVdso(): { readonly elf: ElfFile; readonly bias: bigint } | undefined {
    const map = readMaps(this.pid).find((entry) => entry.path === "[vdso]");
    const bytes = map && this.#readMemory(map.start, Number(map.end - map.start));
    if (!bytes) return undefined;
    // The kernel maps the whole file as it is.
    const elf = parseElf(byteSourceOf(bytes), { name: "[vdso]" });
    return { elf, bias: map.start - elf.segments.find((s) => s.type === 1)!.addr };
  }

  /** Run-time address of a function of the vDSO, such as `__vdso_clock_gettime`. */
  findVdsoFunction(name: string): bigint | undefined {
    const vdso = this.vdso;
    const [symbol] = vdso?.elf.symbols.find(name) ?? [];
    return vdso && symbol && symbol.addr + vdso.bias;
  }
}

function withOffset(name: string, offsetBytes: number): string {
  return offsetBytes === 0 ? name : `${name}+0x${offsetBytes.toString(16)}`;
}

function located(image: MappedImage, location: FileLocation): ResolvedLocation {
  return {
    image,
    addr: location.addr + image.bias,
    fileAddr: location.addr,
    symbol: location.symbol?.name,
    offsetBytes: location.offsetBytes,
    isImplementation: false,
  };
}

const imageOf = (refusal: LocationRefusal) => ("image" in refusal ? refusal.image : undefined);

function identityOf(image: MappedImage): string {
  return `${image.dev} ${image.inode} ${image.execRanges[0]!.start}`;
}

/**
 * The mappings of each loaded copy of each file, those that have code. A file can be mapped several times: loaded into
 * another namespace (dlmopen), or read as data; each copy begins with the start of the file. A copy of a part of the
 * text is an image of its own, too: what runs in it is found by the same names.
 */
function groupImages(maps: readonly MapEntry[]): MapEntry[][] {
  const open = new Map<string, MapEntry[]>();
  const copies = new Set<MapEntry[]>();
  const groups: MapEntry[][] = [];
  for (const map of maps) {
    if (map.inode === 0n || !map.path.startsWith("/")) continue;
    const file = `${map.dev} ${map.inode}`;
    const group = open.get(file);
    const isCopy = group !== undefined && (copies.has(group) || isCopyOfText(map, group));
    // A writable mapping of offset 0 is the data of a file of less than a page.
    if (group && !isCopy && (map.offset !== 0n || map.perms[1] === "w")) {
      group.push(map);
    } else {
      const started = [map];
      if (isCopy && map.offset !== 0n) copies.add(started);
      open.set(file, started);
      groups.push(started);
    }
  }
  return groups.filter((group) => group.some((map) => map.perms[2] === "x"));
}

/** Whether text that a group has is mapped once more: V8 does this to have its builtins near the code that it generates. */
function isCopyOfText(map: MapEntry, group: readonly MapEntry[]): boolean {
  return (
    map.perms[2] === "x" &&
    group.some(
      ({ perms, offset, start, end }) =>
        perms[2] === "x" && map.offset >= offset && map.offset < offset + (end - start),
    )
  );
}

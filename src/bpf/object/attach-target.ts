/**
 * Where a program says that it belongs: the name of its section, as libbpf reads it, and the same words on a command
 * line.
 *
 *     uprobe/IMAGE:SYMBOL+OFFSET    uretprobe//usr/lib/libc.so.6:malloc    uprobe    usdt/IMAGE:PROVIDER:NAME
 */

/** A place in user code; `image` is a path or a file name. */
export interface UserPlace {
  readonly image: string;
  readonly location:
    | { readonly kind: "symbol"; readonly symbol: string; readonly offset: bigint }
    | { readonly kind: "address"; readonly address: bigint };
}

export type AttachTarget =
  | {
      readonly kind: "uprobe" | "uretprobe";
      /** Undefined: the section does not say, so somebody else has to. */
      readonly place: UserPlace | undefined;
      /** What it says is none. */
      readonly problem?: string;
    }
  | { readonly kind: "usdt"; readonly place: UsdtPlace | undefined; readonly problem?: string }
  /** There is no such program in a process; `type` is how libbpf calls it. */
  | { readonly kind: "elsewhere"; readonly type: string; readonly reason: string }
  | { readonly kind: "unknown" };

/** A static probe of an image. */
export interface UsdtPlace {
  readonly image: string;
  readonly provider: string;
  readonly name: string;
}

const ofKernel = (type: string) =>
  `${type} programs belong to the kernel; in a process there are uprobe, uretprobe and usdt`;

/** Types of programs that run in the kernel only. */
const elsewhere: ReadonlySet<string> = new Set(
  (
    "kprobe kretprobe kprobe.multi kretprobe.multi kprobe.session tracepoint tp raw_tracepoint raw_tp raw_tracepoint.w " +
    "raw_tp.w tp_btf fentry fmod_ret fexit fsession fentry.s fmod_ret.s fexit.s freplace lsm lsm.s lsm_cgroup iter iter.s " +
    "syscall xdp xdp.frags socket classifier action tc tcx netkit perf_event lwt_in lwt_out lwt_xmit lwt_seg6local sockops " +
    "sk_skb sk_msg sk_lookup sk_reuseport flow_dissector lirc_mode2 cgroup cgroup_skb cgroup_sock cgroup_device " +
    "struct_ops struct_ops.s netfilter"
  ).split(" "),
);

/** Others that are refused for reasons of their own. */
const otherReasons: ReadonlyMap<string, string> = new Map([
  ...["ksyscall", "kretsyscall"].map(
    (type) =>
      [
        type,
        `${type} programs belong to the kernel; in a process probe the function that makes the system call: ` +
          'SEC("uprobe/libc.so.6:openat")',
      ] as const,
  ),
  ["uprobe.session", "uprobe.session programs are not supported; use one uprobe and one uretprobe program"],
]);

/** Reads the name of a program's section. */
export function parseSectionName(section: string): AttachTarget {
  const [head, ...rest] = section.replace(/^\?/, "").split("/");
  const target = rest.join("/");
  // Programs here may never sleep, and need not be told that they may; `.multi` only says that there may be wildcards.
  const type = head!.replace(/(\.multi)?(\.s)?$/, "");
  const reason = otherReasons.get(head!) ?? otherReasons.get(type);
  if (reason !== undefined) return { kind: "elsewhere", type: head!, reason };
  switch (type) {
    case "uprobe":
    case "uretprobe": {
      const place = target === "" ? undefined : parseUserPlace(target);
      if (target !== "" && place === undefined)
        return {
          kind: type,
          place,
          problem: `its section is not ${head}/IMAGE:SYMBOL or ${head}/IMAGE:SYMBOL+OFFSET`,
        };
      return { kind: type, place };
    }
    case "usdt": {
      const place = target === "" ? undefined : parseUsdtPlace(target);
      if (target !== "" && place === undefined)
        return { kind: type, place, problem: "its section is not usdt/IMAGE:PROVIDER:NAME" };
      return { kind: type, place };
    }
    default:
      return elsewhere.has(head!) || elsewhere.has(type)
        ? { kind: "elsewhere", type: head!, reason: ofKernel(head!) }
        : { kind: "unknown" };
  }
}

/** Reads `IMAGE:PROVIDER:NAME`; undefined if it is not that. */
export function parseUsdtPlace(text: string): UsdtPlace | undefined {
  const match = /^(.+):([^:]+):([^:]+)$/.exec(text);
  return match === null ? undefined : { image: match[1]!, provider: match[2]!, name: match[3]! };
}

/** As it is written in attach points. */
export function printUsdtPlace({ image, provider, name }: UsdtPlace): string {
  return `${image}:${provider}:${name}`;
}

/** Reads `IMAGE:SYMBOL`, `IMAGE:SYMBOL+OFFSET` or `IMAGE:0xADDRESS`; undefined if it is none of them. */
export function parseUserPlace(text: string): UserPlace | undefined {
  const colon = text.lastIndexOf(":");
  const image = text.slice(0, Math.max(0, colon));
  const place = text.slice(colon + 1);
  if (image === "" || place === "") return undefined;
  if (/^(0x[0-9a-f]+|\d+)$/i.test(place))
    return { image, location: { kind: "address", address: BigInt(place) } };
  const match = /^([^+]+?)(?:\+(0x[0-9a-f]+|\d+))?$/i.exec(place);
  if (match === null) return undefined;
  return { image, location: { kind: "symbol", symbol: match[1]!, offset: BigInt(match[2] ?? 0) } };
}

/** The place as it is written in attach points. */
export function printUserPlace({ image, location }: UserPlace): string {
  if (location.kind === "address") return `${image}:0x${location.address.toString(16)}`;
  const offset = location.offset === 0n ? "" : `+0x${location.offset.toString(16)}`;
  return `${image}:${location.symbol}${offset}`;
}

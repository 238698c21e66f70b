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
    }
  | { readonly kind: "usdt"; readonly image: string; readonly provider: string; readonly name: string }
  /** Belongs to something that a process does not have; `type` is how libbpf calls it. */
  | { readonly kind: "elsewhere"; readonly type: string }
  | { readonly kind: "unknown" };

/** Types of programs that run in the kernel only. */
const elsewhere: ReadonlySet<string> = new Set([
  ..."kprobe kretprobe kprobe.multi kretprobe.multi ksyscall kretsyscall tracepoint tp raw_tracepoint raw_tp".split(
    " ",
  ),
  ..."raw_tracepoint.w raw_tp.w tp_btf fentry fmod_ret fexit fentry.s fmod_ret.s fexit.s freplace lsm lsm.s".split(
    " ",
  ),
  ..."lsm_cgroup iter iter.s syscall xdp xdp.frags socket classifier action tc tcx netkit perf_event lwt_in".split(
    " ",
  ),
  ..."lwt_out lwt_xmit lwt_seg6local sockops sk_skb sk_msg sk_lookup sk_reuseport flow_dissector lirc_mode2".split(
    " ",
  ),
  ..."cgroup cgroup_skb cgroup_sock struct_ops struct_ops.s netfilter".split(" "),
]);

/** Reads the name of a program's section. */
export function parseSectionName(section: string): AttachTarget {
  const [head, ...rest] = section.replace(/^\?/, "").split("/");
  const target = rest.join("/");
  const type = head!.replace(/\.(s|multi|multi\.s)$/, "");
  if (type === "uprobe" || type === "uretprobe")
    return { kind: type, place: target === "" ? undefined : parseUserPlace(target) };
  if (type === "usdt") {
    const [image, provider, name] = target.split(":");
    if (image && provider && name) return { kind: "usdt", image, provider, name };
    return { kind: "usdt", image: image ?? "", provider: provider ?? "", name: name ?? "" };
  }
  return elsewhere.has(head!) || elsewhere.has(type)
    ? { kind: "elsewhere", type: head! }
    : { kind: "unknown" };
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

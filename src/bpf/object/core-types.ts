/**
 * What a program asks of the kernel's types (CO-RE relocations, Documentation/bpf/llvm_reloc.rst) where there is no kernel
 * to ask:
 *
 * - layouts that are the same in every kernel are as they were compiled in: the context, and what processes and the kernel
 *   exchange (uapi);
 * - whether a helper or a kind of map exists is answered by what Trapline has;
 * - whether any other type, field or value exists: no;
 * - everything else is refused by name.
 */
import { findHelper, findHelperNumber } from "../helpers.ts";
import { mapKindNumber } from "../map-kinds.ts";
import type { Btf, BtfType } from "./btf.ts";
import type { CoreRelocation } from "./btf-ext.ts";
import { fail } from "./object-error.ts";

/** enum bpf_core_relo_kind. */
const FIELD_EXISTS = 2;
const LAST_FIELD_KIND = 5;
const TYPE_ID_LOCAL = 6;
const TYPE_EXISTS = 8;
const TYPE_SIZE = 9;
const ENUM_VALUE_EXISTS = 10;
const ENUM_VALUE = 11;
const TYPE_MATCHES = 12;

/** Types of system calls: their layout is a promise. */
const interfaceTypes: ReadonlySet<string> = new Set(
  (
    "sockaddr sockaddr_in sockaddr_in6 sockaddr_un sockaddr_storage __kernel_sockaddr_storage in_addr in6_addr iovec " +
    "timespec timespec64 __kernel_timespec timeval __kernel_old_timeval itimerspec itimerval timezone stat statx " +
    "statx_timestamp new_utsname pollfd epoll_event rlimit rlimit64 rusage sigaltstack siginfo user_msghdr mmsghdr " +
    "linux_dirent64 flock winsize termios sched_param sysinfo tms utimbuf io_event iocb user_regs_struct"
  ).split(" "),
);

/** The value that the instruction gets; undefined: it stays as it was compiled. Throws ObjectError. */
export function resolveCore(btf: Btf, relocation: CoreRelocation, ptRegsBytes: number): number | undefined {
  const { type: id, kind } = relocation;
  if (kind === TYPE_ID_LOCAL) return undefined;
  const type = btf.resolve(id);
  const name = btf.nameOf(id) || type.kind;
  if (isFixed(type, name, ptRegsBytes)) {
    if (kind <= LAST_FIELD_KIND || kind === TYPE_SIZE) return undefined;
    if (kind === TYPE_EXISTS || kind === TYPE_MATCHES) return 1;
  }
  switch (kind) {
    case FIELD_EXISTS:
    case TYPE_EXISTS:
    case TYPE_MATCHES:
      return 0;
    case ENUM_VALUE_EXISTS:
      return isKnownValue(type, relocation) ? 1 : 0;
    case ENUM_VALUE:
      return numberOfValue(type, relocation, name);
    default:
      return fail(`it depends on the kernel's type ${name} (CO-RE), which a process does not have`);
  }
}

function isFixed(type: BtfType, name: string, ptRegsBytes: number): boolean {
  if (type.kind !== "struct" && type.kind !== "union") return false;
  const plain = withoutFlavour(name);
  if (plain !== "pt_regs") return interfaceTypes.has(plain);
  if (type.sizeBytes !== ptRegsBytes) fail("its struct pt_regs is not that of x86-64 (-D__TARGET_ARCH_x86)");
  return true;
}

/** `___name` behind a name only tells several descriptions of one type apart. */
function withoutFlavour(name: string): string {
  const at = name.indexOf("___", 1);
  return at < 0 ? name : name.slice(0, at);
}

/** For values, the access string is the index in the enum. */
function nameOfValue(type: BtfType, { access }: CoreRelocation): string {
  const names = type.kind === "enum" ? [...type.values.values()] : [];
  return withoutFlavour(names[Number.parseInt(access, 10)] ?? "");
}

/** The number of a helper or of a kind of map, as the kernel counts them. */
function findNumber(name: string): { readonly number: number; readonly isHere: boolean } | undefined {
  const helper = /^BPF_FUNC_(\w+)$/.exec(name)?.[1];
  if (helper !== undefined) {
    const number = findHelperNumber(helper);
    return number === undefined ? undefined : { number, isHere: findHelper(number) !== undefined };
  }
  const kind = /^BPF_MAP_TYPE_(\w+)$/.exec(name)?.[1]?.toLowerCase();
  const number = kind === undefined ? -1 : mapKindNumber(kind);
  return number < 0 ? undefined : { number, isHere: true };
}

function isKnownValue(type: BtfType, relocation: CoreRelocation): boolean {
  return findNumber(nameOfValue(type, relocation))?.isHere === true;
}

function numberOfValue(type: BtfType, relocation: CoreRelocation, name: string): number {
  const value = nameOfValue(type, relocation);
  const known = findNumber(value);
  if (known === undefined)
    fail(`it asks for ${value} of the kernel's enum ${name} (CO-RE), which a process does not have`);
  return known.number;
}

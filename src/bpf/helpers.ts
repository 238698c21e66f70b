/**
 * The helper functions that programs may call: numbers, names and signatures are the kernel's
 * (include/uapi/linux/bpf.h and the bpf_func_proto of each helper).
 *
 * One table for all who need it: the verifier checks calls against it, the interpreter and the JIT implement it,
 * the text form prints its names. What the table promises about a result (`min`, `max`) every implementation
 * must keep, because proofs rely on it.
 */
import type { MapKind } from "./program.ts";

/** What an argument must be. A `size` belongs to the memory argument right before it. */
export type HelperArg =
  /** Any register; an initialised one unless it is `optional`. */
  | { readonly kind: "anything"; readonly optional?: boolean }
  | { readonly kind: "ctx" }
  /** A map of one of these kinds, from `ldimm64` with src 1. */
  | { readonly kind: "map"; readonly kinds: readonly MapKind[] }
  /** Initialised memory of the map's key size. */
  | { readonly kind: "map-key" }
  /** Initialised memory of the map's value size. */
  | { readonly kind: "map-value" }
  /** Memory of the map's value size that the helper fills. */
  | { readonly kind: "map-value-out" }
  /** Memory that the helper fills; need not be initialised, is afterwards. With `orNull` 0 may stand for none. */
  | { readonly kind: "memory-out"; readonly orNull?: boolean }
  /** Initialised memory that the helper reads. */
  | { readonly kind: "memory-in"; readonly orNull?: boolean }
  /** An aligned 64-bit integer that the helper writes. */
  | { readonly kind: "u64-out" }
  /** A NUL-terminated string in a read-only map whose contents are known. */
  | { readonly kind: "const-string" }
  /** The address of a function of the program, which the helper calls: see `callbackOf`. */
  | { readonly kind: "callback" }
  /** What is handed on to the callback: an address in the stack, or 0. */
  | { readonly kind: "callback-context" }
  /** Bytes of the memory argument before it, at least 1 unless `zero` is allowed. 0 if that memory is null. */
  | { readonly kind: "size"; readonly zero: boolean }
  /** A constant: the size of the record that is returned. */
  | { readonly kind: "record-size" }
  /** The start of a record; the reference ends with the call. */
  | { readonly kind: "record" };

export type HelperReturn =
  /** A 64-bit number with signed bounds; without them it may be anything. */
  | { readonly kind: "integer"; readonly min?: bigint; readonly max?: bigint }
  /** -4095 up to the size argument. */
  | { readonly kind: "length-or-error" }
  | { readonly kind: "void" }
  | { readonly kind: "map-value-or-null" }
  | { readonly kind: "record-or-null" };

export interface HelperSpec {
  readonly number: number;
  /** The kernel's name with `bpf_`. */
  readonly name: string;
  /** Arguments in r1, r2, ... */
  readonly args: readonly HelperArg[];
  readonly returns: HelperReturn;
}

export const HELPER_MAP_LOOKUP_ELEM = 1;
export const HELPER_MAP_UPDATE_ELEM = 2;
export const HELPER_MAP_DELETE_ELEM = 3;
export const HELPER_PROBE_READ = 4;
export const HELPER_KTIME_GET_NS = 5;
export const HELPER_TRACE_PRINTK = 6;
export const HELPER_GET_PRANDOM_U32 = 7;
export const HELPER_GET_SMP_PROCESSOR_ID = 8;
export const HELPER_TAIL_CALL = 12;
export const HELPER_GET_CURRENT_PID_TGID = 14;
export const HELPER_GET_CURRENT_UID_GID = 15;
export const HELPER_GET_CURRENT_COMM = 16;
export const HELPER_PERF_EVENT_OUTPUT = 25;
export const HELPER_GET_STACKID = 27;
export const HELPER_GET_NUMA_NODE_ID = 42;
export const HELPER_PROBE_READ_STR = 45;
export const HELPER_OVERRIDE_RETURN = 58;
export const HELPER_GET_STACK = 67;
export const HELPER_MAP_PUSH_ELEM = 87;
export const HELPER_MAP_POP_ELEM = 88;
export const HELPER_MAP_PEEK_ELEM = 89;
export const HELPER_STRTOL = 105;
export const HELPER_STRTOUL = 106;
export const HELPER_PROBE_READ_USER = 112;
export const HELPER_PROBE_READ_KERNEL = 113;
export const HELPER_PROBE_READ_USER_STR = 114;
export const HELPER_PROBE_READ_KERNEL_STR = 115;
export const HELPER_JIFFIES64 = 118;
export const HELPER_KTIME_GET_BOOT_NS = 125;
export const HELPER_RINGBUF_OUTPUT = 130;
export const HELPER_RINGBUF_RESERVE = 131;
export const HELPER_RINGBUF_SUBMIT = 132;
export const HELPER_RINGBUF_DISCARD = 133;
export const HELPER_RINGBUF_QUERY = 134;
export const HELPER_KTIME_GET_COARSE_NS = 160;
export const HELPER_FOR_EACH_MAP_ELEM = 164;
export const HELPER_SNPRINTF = 165;
export const HELPER_GET_FUNC_IP = 173;
export const HELPER_GET_ATTACH_COOKIE = 174;
export const HELPER_TRACE_VPRINTK = 177;
export const HELPER_LOOP = 181;
export const HELPER_STRNCMP = 182;
export const HELPER_GET_FUNC_ARG = 183;
export const HELPER_GET_FUNC_RET = 184;
export const HELPER_GET_FUNC_ARG_CNT = 185;
export const HELPER_MAP_LOOKUP_PERCPU_ELEM = 195;
export const HELPER_KTIME_GET_TAI_NS = 208;

/** The processor number comes from 12 bits of TSC_AUX or of a segment limit. */
export const MAX_CPU = 4095;
/** Negative results are error numbers, at least this. */
export const MIN_ERRNO = -4095;

/** All helpers of the kernel in the order of their numbers, which count from 1. */
const kernelNames: readonly string[] = `
  map_lookup_elem map_update_elem map_delete_elem probe_read ktime_get_ns trace_printk get_prandom_u32
  get_smp_processor_id skb_store_bytes l3_csum_replace l4_csum_replace tail_call clone_redirect
  get_current_pid_tgid get_current_uid_gid get_current_comm get_cgroup_classid skb_vlan_push skb_vlan_pop
  skb_get_tunnel_key skb_set_tunnel_key perf_event_read redirect get_route_realm perf_event_output
  skb_load_bytes get_stackid csum_diff skb_get_tunnel_opt skb_set_tunnel_opt skb_change_proto
  skb_change_type skb_under_cgroup get_hash_recalc get_current_task probe_write_user
  current_task_under_cgroup skb_change_tail skb_pull_data csum_update set_hash_invalid get_numa_node_id
  skb_change_head xdp_adjust_head probe_read_str get_socket_cookie get_socket_uid set_hash setsockopt
  skb_adjust_room redirect_map sk_redirect_map sock_map_update xdp_adjust_meta perf_event_read_value
  perf_prog_read_value getsockopt override_return sock_ops_cb_flags_set msg_redirect_map msg_apply_bytes
  msg_cork_bytes msg_pull_data bind xdp_adjust_tail skb_get_xfrm_state get_stack skb_load_bytes_relative
  fib_lookup sock_hash_update msg_redirect_hash sk_redirect_hash lwt_push_encap lwt_seg6_store_bytes
  lwt_seg6_adjust_srh lwt_seg6_action rc_repeat rc_keydown skb_cgroup_id get_current_cgroup_id
  get_local_storage sk_select_reuseport skb_ancestor_cgroup_id sk_lookup_tcp sk_lookup_udp sk_release
  map_push_elem map_pop_elem map_peek_elem msg_push_data msg_pop_data rc_pointer_rel spin_lock spin_unlock
  sk_fullsock tcp_sock skb_ecn_set_ce get_listener_sock skc_lookup_tcp tcp_check_syncookie sysctl_get_name
  sysctl_get_current_value sysctl_get_new_value sysctl_set_new_value strtol strtoul sk_storage_get
  sk_storage_delete send_signal tcp_gen_syncookie skb_output probe_read_user probe_read_kernel
  probe_read_user_str probe_read_kernel_str tcp_send_ack send_signal_thread jiffies64 read_branch_records
  get_ns_current_pid_tgid xdp_output get_netns_cookie get_current_ancestor_cgroup_id sk_assign
  ktime_get_boot_ns seq_printf seq_write sk_cgroup_id sk_ancestor_cgroup_id ringbuf_output ringbuf_reserve
  ringbuf_submit ringbuf_discard ringbuf_query csum_level skc_to_tcp6_sock skc_to_tcp_sock
  skc_to_tcp_timewait_sock skc_to_tcp_request_sock skc_to_udp6_sock get_task_stack load_hdr_opt
  store_hdr_opt reserve_hdr_opt inode_storage_get inode_storage_delete d_path copy_from_user snprintf_btf
  seq_printf_btf skb_cgroup_classid redirect_neigh per_cpu_ptr this_cpu_ptr redirect_peer task_storage_get
  task_storage_delete get_current_task_btf bprm_opts_set ktime_get_coarse_ns ima_inode_hash sock_from_file
  check_mtu for_each_map_elem snprintf sys_bpf btf_find_by_name_kind sys_close timer_init
  timer_set_callback timer_start timer_cancel get_func_ip get_attach_cookie task_pt_regs
  get_branch_snapshot trace_vprintk skc_to_unix_sock kallsyms_lookup_name find_vma loop strncmp
  get_func_arg get_func_ret get_func_arg_cnt get_retval set_retval xdp_get_buff_len xdp_load_bytes
  xdp_store_bytes copy_from_user_task skb_set_tstamp ima_file_hash kptr_xchg map_lookup_percpu_elem
  skc_to_mptcp_sock dynptr_from_mem ringbuf_reserve_dynptr ringbuf_submit_dynptr ringbuf_discard_dynptr
  dynptr_read dynptr_write dynptr_data tcp_raw_gen_syncookie_ipv4 tcp_raw_gen_syncookie_ipv6
  tcp_raw_check_syncookie_ipv4 tcp_raw_check_syncookie_ipv6 ktime_get_tai_ns user_ringbuf_drain cgrp_storage_get cgrp_storage_delete
`
  .trim()
  .split(/\s+/);

const keyedKinds: readonly MapKind[] = [
  "array",
  "hash",
  "lru_hash",
  "percpu_array",
  "percpu_hash",
  "lru_percpu_hash",
];

const anything: HelperArg = { kind: "anything" };
const optional: HelperArg = { kind: "anything", optional: true };
const ctx: HelperArg = { kind: "ctx" };
const lookupMap: HelperArg = { kind: "map", kinds: [...keyedKinds, "array_of_maps", "hash_of_maps"] };
const keyedMap: HelperArg = { kind: "map", kinds: keyedKinds };
const perCpuMap: HelperArg = { kind: "map", kinds: ["percpu_array", "percpu_hash", "lru_percpu_hash"] };
const pushMap: HelperArg = { kind: "map", kinds: ["queue", "stack", "bloom_filter"] };
const popMap: HelperArg = { kind: "map", kinds: ["queue", "stack"] };
const ringMap: HelperArg = { kind: "map", kinds: ["ringbuf"] };
const perfMap: HelperArg = { kind: "map", kinds: ["perf_event_array"] };
const stackMap: HelperArg = { kind: "map", kinds: ["stack_trace"] };
const progMap: HelperArg = { kind: "map", kinds: ["prog_array"] };
const mapKey: HelperArg = { kind: "map-key" };
const mapValue: HelperArg = { kind: "map-value" };
const mapValueOut: HelperArg = { kind: "map-value-out" };
const memoryOut: HelperArg = { kind: "memory-out" };
const memoryOutOrNull: HelperArg = { kind: "memory-out", orNull: true };
const memoryIn: HelperArg = { kind: "memory-in" };
const memoryInOrNull: HelperArg = { kind: "memory-in", orNull: true };
const u64Out: HelperArg = { kind: "u64-out" };
const constString: HelperArg = { kind: "const-string" };
const callback: HelperArg = { kind: "callback" };
const callbackContext: HelperArg = { kind: "callback-context" };
const size: HelperArg = { kind: "size", zero: false };
const sizeOrZero: HelperArg = { kind: "size", zero: true };
const recordSize: HelperArg = { kind: "record-size" };
const record: HelperArg = { kind: "record" };
const u64: HelperReturn = { kind: "integer" };
const u32: HelperReturn = { kind: "integer", min: 0n, max: 0xffffffffn };
const cpu: HelperReturn = { kind: "integer", min: 0n, max: BigInt(MAX_CPU) };
const status: HelperReturn = { kind: "integer", min: BigInt(MIN_ERRNO), max: 0n };
const count: HelperReturn = { kind: "integer", min: BigInt(MIN_ERRNO), max: 0x7fffffffn };
const comparison: HelperReturn = { kind: "integer", min: -255n, max: 255n };
const length: HelperReturn = { kind: "length-or-error" };
const nothing: HelperReturn = { kind: "void" };
const valueOrNull: HelperReturn = { kind: "map-value-or-null" };
const recordOrNull: HelperReturn = { kind: "record-or-null" };

const specs: readonly HelperSpec[] = [
  spec(HELPER_MAP_LOOKUP_ELEM, [lookupMap, mapKey], valueOrNull),
  spec(HELPER_MAP_UPDATE_ELEM, [keyedMap, mapKey, mapValue, anything], status),
  spec(HELPER_MAP_DELETE_ELEM, [keyedMap, mapKey], status),
  spec(HELPER_PROBE_READ, [memoryOut, sizeOrZero, anything], status),
  spec(HELPER_KTIME_GET_NS, [], u64),
  spec(HELPER_TRACE_PRINTK, [memoryIn, size, optional, optional, optional], count),
  spec(HELPER_GET_PRANDOM_U32, [], u32),
  spec(HELPER_GET_SMP_PROCESSOR_ID, [], cpu),
  // It returns only if there is no program to go to.
  spec(HELPER_TAIL_CALL, [ctx, progMap, anything], nothing),
  spec(HELPER_GET_CURRENT_PID_TGID, [], u64),
  spec(HELPER_GET_CURRENT_UID_GID, [], u64),
  spec(HELPER_GET_CURRENT_COMM, [memoryOut, size], status),
  spec(HELPER_PERF_EVENT_OUTPUT, [ctx, perfMap, anything, memoryIn, sizeOrZero], status),
  spec(HELPER_GET_STACKID, [ctx, stackMap, anything], count),
  spec(HELPER_GET_NUMA_NODE_ID, [], u32),
  spec(HELPER_PROBE_READ_STR, [memoryOut, sizeOrZero, anything], length),
  spec(HELPER_OVERRIDE_RETURN, [ctx, anything], status),
  spec(HELPER_GET_STACK, [ctx, memoryOut, sizeOrZero, anything], length),
  spec(HELPER_MAP_PUSH_ELEM, [pushMap, mapValue, anything], status),
  spec(HELPER_MAP_POP_ELEM, [popMap, mapValueOut], status),
  spec(HELPER_MAP_PEEK_ELEM, [pushMap, mapValueOut], status),
  spec(HELPER_STRTOL, [memoryIn, size, anything, u64Out], count),
  spec(HELPER_STRTOUL, [memoryIn, size, anything, u64Out], count),
  spec(HELPER_PROBE_READ_USER, [memoryOut, sizeOrZero, anything], status),
  spec(HELPER_PROBE_READ_KERNEL, [memoryOut, sizeOrZero, anything], status),
  spec(HELPER_PROBE_READ_USER_STR, [memoryOut, sizeOrZero, anything], length),
  spec(HELPER_PROBE_READ_KERNEL_STR, [memoryOut, sizeOrZero, anything], length),
  spec(HELPER_JIFFIES64, [], u64),
  spec(HELPER_KTIME_GET_BOOT_NS, [], u64),
  spec(HELPER_RINGBUF_OUTPUT, [ringMap, memoryIn, sizeOrZero, anything], status),
  spec(HELPER_RINGBUF_RESERVE, [ringMap, recordSize, anything], recordOrNull),
  spec(HELPER_RINGBUF_SUBMIT, [record, anything], nothing),
  spec(HELPER_RINGBUF_DISCARD, [record, anything], nothing),
  spec(HELPER_RINGBUF_QUERY, [ringMap, anything], u64),
  spec(HELPER_KTIME_GET_COARSE_NS, [], u64),
  spec(HELPER_FOR_EACH_MAP_ELEM, [keyedMap, callback, callbackContext, anything], count),
  spec(HELPER_SNPRINTF, [memoryOutOrNull, sizeOrZero, constString, memoryInOrNull, sizeOrZero], count),
  spec(HELPER_GET_FUNC_IP, [ctx], u64),
  spec(HELPER_GET_ATTACH_COOKIE, [ctx], u64),
  spec(HELPER_TRACE_VPRINTK, [memoryIn, size, memoryInOrNull, sizeOrZero], count),
  spec(HELPER_LOOP, [anything, callback, callbackContext, anything], count),
  spec(HELPER_STRNCMP, [memoryIn, size, constString], comparison),
  spec(HELPER_GET_FUNC_ARG, [ctx, anything, u64Out], status),
  spec(HELPER_GET_FUNC_RET, [ctx, u64Out], status),
  spec(HELPER_GET_FUNC_ARG_CNT, [ctx], u64),
  spec(HELPER_MAP_LOOKUP_PERCPU_ELEM, [perCpuMap, mapKey, anything], valueOrNull),
  spec(HELPER_KTIME_GET_TAI_NS, [], u64),
];

/** Helpers that the kernel has for traced functions and that a process must not have, with the reason. */
const refusals: ReadonlyMap<number, string> = new Map([
  [36, "a probe does not write what it observes"],
  [93, "a thread may stop or die inside the lock, and all others would wait for it; use atomic instructions"],
  [94, "a thread may stop or die inside the lock, and all others would wait for it; use atomic instructions"],
  [109, "a probe sends no signals to what it observes"],
  [117, "a probe sends no signals to what it observes"],
  [169, "nothing in a process runs timers for programs"],
  [170, "nothing in a process runs timers for programs"],
  [171, "nothing in a process runs timers for programs"],
  [172, "nothing in a process runs timers for programs"],
]);

/** Why a helper of the kernel is not to be had, where there is more to say than that it is not. */
export function findRefusal(number: number): string | undefined {
  return refusals.get(number);
}

const specByNumber: ReadonlyMap<number, HelperSpec> = new Map(specs.map((s) => [s.number, s]));

/** The helpers that Trapline has, in order of their numbers. */
export const helperSpecs: readonly HelperSpec[] = specs;

/** The helper with this number, if Trapline has it. */
export function findHelper(number: number): HelperSpec | undefined {
  return specByNumber.get(number);
}

/** The kernel's name of a helper number, with `bpf_`, whether or not Trapline has that helper. */
export function findHelperName(number: number): string | undefined {
  const name = kernelNames[number - 1];
  return name === undefined ? undefined : `bpf_${name}`;
}

/** The number of a helper by its kernel name, with or without `bpf_`. */
export function findHelperNumber(name: string): number | undefined {
  const index = kernelNames.indexOf(name.replace(/^bpf_/, ""));
  return index < 0 ? undefined : index + 1;
}

function spec(number: number, args: readonly HelperArg[], returns: HelperReturn): HelperSpec {
  return { number, name: findHelperName(number) ?? `helper ${number}`, args, returns };
}

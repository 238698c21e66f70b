// How large allocations are: a histogram of powers of two, counted on each processor.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#ifndef BPF_UPROBE // libbpf before 1.2
#define BPF_UPROBE BPF_KPROBE
#endif

#define MAX_SLOTS 48

char LICENSE[] SEC("license") = "GPL";

// Element n counts sizes from 2^n up to, not including, 2^(n+1); element 0 counts sizes of 0, too.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} sizes SEC(".maps");

__u64 total_bytes = 0;

static __always_inline __u32 log2(__u64 value)
{
	__u32 result = 0;

	for (__u32 shift = 32; shift > 0; shift /= 2)
		if (value >> shift) {
			value >>= shift;
			result += shift;
		}
	return result;
}

SEC("uprobe/libc.so.6:malloc")
int BPF_UPROBE(count_malloc, unsigned long size)
{
	__u32 slot = log2(size);
	__u64 *count;

	if (slot >= MAX_SLOTS)
		slot = MAX_SLOTS - 1;
	count = bpf_map_lookup_elem(&sizes, &slot);
	if (count)
		(*count)++;
	__sync_fetch_and_add(&total_bytes, size);
	return 0;
}

// Who calls a function: the stacks that lead there, and how often each. Name the function with
// --attach count_stack=IMAGE:FUNCTION.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define MAX_FRAMES 32

char LICENSE[] SEC("license") = "GPL";

struct key {
	__u32 pid;
	__s32 stack;
};

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, MAX_FRAMES * sizeof(__u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct key);
	__type(value, __u64);
} counts SEC(".maps");

__u64 failed = 0;

SEC("uprobe")
int count_stack(struct pt_regs *ctx)
{
	struct key key = {};
	__u64 one = 1, *count;

	key.pid = bpf_get_current_pid_tgid() >> 32;
	key.stack = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
	if (key.stack < 0) {
		__sync_fetch_and_add(&failed, 1);
		return 0;
	}
	count = bpf_map_lookup_elem(&counts, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&counts, &key, &one, BPF_NOEXIST);
	return 0;
}

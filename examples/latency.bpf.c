// How long a function takes: from its entry to its return, in each thread. Name the function with
// --attach entered=IMAGE:FUNCTION --attach returned=IMAGE:FUNCTION.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define MAX_SLOTS 32

char LICENSE[] SEC("license") = "GPL";

struct latency {
	__u64 calls;
	__u64 total_ns;
	__u64 slots[MAX_SLOTS]; // slot n: from 2^n up to, not including, 2^(n+1) microseconds
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32); // thread
	__type(value, __u64);
} starts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); // process
	__type(value, struct latency);
} latencies SEC(".maps");

const volatile __u64 min_ns = 0;

static struct latency zero;

SEC("uprobe")
int entered(struct pt_regs *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid();
	__u64 now = bpf_ktime_get_ns();

	bpf_map_update_elem(&starts, &tid, &now, BPF_ANY);
	return 0;
}

SEC("uretprobe")
int returned(struct pt_regs *ctx)
{
	__u64 id = bpf_get_current_pid_tgid(), duration;
	__u32 pid = id >> 32, tid = id, slot = 0;
	struct latency *latency;
	__u64 *start;

	start = bpf_map_lookup_elem(&starts, &tid);
	if (!start)
		return 0;
	duration = bpf_ktime_get_ns() - *start;
	bpf_map_delete_elem(&starts, &tid);
	if (duration < min_ns)
		return 0;

	latency = bpf_map_lookup_elem(&latencies, &pid);
	if (!latency) {
		bpf_map_update_elem(&latencies, &pid, &zero, BPF_NOEXIST);
		latency = bpf_map_lookup_elem(&latencies, &pid);
		if (!latency)
			return 0;
	}
	__sync_fetch_and_add(&latency->calls, 1);
	__sync_fetch_and_add(&latency->total_ns, duration);
	for (duration /= 1000; duration > 1 && slot < MAX_SLOTS - 1; duration /= 2)
		slot++;
	__sync_fetch_and_add(&latency->slots[slot], 1);
	return 0;
}

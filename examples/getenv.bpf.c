// Which variables of the environment a program asks for, and whether they are set: one record for each getenv().
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#ifndef BPF_UPROBE // libbpf before 1.2
#define BPF_UPROBE BPF_KPROBE
#define BPF_URETPROBE BPF_KRETPROBE
#endif

#define NAME_LEN 64

char LICENSE[] SEC("license") = "GPL";

struct event {
	__u32 pid;
	__u32 tid;
	char comm[16];
	char name[NAME_LEN];
	char value[NAME_LEN];
};

// Nobody uses it: it makes the type of the records known to those who read them.
struct event *unused __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, const char *);
} names SEC(".maps");

__u64 dropped = 0;

SEC("uprobe/libc.so.6:getenv")
int BPF_UPROBE(getenv_called, const char *name)
{
	__u32 tid = bpf_get_current_pid_tgid();

	bpf_map_update_elem(&names, &tid, &name, BPF_ANY);
	return 0;
}

SEC("uretprobe/libc.so.6:getenv")
int BPF_URETPROBE(getenv_returned, const char *value)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id;
	const char **name = bpf_map_lookup_elem(&names, &tid);
	struct event *event;

	if (!name)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&dropped, 1);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->pid = id >> 32;
	event->tid = tid;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_probe_read_user_str(event->name, sizeof(event->name), *name);
	if (value)
		bpf_probe_read_user_str(event->value, sizeof(event->value), value);
	bpf_ringbuf_submit(event, 0);
	bpf_map_delete_elem(&names, &tid);
	return 0;
}

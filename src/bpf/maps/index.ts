/** Maps in memory that programs and the tracer share. */

export { E2BIG, EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC } from "../error-numbers.ts";
export type { ArrayLayout, PerCpuArrayLayout, SlotsLayout } from "./array-layout.ts";
export { ArrayMap } from "./array-map.ts";
export type { BloomLayout } from "./bloom-layout.ts";
export { BloomMap } from "./bloom-map.ts";
export { findMapDamage } from "./damage.ts";
export type { HashLayout } from "./hash-layout.ts";
export { type HashEntry, HashMap } from "./hash-map.ts";
export { layoutMap, type MapLayout } from "./layout.ts";
export { type OpenedMap, openMap } from "./open-map.ts";
export { OWNER_STRIDE } from "./percpu-header.ts";
export { PerCpuArrayMap, type PerCpuEntry, PerCpuHashMap } from "./percpu-map.ts";
export type { QueueLayout } from "./queue-layout.ts";
export { QueueMap } from "./queue-map.ts";
export { RingConsumer, type RingConsumerOptions } from "./ring-consumer.ts";
export type { RingLayout } from "./ring-layout.ts";
export { RingMap } from "./ring-map.ts";
export { type SharedMemory, sharedMemoryOf } from "./shared-memory.ts";
export { ArrayOfMaps, HashOfMaps, ProgArrayMap } from "./slots-map.ts";
export type { StackTraceLayout } from "./stack-trace-layout.ts";
export { STACK_FAST_COMPARE, STACK_REUSE_ID, StackTraceMap } from "./stack-trace-map.ts";

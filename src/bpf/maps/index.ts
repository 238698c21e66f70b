/** Maps in memory that programs and the tracer share. */
export { ArrayMap } from "./array-map.ts";
export { E2BIG, EEXIST, EINVAL, ENOENT } from "./error-numbers.ts";
export { HashMap } from "./hash-map.ts";
export {
  type ArrayLayout,
  type HashLayout,
  layoutMap,
  type MapLayout,
  type RingLayout,
} from "./layout.ts";
export { type OpenedMap, openMap } from "./open-map.ts";
export { RingConsumer, type RingConsumerOptions } from "./ring-consumer.ts";
export { RingMap } from "./ring-map.ts";
export { type SharedMemory, sharedMemoryOf } from "./shared-memory.ts";

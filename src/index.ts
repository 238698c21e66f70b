/**
 * Trapline as a library: probes in a running process, added and taken away one by one.
 *
 *     import { attach } from "trapline";
 *
 *     await using session = await attach(4242);
 *     const probe = await session.probe("uprobe:libc:malloc", "{ @bytes = hist(arg0); }");
 *     ...
 *     console.log(probe.counts.hits, probe.map("@bytes"));
 */
export type { HitCounts, Insn, MapSpec } from "./bpf/index.ts";
export type { OpenedMap } from "./bpf/maps/index.ts";
export { parseProgram } from "./bpf/text.ts";
export type { SessionEvent } from "./session/event-queue.ts";
export {
  type Aggregated,
  type AttachOptions,
  attach,
  type Element,
  type Probe,
  type ProbeOptions,
  type RawProgram,
  type Session,
  type Value,
} from "./session/live-session.ts";
export { SessionError } from "./session/session-error.ts";

/**
 * Counters of those who listen to a static probe (semaphores of USDT): a program passes a probe by while its counter is 0.
 * The counter is data of the process, which only tracers change.
 */
import type { ProcessTarget } from "../../target/process/tracer.ts";

/** Adds 1 or -1 to each 16-bit counter of a target. One that cannot be read any more is left alone. */
export async function changeSemaphores(
  target: Pick<ProcessTarget, "read" | "write">,
  semaphores: Iterable<bigint>,
  difference: 1 | -1,
): Promise<void> {
  for (const at of semaphores) {
    const bytes = await target.read(at, 2);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const count = view.getUint16(0, true) + difference;
    if (count < 0) continue;
    view.setUint16(0, count, true);
    await target.write(at, bytes);
  }
}

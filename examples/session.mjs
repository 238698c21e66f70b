// Counts the calls of a function in a running process, and looks closer when there are many: a second probe is added and
// taken away again while the process runs.
//
//     node examples/session.mjs PID IMAGE:FUNCTION [SECONDS]
import { setTimeout as pause } from "node:timers/promises";
import { attach } from "trapline";

const [pid, place, seconds = "1"] = process.argv.slice(2);
const periodMs = 1000 * Number(seconds);

// With a compiler, or a Node that knows it: await using session = await attach(...).
const session = await attach(Number(pid));
try {
  const calls = await session.probe(`uprobe:${place}`, "{ @ = count(); }");
  console.log(`counting the calls of ${place} in process ${pid}`);
  await pause(periodMs);
  console.log(`${calls.counts.hits} calls`);

  if (calls.counts.hits > 100n) {
    const closer = await session.probe(`uprobe:${place}`, "{ @[tid] = count(); }");
    await pause(periodMs);
    await closer.remove();
    const [busiest] = closer.map("@").sort((a, b) => Number(b.value - a.value));
    console.log(`thread ${busiest?.key[0]} made ${busiest?.value} in the same time`);
  }

  await calls.disable();
  const all = calls.counts.hits;
  await pause(periodMs);
  console.log(calls.counts.hits === all ? "no calls are counted now" : "calls are still counted");
} finally {
  await session.close();
}

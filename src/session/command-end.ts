/** A command that a session has started does not outlive it, as with bpftrace. */
import type { ProcessTarget } from "../target/process/tracer.ts";

const POLL_MS = 5;
const PATIENCE_MS = 2000;

/** Asks the command to end if it still runs, waits until it has, and collects its exit status. */
export async function endCommand(command: ProcessTarget | undefined): Promise<void> {
  if (command === undefined) return;
  if (!command.hasEnded) process.kill(command.pid, "SIGTERM");
  for (let waitedMs = 0; !command.hasEnded && waitedMs < PATIENCE_MS; waitedMs += POLL_MS)
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  await command.reap();
}

/** The application jumps into the middle of our code, to each WRPKRU, with what it would like to be written: the key stays closed. */
import { expect, it } from "vitest";

import { buildFixture } from "../support/fixtures.ts";
import { readSmaps } from "../support/keyed-process.ts";
import { describeWithKeys } from "../support/protection-keys.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const gadget = buildFixture("gadget");

describeWithKeys("jumps to each WRPKRU of ours", () => {
  it("never come back with the key open", async () => {
    using child = await UnmanagedChild.start([gadget]);
    await using tracing = await Tracing.armed(
      ["--gate", "strict", "-p", `${child.pid}`],
      "uprobe:gadget:probed { @ = count(); }",
    );
    const key = readSmaps(child.pid).find(({ path }) => path.startsWith("/memfd:trapline-maps"))!.key;
    expect(key).toBeGreaterThan(0);
    child.send(`${key}\n`);
    const [, found, stopped, , open] = /^WRPKRUs (\d+), stopped (\d+), closed (\d+), open (\d+)$/
      .exec(await child.line(60_000))!
      .map(Number);
    // The gate's ways in and out, and those of the handler of faults.
    expect(found).toBeGreaterThanOrEqual(4);
    // A value that would open it is refused where it is to be closed.
    expect(stopped).toBeGreaterThanOrEqual(2);
    expect(open).toBe(0);
    expect((await tracing.interrupt()).code).toBe(0);
  });
});

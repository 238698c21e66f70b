/** Two sessions on one process, each with a protection key of its own: neither opens, answers for or loses what is the other's. */
import { expect, it } from "vitest";
import { accountingOf } from "../support/accounting.ts";
import { faults, PASSED, ROUNDS, THREADS, violationsOf } from "../support/faulty-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { readSmaps } from "../support/keyed-process.ts";
import { ProgramCode } from "../support/program-code.ts";
import { describeWithKeys } from "../support/protection-keys.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const [stray, faulting] = [buildFixture("stray"), buildFixture("faulting")];

const mapsOf = (pid: number) => readSmaps(pid).filter(({ path }) => path.includes("memfd:trapline-maps"));

describeWithKeys("two sessions with a key each", () => {
  it.each([0, 1])(
    "an access is told to the session whose memory it is; the %i. leaves first",
    async (leaver) => {
      using child = await UnmanagedChild.start([stray, "handler", "alt"]);
      const ask = async (line: string) => {
        child.send(`${line}\n`);
        return await child.line(120_000);
      };
      const tracers: Tracing[] = [];
      const places: bigint[] = [];
      const keys = new Set<number>();
      try {
        for (let index = 0; index < 2; index++) {
          const args = ["--gate", "strict", "--verify", "-p", `${child.pid}`];
          tracers.push(await Tracing.armed(args, "uprobe:stray:probed { @ = count(); }"));
          const maps = mapsOf(child.pid).find(({ start }) => !places.includes(start))!;
          places.push(maps.start);
          keys.add(maps.key);
        }
        expect(keys.size).toBe(2);
        expect(await ask("pass")).toBe("passed 1000");
        for (const [index, place] of places.entries()) {
          expect(await ask(`read ${place.toString(16)}`)).toBe(
            "fault 1 at it, in the handler 7, behind it 0",
          );
          await tracers[index]!.untilError("violation: ");
        }
        for (const [rounds, index] of [leaver, 1 - leaver].entries()) {
          const result = await tracers[index]!.interrupt();
          expect({ code: result.code, counted: result.map("@") }).toEqual({
            code: 0,
            counted: 1000 * (rounds + 1),
          });
          expect(violationsOf(result)).toMatchObject([{ kind: "access", access: "read", outcome: "kill" }]);
          expect(await ask("pass")).toBe("passed 1000");
        }
        expect(mapsOf(child.pid)).toEqual([]);
      } finally {
        for (const tracing of tracers) await tracing[Symbol.asyncDispose]();
      }
    },
  );

  it("faults of programs end those of their session, at places of their own and beside the other's", async () => {
    using child = await UnmanagedChild.start([faulting, `${THREADS}`, `${ROUNDS}`, "signals"]);
    const sites = ["uprobe:faulting:wide+1", "uprobe:faulting:narrow+1"] as const;
    const tracers: Tracing[] = [];
    try {
      for (const site of sites)
        tracers.push(
          await Tracing.armed(
            ["--gate", "strict", "--verify", "-p", `${child.pid}`],
            `${site} { @ = count(); } uprobe:faulting:entered { @calls = count(); }`,
          ),
        );
      for (const site of sites)
        ProgramCode.find(child.pid, site).spoil(faults["a read where nothing is mapped"].code, "start");
      child.send("\n");
      expect(await child.line(120_000)).toMatch(/^wrong 0, /);
      for (const tracing of tracers) {
        await tracing.untilError("violation: ");
        const { code, lines } = await tracing.interrupt();
        expect(code).toBe(0);
        expect(violationsOf({ lines })).toMatchObject([{ kind: "fault", signal: "SIGSEGV", disarmed: true }]);
        const [probed, calls] = accountingOf(lines);
        expect(probed).toMatchObject({ run: 0, recursed: 0, hits: probed!.faulted });
        expect(probed!.faulted).toBeGreaterThan(0);
        expect(calls).toMatchObject({ hits: PASSED, run: PASSED });
      }
      child.send("\n");
      expect(await child.line(120_000)).toMatch(/^wrong 0, /);
    } finally {
      for (const tracing of tracers) await tracing[Symbol.asyncDispose]();
    }
  });
});

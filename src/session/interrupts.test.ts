import { describe, expect, it } from "vitest";
import { recordIo } from "../../test/support/session-io.ts";
import { Interrupts } from "./interrupts.ts";

const nextTurn = () => new Promise((resolve) => setTimeout(resolve, 50));

describe("interrupts", () => {
  it.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
    "%s asks to stop, a second one says that it is being done",
    async (name) => {
      const io = recordIo();
      using interrupts = new Interrupts(io);
      expect(interrupts.stop.aborted).toBe(false);
      process.kill(process.pid, name);
      await nextTurn();
      expect(interrupts.stop.aborted).toBe(true);
      expect(io.errText()).toBe("");
      process.kill(process.pid, name);
      await nextTurn();
      expect(io.errText()).toBe("detaching is in progress: the probes are being taken out of the code\n");
    },
  );

  it("a closed output asks to stop", () => {
    const io = recordIo();
    using interrupts = new Interrupts(io);
    io.closeOut();
    expect(interrupts.stop.aborted).toBe(true);
  });

  it("an output that was closed before asks to stop at once", () => {
    const io = recordIo();
    io.closeOut();
    using interrupts = new Interrupts(io);
    expect(interrupts.stop.aborted).toBe(true);
  });

  it("leaves no handler behind", () => {
    const before = process.listenerCount("SIGINT");
    new Interrupts(recordIo())[Symbol.dispose]();
    expect(process.listenerCount("SIGINT")).toBe(before);
  });
});

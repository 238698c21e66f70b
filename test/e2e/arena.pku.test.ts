/** A session's data behind a protection key, without its gate: who may touch it. These tests are the tracer. */
import { expect, test } from "vitest";
import { describeKeyRefusal } from "../../src/target/process/protection-keys.ts";
import { Attached } from "../support/attached.ts";
import { runCommand } from "../support/built-command.ts";
import { type KeyedMapping, nameOf, readSmaps, startKeyed } from "../support/keyed-process.ts";
import { describeWithKeys } from "../support/protection-keys.ts";
import { Tracing } from "../support/tracing.ts";

const SCRIPT = "uprobe:keyed:try_read { @ = count(); }";
/** Mappings of ours. */
const isNamed = ({ path }: KeyedMapping): boolean => path.includes("trapline");

describeWithKeys("data behind a key", () => {
  test("all memory for data has the key, the open memory has none, and the key is given back in the process and in its child", async () => {
    const { child, ask } = await startKeyed();
    using _ = child;
    const before = readSmaps(child.pid);
    expect(await ask("keys")).toBe("15 keys");
    const attached = await Attached.to(child.pid, SCRIPT, "strict");
    const { attachment } = attached;
    const { key, keyRefusal } = attachment;
    await attachment.memory.addMailbox(100);
    if (key === undefined) throw new Error(describeKeyRefusal(keyRefusal!));
    const isNew = ({ start }: KeyedMapping) => !before.some((old) => old.start === start);
    const ours = readSmaps(child.pid).filter(isNew);
    const unkeyed = ours.filter((mapping) => mapping.key !== key);
    // The open part, and what is reserved.
    expect([...new Set(unkeyed.map(nameOf))].sort()).toEqual(["---p trapline-arena", "rw-p "]);
    expect(unkeyed.filter(({ perms }) => perms === "rw-p").map(({ start }) => start)).toEqual([
      attachment.memory.scratchAt,
    ]);
    expect([...new Set(ours.filter((mapping) => mapping.key === key).map(nameOf))].sort()).toEqual([
      "---p trapline-stacks",
      "rw-p ",
      "rw-p trapline-stacks",
      "rw-s trapline",
      "rw-s trapline-mailbox",
      "rw-s trapline-maps",
    ]);
    const touchable = ours.filter((mapping) => mapping.key === key && mapping.perms !== "---p");
    // Of a thousand stacks, some.
    for (const { start } of touchable.filter((_, index) => index < 8 || index % 128 === 0)) {
      expect(await ask(`read ${start.toString(16)}`)).toBe(
        `main faults by key ${key}, opened faults by key ${key}`,
      );
    }
    expect(await ask("keys")).toBe("14 keys");

    const heir = Number(/\d+/.exec(await ask("fork"))![0]);
    expect(attachment.findHeirs()).toEqual([heir]);
    expect(attachment.isReplaced()).toBe(false);
    expect(await ask("keys")).toBe("14 keys");
    await attached.restore();
    expect(await ask("keys")).toBe("14 keys");
    await attached.restoreHeir(heir);
    expect(await ask("keys")).toBe("15 keys");
    expect(attachment.findHeirs()).toEqual([]);
  });

  test("a tracer that is killed leaves the key allocated, and whoever undoes its work frees it", async () => {
    const { child, ask } = await startKeyed();
    using _ = child;
    const before = readSmaps(child.pid);
    await using tracing = await Tracing.armed(["--gate", "strict", "-p", `${child.pid}`], SCRIPT);
    expect(await ask("read 1000")).toBe("main faults by 1, opened faults by 1");
    tracing.signal("SIGKILL");
    await tracing.ended();
    expect(await ask("keys")).toBe("14 keys");
    expect(await ask("read 1000")).toBe("main faults by 1, opened faults by 1");
    expect(runCommand(["detach", "--verify", "-p", `${child.pid}`])).toMatchObject({ code: 0, err: "" });
    expect(await ask("keys")).toBe("15 keys");
    expect(readSmaps(child.pid).filter(isNamed)).toEqual(before.filter(isNamed));
  });

  test("a process that becomes another program has all its keys back, and its data gets one of them again", async () => {
    const { child, ask } = await startKeyed();
    using _ = child;
    const first = await Attached.to(child.pid, SCRIPT, "strict");
    expect(first.attachment.key).toBeDefined();
    expect(await ask("exec")).toBe("ready");
    expect(first.attachment.isReplaced()).toBe(true);
    expect(await ask("keys")).toBe("15 keys");
    const second = await Attached.to(child.pid, SCRIPT, "strict");
    const { key, journalMemory } = second.attachment;
    expect(key).toBeDefined();
    expect(await ask(`read ${journalMemory.start.toString(16)}`)).toBe(
      `main faults by key ${key}, opened faults by key ${key}`,
    );
    await second.restore();
    expect(await ask("keys")).toBe("15 keys");
    await first.attachment.close();
  });
});

import { describe, expect, test } from "vitest";
import { encodeJump } from "../patch/index.ts";
import type { JournalContents, JournalHook, JournalMechanism, JournalSite } from "./journal.ts";
import { heldPlaces, jumpTarget, linkOf, type SiteMember, unchain } from "./site-chains.ts";

const AT = 0x40_1000n;
const OLD = Uint8Array.of(0x55, 0x48, 0x89, 0xe5, 0x53);
const NOP = Uint8Array.of(0x0f, 0x1f, 0x44, 0x00, 0x00);
const COPY = 0x30;
const detours = { A: 0x50_0000n, B: 0x50_1000n, C: 0x50_2000n } as const;
type Name = keyof typeof detours;

/** Memory in which sessions stand in a chain, the first one as the root. */
class Chain {
  readonly memory = new Map<bigint, Uint8Array>();
  readonly members = new Map<Name, SiteMember>();

  constructor(names: readonly Name[], mechanism: JournalMechanism = "jump") {
    const trap = Uint8Array.of(0xcc, ...OLD.subarray(1));
    names.forEach((name, index) => {
      const detour = detours[name];
      const before = names[index - 1];
      const newBytes =
        mechanism === "int3" ? trap : mechanism === "punned" && index > 0 ? OLD : encodeJump(AT, detour)!;
      const site: JournalSite = {
        kind: "site",
        record: index,
        at: AT,
        mechanism,
        state: "armed",
        oldBytes: OLD,
        newBytes,
        detour,
        leadsTo: 0n,
        copyOffset: COPY,
      };
      let hook: JournalHook | undefined;
      if (before !== undefined)
        hook = {
          kind: "hook",
          at: detours[before],
          state: "armed",
          oldBytes: NOP,
          newBytes: encodeJump(detours[before], detour)!,
          detour,
          site: AT,
          linkOffset: COPY - 5,
        };
      const member = { site, hook };
      this.members.set(name, member);
      this.memory.set(detour, NOP);
      if (index === 0) this.memory.set(AT, newBytes);
      else {
        this.memory.set(detours[before!], hook!.newBytes);
        this.memory.set(linkOf(member), encodeJump(linkOf(member), detours[before!] + 5n)!);
      }
    });
  }

  readonly read = (at: bigint) => this.memory.get(at);

  /** Does the first `steps` of what takes a member out, all unless told; returns the kind. */
  takeOut(name: Name, steps = Number.POSITIVE_INFINITY): string {
    const own = this.members.get(name)!;
    const others = [...this.members.values()].filter((member) => member !== own);
    const result = unchain(own, others, this.read);
    if (result.kind === "alone") {
      this.memory.set(AT, OLD);
      this.members.delete(name);
      return "alone";
    }
    for (const { at, expect: now, write } of result.pokes.slice(0, steps)) {
      expect(this.read(at)).toEqual(now);
      this.memory.set(at, write);
    }
    if (steps >= result.pokes.length && result.kind === "passed-on") this.members.delete(name);
    return result.kind;
  }

  /** Whose gates a thread passes that comes to the site, in order; `copy` where it ends. */
  walk(): string {
    const passed: string[] = [];
    const text = this.read(AT)!;
    if (text.every((byte, index) => byte === OLD[index])) return "text";
    const newest = [...this.members].at(-1)![0];
    let at = text[0] === 0xcc ? detours[[...this.members][0]![0]] : jumpTarget(AT, text)!;
    for (let steps = 0; steps < 10; steps++) {
      const onward = jumpTarget(at, this.read(at));
      if (onward === undefined) break;
      at = onward;
    }
    expect(at).toBe(detours[newest]);
    for (;;) {
      const [name] = Object.entries(detours).find(([, detour]) => detour === at)!;
      passed.push(name);
      const link = at + BigInt(COPY - 5);
      const onward = jumpTarget(link, this.read(link));
      if (onward === undefined) return `${passed.join(" ")} copy`;
      at = onward - 5n;
    }
  }
}

describe.each(["jump", "int3"] as const)("a chain of three by %s", (mechanism) => {
  test.each([
    ["A", "passed-on", "C B copy"],
    ["B", "passed-on", "C A copy"],
    ["C", "passed-on", "B A copy"],
  ] as const)("%s leaves", (name, kind, then) => {
    const chain = new Chain(["A", "B", "C"], mechanism);
    expect(chain.walk()).toBe("C B A copy");
    expect(chain.takeOut(name)).toBe(kind);
    expect(chain.walk()).toBe(then);
  });

  test.each([
    ["A", "B", "C"],
    ["A", "C", "B"],
    ["B", "A", "C"],
    ["B", "C", "A"],
    ["C", "A", "B"],
    ["C", "B", "A"],
  ] as const)("%s, %s and %s leave: the text is as before", (...order) => {
    const chain = new Chain(["A", "B", "C"], mechanism);
    for (const name of order) chain.takeOut(name);
    expect(chain.walk()).toBe("text");
  });

  test.each(["A", "B", "C"] as const)(
    "%s dies after each step of leaving, and another goes on with it",
    (name) => {
      for (let steps = 0; steps < 3; steps++) {
        const chain = new Chain(["A", "B", "C"], mechanism);
        chain.takeOut(name, steps);
        // Whoever is left is reached, before and after.
        for (const stays of ["A", "B", "C"]) if (stays !== name) expect(chain.walk()).toContain(stays);
        if (chain.members.has(name)) chain.takeOut(name);
        expect(chain.walk()).toBe(
          ["C", "B", "A"]
            .filter((stays) => stays !== name)
            .join(" ")
            .concat(" copy"),
        );
      }
    },
  );
});

test("a punned route cannot change owners: a husk stays, whose programs are not reached", () => {
  const chain = new Chain(["A", "B"], "punned");
  expect(chain.takeOut("A")).toBe("husk");
  expect(chain.walk()).toBe("B copy");
  expect(chain.takeOut("B")).toBe("passed-on");
  expect(chain.takeOut("A")).toBe("alone");
});

test("one that died before it wrote its hook takes nothing of the other's with it", () => {
  const chain = new Chain(["A", "B"], "int3");
  chain.memory.set(detours.A, NOP);
  expect(chain.takeOut("B")).toBe("passed-on");
  expect(chain.walk()).toBe("A copy");
});

function journal(member: SiteMember, tracerPid: number): JournalContents {
  return {
    header: { tracerPid, tracerStart: 0n, targetPid: 1, sharedBytes: 0 },
    isLeft: false,
    scratch: undefined,
    key: undefined,
    returnTable: undefined,
    trapAction: undefined,
    signals: [],
    sites: [member.site],
    kept: [{ kind: "kept", at: AT + 5n, state: "planned", bytes: Uint8Array.of(0x90) }],
    hooks: member.hook === undefined ? [] : [member.hook],
    memory: [],
    unwind: [],
    debug: [],
  };
}

test("what comes next is hooked into the newest one's slot, and keeps out of what is kept", () => {
  const chain = new Chain(["A", "B"]);
  const sessions = [...chain.members.values()].map((member, index) => ({
    journal: journal(member, 100 + index),
    isAlive: true,
  }));
  const { sites, text } = heldPlaces(sessions, chain.read);
  expect([...sites]).toEqual([
    [AT, { tracer: 100, mechanism: "jump", lenBytes: OLD.length, slot: detours.B }],
  ]);
  expect(text).toContainEqual({ tracer: 100, at: AT + 5n, lenBytes: 1, isWritten: false });
});

test("a site whose first detour has other uses for its slot is not to be had", () => {
  const chain = new Chain(["A"]);
  chain.memory.set(detours.A, encodeJump(detours.A, 0x50_8000n)!);
  const sessions = [{ journal: journal(chain.members.get("A")!, 100), isAlive: true }];
  expect(heldPlaces(sessions, chain.read).sites.get(AT)?.mechanism).toBe("other");
});

/**
 * Sites that several sessions probe: whose detour leads to whose, and how one session takes itself out from among the others.
 *
 *     site ──► A.slot ──► B.slot ──► C: gate of C ──► link ──► B: gate of B ──► link ──► A: gate of A, displaced instructions
 *
 * The session that came first has changed the text; it is the root. Each later one has written a jump to its detour over the
 * slot of the newest one, and its link leads to the gate behind that slot. Each has its own copy of the displaced instructions
 * behind its link, and a record of the site as if it were alone. So one that leaves
 *
 *     closes the link that leads to it:       it leads on to where its own link leads, or becomes a NOP before the other's own copy
 *     closes the slot that leads to it:       it leads to the next one, or becomes a NOP again
 *     or, as the root, passes the text on:    the jump at the site leads to the next one's detour, as that one's record says
 *
 * A call at a function's entry belongs to its session's trampoline, which has no slot. One that comes later makes a jump of
 * the call, and its link leads to an approach, which stands for the call: it pushes the address behind it and jumps to the
 * trampoline. The jump's session is the root then, and whoever comes after it has an approach as well, to be used when that root
 * leaves. The last of them to leave makes a call of the jump again, to where the approach leads.
 *
 * Every step of this leaves all others reachable, and can be done again by somebody else after any of them: what is there
 * decides, not what a journal says was done. Only where the root's text cannot be another's (a punned route belongs to its landings)
 * it has to stay as it is, with the memory of its session: that is a husk, whose programs nobody reaches.
 */
import { SLOT, SLOT_BYTES } from "../patch/detour.ts";
import { APPROACH_JUMP_OFFSET, APPROACH_SPACE_BYTES } from "../patch/function-trampoline.ts";
import { encodeJump } from "../patch/index.ts";
import type { HeldSite, HeldText, OtherTracers } from "../patch/plan.ts";
import type { AddrRange, SitePoke } from "../target/target.ts";
import { isBesideSite, type JournalContents, type JournalHook, type JournalSite } from "./journal.ts";
import { siteState } from "./site-state.ts";

const JMP_REL32 = 0xe9;
const CALL_REL32 = 0xe8;

/** Reads what is in the target now; undefined where nothing can be read. */
export type ReadText = (at: bigint, lenBytes: number) => Uint8Array | undefined;

/** One session's part in a site. */
export interface SiteMember {
  readonly site: JournalSite;
  readonly hook: JournalHook | undefined;
}

/** Where the jump stands that leads from a member to the next one. */
export const linkOf = ({ site }: SiteMember): bigint =>
  site.detour + BigInt(site.copyOffset) - BigInt(SLOT_BYTES);

/** Where a member's approach stands; undefined if it has none. */
function approachOf({ site, hook }: SiteMember): bigint | undefined {
  return hook?.hasApproach === true ? site.detour - BigInt(APPROACH_SPACE_BYTES) : undefined;
}

/** Where the jump of a member's approach stands. */
function approachJumpOf(member: SiteMember): bigint | undefined {
  const approach = approachOf(member);
  return approach === undefined ? undefined : approach + BigInt(APPROACH_JUMP_OFFSET);
}

/** The trampoline that a member's approach leads to. */
function trampolineOf(member: SiteMember, read: ReadText): bigint | undefined {
  const at = approachJumpOf(member);
  return at === undefined ? undefined : jumpTarget(at, read(at, SLOT_BYTES));
}

/** Whether the member's link leads to its approach, so that the call's programs run behind its own. */
function isCalling(member: SiteMember, read: ReadText): boolean {
  const approach = approachOf(member);
  if (approach === undefined) return false;
  const link = linkOf(member);
  return jumpTarget(link, read(link, SLOT_BYTES)) === approach;
}

/** Approaches from which a thread may be on its way to code of a session. */
export function approachesTo(
  code: readonly AddrRange[],
  others: readonly JournalContents[],
  read: ReadText,
): AddrRange[] {
  const approaches: AddrRange[] = [];
  for (const members of membersBySite(others).values())
    for (const member of members) {
      const to = trampolineOf(member, read);
      if (to === undefined || !code.some(({ start, end }) => to >= start && to < end)) continue;
      const start = approachOf(member)!;
      approaches.push({ start, end: start + BigInt(APPROACH_SPACE_BYTES) });
    }
  return approaches;
}

/** Where the `e9 rel32` at an address leads; undefined if it holds none. */
export function jumpTarget(at: bigint, bytes: Uint8Array | undefined): bigint | undefined {
  return targetOf(JMP_REL32, at, bytes);
}

function targetOf(opcode: number, at: bigint, bytes: Uint8Array | undefined): bigint | undefined {
  if (bytes === undefined || bytes.length < SLOT_BYTES || bytes[0] !== opcode) return undefined;
  const distance = new DataView(bytes.buffer, bytes.byteOffset).getInt32(1, true);
  return at + BigInt(SLOT_BYTES + distance);
}

/** The members of each site that is in the journals, in their order. */
export function membersBySite(journals: readonly JournalContents[]): Map<bigint, SiteMember[]> {
  const members = new Map<bigint, SiteMember[]>();
  for (const { sites, hooks } of journals) {
    const hookOf = new Map(hooks.map((hook) => [hook.site, hook]));
    for (const site of sites) {
      if (isBesideSite(site.mechanism) || site.state === "removed") continue;
      const list = members.get(site.at);
      const member = { site, hook: hookOf.get(site.at) };
      if (list === undefined) members.set(site.at, [member]);
      else list.push(member);
    }
  }
  return members;
}

/** What has to be read to know how the members of one site hang together. */
export function placesOf(
  members: readonly SiteMember[],
): { readonly at: bigint; readonly lenBytes: number }[] {
  return members.flatMap((member) => {
    const approach = approachJumpOf(member);
    return [
      { at: member.site.detour, lenBytes: SLOT_BYTES },
      ...(member.hook === undefined ? [] : [{ at: linkOf(member), lenBytes: SLOT_BYTES }]),
      ...(approach === undefined ? [] : [{ at: approach, lenBytes: SLOT_BYTES }]),
    ];
  });
}

/** The member whose detour a member's slot leads to. */
function nextOf(member: SiteMember, members: readonly SiteMember[], read: ReadText): SiteMember | undefined {
  const { detour } = member.site;
  const target = jumpTarget(detour, read(detour, SLOT_BYTES));
  return target === undefined ? undefined : members.find(({ site }) => site.detour === target);
}

/** The newest member behind a root: whose slot is free. */
export function lastOf(root: SiteMember, members: readonly SiteMember[], read: ReadText): SiteMember {
  let last = root;
  for (let steps = 0; steps < members.length; steps++) {
    const next = nextOf(last, members, read);
    if (next === undefined) return last;
    last = next;
  }
  return last;
}

export type Unchaining =
  /** Nobody else is at the site: it is put back as if there had never been others. */
  | { readonly kind: "alone" }
  /** The text of the site is another's; these writes take the member out, in this order. */
  | { readonly kind: "passed-on"; readonly pokes: readonly SitePoke[] }
  /** The text has to stay, for another: these writes see to it that the member's programs are not reached. */
  | { readonly kind: "husk"; readonly pokes: readonly SitePoke[] };

/** How a member is taken out from among `others`, the members of the same site in other journals. */
export function unchain(own: SiteMember, others: readonly SiteMember[], read: ReadText): Unchaining {
  if (others.length === 0) return { kind: "alone" };
  const { site, hook } = own;
  if (site.mechanism === "call") return unchainCall(own, others, read);
  const next = nextOf(own, others, read);
  const before = others.find((other) => nextOf(other, [own], read) !== undefined);
  const pokes: SitePoke[] = [];
  if (next !== undefined) pokes.push(...closeLink(own, next, read));
  if (before !== undefined) {
    const slot = before.site.detour;
    const write = next === undefined ? SLOT : encodeJump(slot, next.site.detour);
    if (write === undefined) return { kind: "husk", pokes };
    pokes.push(poke(slot, read(slot, SLOT_BYTES)!, write));
  }
  const found = read(site.at, site.oldBytes.length);
  const isRoot = before === undefined && !isHookedInto(hook, others);
  const state = found === undefined ? "foreign" : siteState(site, found);
  if (state === "original") return { kind: "passed-on", pokes };
  if (state === "foreign" || (state === "int3" && !isRoot)) return { kind: "passed-on", pokes };
  if (next === undefined && state === "jump" && isCalling(own, read)) {
    const call = callBytes(site.at, trampolineOf(own, read)!);
    if (call === undefined) return { kind: "husk", pokes };
    return { kind: "passed-on", pokes: [...pokes, poke(site.at, found!, call)] };
  }
  if (next === undefined) return pokes.length > 0 ? { kind: "passed-on", pokes } : { kind: "alone" };
  if (state === "int3")
    // Its own handler knows the site, too.
    return { kind: next.site.mechanism === "int3" ? "passed-on" : "husk", pokes };
  const canPassOn =
    site.mechanism === "jump" &&
    next.site.mechanism === "jump" &&
    next.site.newBytes.length === site.newBytes.length;
  if (!canPassOn) return { kind: "husk", pokes };
  pokes.push(poke(site.at, found!, next.site.newBytes));
  return { kind: "passed-on", pokes };
}

/** Under a jump of another session: that one's link becomes a NOP, and the text is its own from now on. */
function unchainCall({ site }: SiteMember, others: readonly SiteMember[], read: ReadText): Unchaining {
  const to = jumpTarget(site.at, read(site.at, site.oldBytes.length));
  if (!others.some((other) => other.site.detour === to)) return { kind: "alone" };
  const calling = others.filter((other) => isCalling(other, read));
  return {
    kind: "passed-on",
    pokes: calling.map((other) => poke(linkOf(other), read(linkOf(other), SLOT_BYTES)!, SLOT)),
  };
}

/** `e8 rel32` to a trampoline that has been called from there; undefined where it cannot have been. */
function callBytes(at: bigint, to: bigint): Uint8Array | undefined {
  const bytes = encodeJump(at, to);
  if (bytes !== undefined) bytes[0] = CALL_REL32;
  return bytes;
}

/** Whether the member came later than another that is still there. */
function isHookedInto(hook: JournalHook | undefined, others: readonly SiteMember[]): boolean {
  return hook !== undefined && others.some(({ site }) => site.detour === hook.at);
}

/** The link of the next one leads to `own`: it leads on to where that leads itself. */
function closeLink(own: SiteMember, next: SiteMember, read: ReadText): SitePoke[] {
  const at = linkOf(next);
  const now = read(at, SLOT_BYTES);
  if (jumpTarget(at, now) !== own.site.detour + BigInt(SLOT_BYTES)) return [];
  if (isCalling(own, read)) {
    // What the leaving one's approach leads to, the next one's own leads to from now on.
    const approach = approachOf(next);
    const jump = approachJumpOf(next);
    const to = trampolineOf(own, read)!;
    const before = jump === undefined ? undefined : read(jump, SLOT_BYTES);
    const onward = jump === undefined ? undefined : encodeJump(jump, to);
    const toApproach = approach === undefined ? undefined : encodeJump(at, approach);
    if (jump !== undefined && before !== undefined && onward !== undefined && toApproach !== undefined)
      return [poke(jump, before, onward), poke(at, now!, toApproach)];
  }
  const ownLink = own.hook === undefined ? undefined : linkOf(own);
  const onward = ownLink === undefined ? undefined : jumpTarget(ownLink, read(ownLink, SLOT_BYTES));
  // Where its own link is closed, what comes behind it is the displaced instructions; the next one has them as well.
  const write = onward === undefined ? SLOT : (encodeJump(at, onward) ?? SLOT);
  return [poke(at, now!, write)];
}

function poke(at: bigint, expect: Uint8Array, write: Uint8Array): SitePoke {
  return { at, expect, write, fallback: undefined, moves: [] };
}

/** What other sessions have in a process, as one that comes later has to plan for it. */
export interface HeldPlaces extends OtherTracers {
  /** What the text held before anybody changed it. */
  readonly originals: readonly { readonly at: bigint; readonly bytes: Uint8Array }[];
}

/** One of the other sessions. */
export interface HoldingSession {
  readonly journal: JournalContents;
  /** Whether its tracer may still change something. */
  readonly isAlive: boolean;
}

/** What other sessions hold in a process. */
export function heldPlaces(sessions: readonly HoldingSession[], read: ReadText): HeldPlaces {
  const sites = new Map<bigint, HeldSite>();
  const text: HeldText[] = [];
  const originals: { at: bigint; bytes: Uint8Array }[] = [];
  const members = membersBySite(sessions.map(({ journal }) => journal));
  for (const { journal, isAlive } of sessions) {
    const tracer = journal.header.tracerPid;
    for (const site of journal.sites) {
      if (site.state === "removed") continue;
      const found = read(site.at, site.oldBytes.length);
      const state = found === undefined ? "foreign" : siteState(site, found);
      if (state !== "jump" && state !== "int3" && !isAlive) continue;
      const lenBytes = site.newBytes.length;
      text.push({ tracer, at: site.at, lenBytes, isWritten: true });
      originals.push({ at: site.at, bytes: site.oldBytes });
      if (isBesideSite(site.mechanism)) continue;
      // All members of one site displace the same bytes; the root's mechanism is what is in the text.
      const all = members.get(site.at)!;
      const own = all.find((member) => member.site === site)!;
      if (isHookedInto(own.hook, all) || (state === "foreign" && all.length > 1)) continue;
      const slot = lastOf(own, all, read).site.detour;
      const hasSlot = read(slot, SLOT_BYTES)?.every((byte, index) => byte === SLOT[index]) === true;
      const lenBytesHeld = site.oldBytes.length;
      const call = heldCall(own, found, read);
      if (site.mechanism === "call") {
        const mechanism = call === undefined ? "other" : "call";
        sites.set(site.at, { tracer, mechanism, lenBytes: lenBytesHeld, slot: site.at, call });
        continue;
      }
      const mechanism = hasSlot && state === "int3" ? "int3" : heldMechanism(site, hasSlot);
      sites.set(site.at, { tracer, mechanism, lenBytes: lenBytesHeld, slot, call });
    }
    for (const { at, bytes } of journal.kept)
      text.push({ tracer, at, lenBytes: bytes.length, isWritten: false });
  }
  return { sites, text, originals };
}

/** The call at a root's site, or that which its approach stands for. */
function heldCall(root: SiteMember, found: Uint8Array | undefined, read: ReadText): HeldSite["call"] {
  const { site } = root;
  const trampoline =
    site.mechanism === "call" ? targetOf(CALL_REL32, site.at, found) : trampolineOf(root, read);
  return trampoline === undefined ? undefined : { bytes: found!, trampoline };
}

function heldMechanism({ mechanism }: JournalSite, hasSlot: boolean): HeldSite["mechanism"] {
  switch (mechanism) {
    case "jump":
    case "punned":
    case "int3":
      return hasSlot ? mechanism : "other";
    default:
      return "other";
  }
}

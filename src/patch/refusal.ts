/**
 * Why a site does not get a mechanism, as data and as text.
 *
 * The set is closed: a new reason needs its line here, and the compiler says where.
 */
import type { ExitRefusal } from "../x86/function-exits.ts";
import type { PatchableEntryRefusal } from "../x86/patchable-entry.ts";
import type { RegionRefusal } from "../x86/regions.ts";
import type { RelocationRefusal } from "../x86/relocate.ts";
import { type BlacklistEntry, blacklistText } from "./blacklist.ts";

export type Refusal =
  | RegionRefusal
  | PatchableEntryRefusal
  | RelocationRefusal
  | {
      readonly reason: "text-differs";
      readonly at: bigint;
      readonly expected: Uint8Array;
      readonly found: Uint8Array;
    }
  | { readonly reason: "text-unreadable"; readonly at: bigint }
  | { readonly reason: "blacklisted"; readonly at: bigint; readonly entry: BlacklistEntry }
  | { readonly reason: "signals-blocked"; readonly at: bigint }
  | { readonly reason: "no-route"; readonly at: bigint }
  | { readonly reason: "landings-used-up"; readonly at: bigint }
  | { readonly reason: "landing-not-mapped"; readonly at: bigint }
  | { readonly reason: "return-address-claimed"; readonly at: bigint }
  | { readonly reason: "override-under-shadow-stack"; readonly at: bigint }
  /** Another tracer changes or relies on these bytes. */
  | { readonly reason: "other-tracer-in-region"; readonly at: bigint; readonly tracer: number }
  /** Another tracer displaces other bytes at the same site. */
  | { readonly reason: "other-tracer-displaces"; readonly at: bigint; readonly tracer: number }
  /** Another tracer has made a call of the site. */
  | { readonly reason: "other-tracer-calls"; readonly at: bigint; readonly tracer: number }
  | { readonly reason: "other-mechanism-forced"; readonly mechanism: string };

/** Why a function cannot have a return probe by a hijacked return address. */
export type ReturnRefusal =
  | { readonly reason: "not-a-function-entry"; readonly at: bigint }
  | { readonly reason: "returns-twice"; readonly name: string }
  | { readonly reason: "pops-arguments"; readonly at: bigint };

/** Why the return of a function is not probed at its exits. */
export type ExitsRefusal =
  | ExitRefusal
  | { readonly reason: "exit-needs-int3"; readonly at: bigint }
  | { readonly reason: "exit-refused"; readonly at: bigint; readonly refusal: Refusal }
  | { readonly reason: "tail-call-hijacks"; readonly at: bigint }
  | { readonly reason: "stack-forced" };

/** Why a program that may override a function's result cannot be attached. */
export type OverrideRefusal =
  | { readonly reason: "override-inside-function"; readonly at: bigint }
  | { readonly reason: "override-at-return"; readonly at: bigint };

/** One line, lower case, without the site: the caller names it. `print` may add symbols to addresses. */
export function refusalText(
  refusal: Refusal | ReturnRefusal | ExitsRefusal | OverrideRefusal,
  print: (addr: bigint) => string = (addr) => `0x${addr.toString(16)}`,
): string {
  switch (refusal.reason) {
    case "no-function":
      return `no function is known at ${print(refusal.at)}`;
    case "no-text":
      return `${print(refusal.at)} is not in executable memory of the image`;
    case "inside-instruction":
      return `${print(refusal.at)} is inside an instruction; the nearest ones are at ${print(refusal.before)} and ${print(refusal.after)}`;
    case "undecodable":
      return `the bytes at ${print(refusal.at)} are no instruction`;
    case "jump-into-region":
      return `jump into region: ${print(refusal.from)} leads to ${print(refusal.to)}`;
    case "jump-table-into-region":
      return `jump table entry into region: ${print(refusal.from)} leads to ${print(refusal.to)}`;
    case "address-taken-in-region":
      return `${print(refusal.from)} takes the address ${print(refusal.to)} in the region`;
    case "pointer-into-region":
      return `data points to ${print(refusal.to)} in the region`;
    case "landing-pad-in-region":
      return `exceptions land at ${print(refusal.to)} in the region`;
    case "indirect-jump-unresolved":
      return `the indirect jump at ${print(refusal.at)} may lead anywhere in the function`;
    case "call-inside-region":
      return `the call at ${print(refusal.at)} returns into the region`;
    case "syscall-in-region":
      return `the system call at ${print(refusal.at)} returns into the region`;
    case "unreached-code-in-region":
      return `nothing known leads to the code at ${print(refusal.at)} in the region`;
    case "region-crosses-function-end":
      return `the function ends at ${print(refusal.end)}, inside the region`;
    case "other-probe-in-region":
      return `another probe is at ${print(refusal.at)} in the region`;
    case "no-shorter-region":
      return `the instruction at ${print(refusal.at)} is long enough for a jump`;
    case "unrelocatable":
      return `the instruction at ${print(refusal.at)} cannot be moved: ${refusal.what}`;
    case "operand-out-of-reach":
      return `${print(refusal.to)}, which ${print(refusal.at)} uses, is too far from the detour`;
    case "detour-out-of-reach":
      return `the detour at ${print(refusal.detour)} is more than 2 GiB away`;
    case "text-differs":
      return `the text at ${print(refusal.at)} holds ${hex(refusal.found)}, its file ${hex(refusal.expected)}`;
    case "blacklisted":
      return blacklistText(refusal.entry);
    case "signals-blocked":
      return `the library may run ${print(refusal.at)} while it blocks all signals, and an int3 would kill the process then`;
    case "text-unreadable":
      return `the text at ${print(refusal.at)} cannot be read`;
    case "no-route":
      return (
        `from ${print(refusal.at)} no jump that ends in the following bytes leads to free memory, and neither padding nor ` +
        "instructions that could make way are near enough"
      );
    case "landings-used-up":
      return `no more memory is spent on landings, and ${print(refusal.at)} needs one`;
    case "landing-not-mapped":
      return `the landing at ${print(refusal.at)} could not be mapped`;
    case "other-tracer-in-region":
      return `process ${refusal.tracer} traces it, too, and its probes need the text at ${print(refusal.at)}`;
    case "other-tracer-displaces":
      return `process ${refusal.tracer} probes ${print(refusal.at)}, too, in another way`;
    case "other-tracer-calls":
      return `process ${refusal.tracer} probes ${print(refusal.at)}, too, by a call`;
    case "other-mechanism-forced":
      return `${refusal.mechanism} was asked for`;
    case "not-a-function-entry":
      return `${print(refusal.at)} is no function entry, so no return address is on top of the stack`;
    case "no-patchable-entry":
      return `${print(refusal.at)} does not begin with a 5-byte nop or five nops`;
    case "short-nop-sled":
      return `${print(refusal.at)} has ${refusal.lenBytes} ${refusal.lenBytes === 1 ? "byte" : "bytes"} of nops, and a call needs five`;
    case "nop-behind-call":
      return `the nop at ${print(refusal.at)} would go on behind the call`;
    case "return-address-claimed":
      return `${print(refusal.at)} is also where a return probe replaces the return address, which only a jump leaves in its place`;
    case "override-under-shadow-stack":
      return `a program may skip the function, and the shadow stack would still hold the address behind the call`;
    case "returns-twice":
      return `${refusal.name} returns more than once for one call`;
    case "entered-elsewhere":
      return `${print(refusal.from)} enters the function at ${print(refusal.to)}, behind its beginning`;
    case "pointer-into-function":
      return `data points to ${print(refusal.to)}, behind the function's beginning`;
    case "subroutine-inside":
      return `${print(refusal.from)} calls ${print(refusal.to)} inside of the function`;
    case "leads-into-function":
      return `${print(refusal.from)} jumps to ${print(refusal.to)}, which is neither a function nor a part of this one`;
    case "exit-unreached":
      return `nothing known leads to the exit at ${print(refusal.at)}`;
    case "return-address-unknown":
      return `at ${print(refusal.at)} the return address is not known to be on top of the stack`;
    case "runs-out":
      return `behind ${print(refusal.at)} the function goes on in another one`;
    case "exit-needs-int3":
      return `the exit at ${print(refusal.at)} would need an int3, and the entry takes a jump`;
    case "exit-refused":
      return `the exit at ${print(refusal.at)}: ${refusalText(refusal.refusal, print)}`;
    case "tail-call-hijacks":
      return `the return behind the tail call at ${print(refusal.at)} would need a changed return address`;
    case "stack-forced":
      return "--return stack was asked for";
    case "pops-arguments":
      return `${print(refusal.at)} takes its arguments from the stack as it returns`;
    case "override-inside-function":
      return `bpf_override_return skips a whole function, and ${print(refusal.at)} is no function entry`;
    case "override-at-return":
      return `bpf_override_return at the return of ${print(refusal.at)}: the function has run already`;
    default:
      return refusal satisfies never;
  }
}

function hex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

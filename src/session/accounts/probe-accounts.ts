/**
 * The accounts of a session's probes: which number belongs to which attach point as the user wrote it, and what became of
 * its hits in all targets together.
 *
 * Returns that were not probed are counted at the function's entry, where it is not known which of several return probes
 * would have run: all of them missed one. Each such set of probes has an account of its own for that.
 */
import type { HitCounts } from "../../bpf/index.ts";
import type { AttachedProbe } from "../attach/point-builder.ts";
import type { AttachRequest } from "../attach/probe-resolution.ts";
import type { SharedMaps } from "../attach/shared-maps.ts";

/** What became of the hits of one probe, and how its places are armed. */
export interface ProbeCounts extends HitCounts {
  /** The attach point as written. */
  readonly probe: string;
  /** How many places are armed in which way. */
  readonly mechanisms: Readonly<Record<string, number>>;
}

/** The part of the session's memory that is read here. */
export type AccountMemory = Pick<SharedMaps, "account" | "accountBytes">;

interface Account {
  readonly probe: string;
  readonly bundle: number;
  readonly programIndex: number;
  readonly mechanisms: Map<string, number>;
}

/** Sets of return probes that get an account; of further ones the first probe is blamed. */
const MOST_SETS = 1024;

export class ProbeAccounts {
  /** Index of the map that stands for an account in programs that keep theirs themselves. */
  readonly map: number | undefined;
  readonly #accounts = new Map<number, Account>();
  /** By the accounts of the probes. */
  readonly #missed = new Map<string, { readonly account: number; readonly of: readonly number[] }>();
  #next = 0;

  constructor(map: number | undefined) {
    this.map = map;
  }

  /** The request with an account of its own. */
  open(request: AttachRequest): AttachRequest {
    const account = this.#next++;
    const { attachPoint, programIndex, bundle = 0 } = request;
    this.#accounts.set(account, { probe: attachPoint.name, bundle, programIndex, mechanisms: new Map() });
    return { ...request, account };
  }

  /** An account for the hits of a place, whatever runs there. */
  openSite(): number {
    return this.#next++;
  }

  /** The account in which it is counted that these return probes have missed a return. */
  forMissed(probes: readonly AttachedProbe[]): number {
    const of = probes.flatMap(({ run }) =>
      run.kind === "program" && run.account !== undefined ? [run.account] : [],
    );
    const [first] = of;
    if (first === undefined) throw new Error("account for missed returns: no probe has an account");
    if (of.length === 1) return first;
    const key = of.join(" ");
    let set = this.#missed.get(key);
    if (set === undefined) {
      if (this.#missed.size >= MOST_SETS) return first;
      set = { account: this.#next++, of };
      this.#missed.set(key, set);
    }
    return set.account;
  }

  /** Says how a place of these probes is armed. */
  notePlace(probes: readonly AttachedProbe[], mechanism: string): void {
    const accounts = new Set(probes.map(({ run }) => (run.kind === "program" ? run.account : undefined)));
    for (const account of accounts) {
      const mechanisms = this.#accounts.get(account ?? -1)?.mechanisms;
      mechanisms?.set(mechanism, (mechanisms.get(mechanism) ?? 0) + 1);
    }
  }

  /** The attach point of an account as it was written. */
  nameOf(account: number): string | undefined {
    return this.#accounts.get(account)?.probe;
  }

  /** What became of the hits of one probe. */
  countsOf(account: number, memory: AccountMemory): HitCounts {
    const counts = memory.account(account);
    const sets = [...this.#missed.values()].filter(({ of }) => of.includes(account));
    const missed = sets.reduce((sum, set) => sum + memory.account(set.account).missed, counts.missed);
    const unwound = sets.reduce((sum, set) => sum + memory.account(set.account).unwound, counts.unwound);
    return { ...counts, missed, unwound };
  }

  /** All probes, in the order in which they were opened. */
  counts(memory: AccountMemory): ProbeCounts[] {
    return [...this.#accounts].map(([account, { probe, mechanisms }]) => ({
      probe,
      ...this.countsOf(account, memory),
      mechanisms: Object.fromEntries(mechanisms),
    }));
  }

  /** The accounts of all attach points of these programs of a bundle, as memory. */
  bytesOf(programs: readonly number[], memory: AccountMemory, of = 0): Uint8Array[] {
    return [...this.#accounts].flatMap(([account, { bundle, programIndex }]) =>
      bundle === of && programs.includes(programIndex) ? [memory.accountBytes(account)] : [],
    );
  }

  /** Returns that were not probed, in all. */
  missedReturns(memory: AccountMemory): bigint {
    const accounts = [...this.#accounts.keys(), ...[...this.#missed.values()].map(({ account }) => account)];
    return accounts.reduce((sum, account) => sum + memory.account(account).missed, 0n);
  }
}

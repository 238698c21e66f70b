/** The fixture `hot`: a process whose functions are called in a tight loop on request, each beside an equal twin. */
import { Child } from "./child.ts";
import { buildFixture, type Placement } from "./fixture.ts";

export type { Placement };

/** How long a first instruction is, in bytes. */
export const firstLengths = [1, 2, 3, 4, 5, 15] as const;
export type FirstLength = (typeof firstLengths)[number];

/** How the probed function begins. `hemmed`: something may jump to its second instruction. */
export type Site = "mov" | "push" | "nop5" | "sled" | "imm" | `first${FirstLength}` | `hemmed${FirstLength}`;

/** `samples` times `calls` calls of the function and `twinCalls` of its twin, `pauseUs` microseconds apart. */
export interface Pace {
  readonly calls: number;
  readonly twinCalls: number;
  readonly samples: number;
  readonly pauseUs: number;
}

/** Nanoseconds per call of a function, and of its twin right after. */
export interface Sample {
  readonly ownNs: number;
  readonly twinNs: number;
}

export class HotProcess implements AsyncDisposable {
  readonly binary: string;
  readonly placement: Placement;
  readonly #child: Child;
  readonly #addresses: ReadonlyMap<string, bigint>;

  private constructor(
    binary: string,
    placement: Placement,
    child: Child,
    addresses: ReadonlyMap<string, bigint>,
  ) {
    this.binary = binary;
    this.placement = placement;
    this.#child = child;
    this.#addresses = addresses;
  }

  static async start(placement: Placement, env: Readonly<Record<string, string>> = {}): Promise<HotProcess> {
    const binary = buildFixture("hot", placement);
    const child = new Child([binary], env);
    const addresses = new Map<string, bigint>();
    for (;;) {
      const { text } = await child.line();
      if (text === "ready") return new HotProcess(binary, placement, child, addresses);
      const [name = "", address = ""] = text.split(" ");
      addresses.set(name, BigInt(`0x${address}`));
    }
  }

  get pid(): number {
    return this.#child.pid;
  }

  addressOf(site: Site): bigint {
    return this.#addresses.get(functionOf(site))!;
  }

  /** One more sample than are returned is taken. */
  async measure(site: Site, { calls, twinCalls, samples, pauseUs }: Pace): Promise<Sample[]> {
    this.#child.send(`${functionOf(site)} ${calls} ${twinCalls} ${samples} ${pauseUs}\n`);
    const results: Sample[] = [];
    while (results.length < samples) {
      const [ownNs = Number.NaN, twinNs = Number.NaN] = (await this.#child.line()).text
        .split(" ")
        .map(Number);
      results.push({ ownNs, twinNs });
    }
    return results;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child[Symbol.asyncDispose]();
  }
}

/** Calls of the function that `HotProcess.measure` makes. */
export const callsIn = ({ calls, samples }: Pace): number => calls * (samples + 1);

/** The symbol in the fixture. */
export const functionOf = (site: Site): string => `begins_with_${site}`;

/**
 * How long tests wait at most, and how often they repeat something. All limits of time go through here: an emulated processor (scripts/pku-machine.sh) is many
 * times slower than a real one.
 */

/** How many times longer than usual anything may take: TRAPLINE_SLOWNESS, 1 without it. */
const slowness = Number(process.env.TRAPLINE_SLOWNESS ?? "1");

/** A limit for this machine, from one in milliseconds for a usual one. */
export function patient(limitMs: number): number {
  return limitMs * slowness;
}

/** How often to repeat what a usual machine repeats so often. */
export function repeated(times: number): number {
  return Math.ceil(times / slowness);
}

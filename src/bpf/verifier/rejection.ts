/** Why a program was refused; thrown inside the verifier and turned into a verdict at its door. */
export class Rejection extends Error {
  readonly code = "bpf-rejected";
}

export function reject(message: string): never {
  throw new Rejection(message);
}

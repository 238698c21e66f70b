/** Why an object file cannot be read. Thrown inside of this folder only; `readObject` returns it as a value. */

export class ObjectError extends Error {
  readonly code = "bad-object";
}

/** Ends the reading of the object. */
export function fail(message: string): never {
  throw new ObjectError(message);
}

/** Why a probe's place was not found in a process, as data and in words. */
import { describePlaceRefusal, type PlaceRefusal } from "../../elf/index.ts";

export type LocationRefusal =
  | {
      readonly kind: "unknown-image";
      readonly name: string;
      readonly nearest: readonly string[];
      /** Base names of all images. */
      readonly images: readonly string[];
    }
  | { readonly kind: "image-unreadable"; readonly image: string; readonly cause: unknown }
  /** The file has the place, but the process has nothing executable mapped there. */
  | { readonly kind: "not-mapped"; readonly image: string }
  | {
      readonly kind: "place";
      readonly image: string;
      readonly refusal: PlaceRefusal;
      /** Images that define the unknown function. */
      readonly definedIn: readonly string[];
      /** For a run-time address given as file address: the file address. */
      readonly fileAddress: bigint | undefined;
    };

/** One line that says what was looked for, where, and why it is not there; and advice if there is any. */
export function describeLocationRefusal(refusal: LocationRefusal): {
  message: string;
  hint: string | undefined;
} {
  switch (refusal.kind) {
    case "unknown-image":
      return {
        message: `no image ${refusal.name} is mapped by the process`,
        hint: hintForImage(refusal),
      };
    case "image-unreadable": {
      const { cause } = refusal;
      return {
        message: cause instanceof Error ? cause.message : `cannot read ${refusal.image}`,
        hint: undefined,
      };
    }
    case "not-mapped":
      return {
        message: `${refusal.image}: the process has no executable mapping of the file there`,
        hint: "a program that moves its code to huge pages at start cannot be probed",
      };
    case "place": {
      const { message, hint } = describePlaceRefusal(refusal.refusal);
      const file = refusal.fileAddress;
      const better =
        file !== undefined
          ? `that is a run-time address; its file address is 0x${file.toString(16)}`
          : refusal.definedIn.length > 0
            ? `it is defined in ${refusal.definedIn.slice(0, 3).join(", ")}`
            : hint;
      return { message: `${refusal.image}: ${message}`, hint: better };
    }
    default:
      return refusal satisfies never;
  }
}

function hintForImage(refusal: LocationRefusal & { kind: "unknown-image" }): string {
  if (refusal.nearest.length > 0) return `did you mean ${refusal.nearest.join(", ")}?`;
  const [only, ...others] = refusal.images;
  if (only !== undefined && others.length === 0)
    return `the only image is ${only}: a statically linked program holds its libraries' functions itself`;
  const shown = refusal.images.slice(0, 8).join(", ");
  return `mapped are ${shown}${refusal.images.length > 8 ? ", ..." : ""}`;
}

/** The engine's own probe at the dynamic loader, by which a target waits for probes in what it has just loaded. */
import { type OtherTracers, planSites } from "../../patch/index.ts";
import { LOAD_GATE_FUNCTION } from "../../patch/load-gate.ts";
import type { Attachment } from "./attachment.ts";
import type { PlannedPoint } from "./point-builder.ts";
import type { CodeCache } from "./probe-resolution.ts";

/** The point to be armed; undefined in a program without a loader, which will never load anything. */
export function loadGatePoint(
  attachment: Attachment,
  codes: CodeCache,
  others: OtherTracers,
): PlannedPoint | undefined {
  const { images } = attachment;
  const location = images.list
    .flatMap((image) => images.resolve(image.path, { kind: "symbol", symbol: LOAD_GATE_FUNCTION }).locations)
    .at(0);
  if (location === undefined) return undefined;
  const code = codes.of(location.image);
  const [plan] = planSites(code, [location.addr], { mechanism: "jump", others });
  if (plan === undefined || plan.kind === "refused") return undefined;
  const { image } = location;
  return {
    plan,
    code,
    image: { name: image.name, range: { start: image.start, end: image.end } },
    isOptional: true,
    probes: [{ run: { kind: "load-gate", words: attachment.gateWordsAt }, when: "entry", cookie: 0n }],
  };
}

/**
 * The engine's own probes at the unwinders of a process, where return addresses are replaced: so that exceptions find their
 * way through them (patch/unwind-table.ts). One for each image that has an unwinder of its own: libgcc_s, and programs that
 * are linked with it statically.
 */
import { type OtherTracers, planSites } from "../../patch/index.ts";
import { cfaOffsetOf, FIND_FDE_FUNCTION } from "../../patch/unwind-table.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import { textBytes } from "../../x86/code-image.ts";
import type { Attachment } from "./attachment.ts";
import type { PlannedPoint } from "./point-builder.ts";
import type { CodeCache } from "./probe-resolution.ts";

const GET_CFA_FUNCTION = "_Unwind_GetCFA";
const GET_CFA_BYTES = 16n;

/** Points for the images' unwinders, if the points given or those that are armed already replace return addresses. */
export function unwindPoints(
  attachment: Attachment,
  codes: CodeCache,
  points: readonly PlannedPoint[],
  images: readonly MappedImage[],
  others: OtherTracers,
): PlannedPoint[] {
  const replaces = ({ probes }: PlannedPoint) => probes.some(({ when }) => when === "return");
  if (!attachment.replacesReturns && !points.some(replaces)) return [];
  const taken = new Set([
    ...points.map(({ plan }) => plan.at),
    ...attachment.probes.points.map(({ at }) => at),
  ]);
  return images.flatMap((image) => unwindPoint(attachment, codes, image, taken, others) ?? []);
}

function unwindPoint(
  attachment: Attachment,
  codes: CodeCache,
  image: MappedImage,
  taken: ReadonlySet<bigint>,
  others: OtherTracers,
): PlannedPoint | undefined {
  const find = (symbol: string) =>
    attachment.images
      .resolve(image.path, { kind: "symbol", symbol })
      .locations.find(({ image: found }) => found === image);
  const location = find(FIND_FDE_FUNCTION);
  if (location === undefined || taken.has(location.addr)) return undefined;
  const code = codes.of(image);
  const [plan] = planSites(code, [location.addr], { mechanism: "jump", others });
  if (plan === undefined || plan.kind === "refused" || !plan.isEntry) return undefined;
  const getCfa = find(GET_CFA_FUNCTION);
  const body = getCfa && textBytes(code.image, getCfa.addr, getCfa.addr + GET_CFA_BYTES);
  const cfaOffset = body && cfaOffsetOf(body);
  return {
    plan,
    code,
    image: { name: image.name, range: { start: image.start, end: image.end } },
    probes: [{ run: attachment.unwindHook(location.addr, cfaOffset), when: "entry", cookie: 0n }],
  };
}

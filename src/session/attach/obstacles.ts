/** What keeps a session from a process, found before anything of it is changed. Errors say what would do. */
import { refusalText } from "../../patch/index.ts";
import { describeCommitRefusal } from "../../probe/probe-set.ts";
import type { ProcessImages } from "../../target/process/images.ts";
import { findTrapObstacle } from "../../target/process/trap-obstacle.ts";
import type { GateChoice } from "../options.ts";
import { SessionError } from "../session-error.ts";
import {
  chooseGate,
  chooseGates,
  type GateRequest,
  type Gates,
  levelsOf,
  type StackProof,
} from "./gate-level.ts";
import type { PlannedPoint } from "./point-builder.ts";
import type { ProbeProblem } from "./probe-resolution.ts";
import { checkGateLevels, isUnderSeccomp } from "./seccomp.ts";

/** What a session's probes run behind in a process. Throws SessionError where it cannot have that. */
export function gatesIn(
  images: Pick<ProcessImages, "pid" | "program">,
  session: {
    readonly gate?: GateChoice | undefined;
    readonly requests: readonly GateRequest[];
    readonly proofs: readonly StackProof[];
  },
): Gates {
  const process = chooseGate(session.gate ?? "auto", images.program, isUnderSeccomp(images.pid));
  const gates = chooseGates(process, session);
  checkGateLevels(images, levelsOf(gates));
  return gates;
}

/** Points that need a trap must not be planned where one would be fatal. Throws SessionError. */
export function checkTraps(pid: number, points: readonly PlannedPoint[]): void {
  const trapped = points.find((point) => point.plan.mechanism === "int3");
  if (trapped === undefined) return;
  const obstacle = findTrapObstacle(pid);
  if (obstacle === undefined) return;
  const jump = trapped.plan.refused.find((rung) => rung.mechanism === "jump");
  throw new SessionError(
    obstacle.kind,
    {
      operation: "probe",
      object: `0x${trapped.plan.at.toString(16)} in ${trapped.image.name}`,
      reason: describeCommitRefusal(obstacle),
    },
    jump === undefined ? undefined : `a jump is refused there: ${refusalText(jump.refusal)}`,
  );
}

/** One error for all attach points that cannot be probed; the first is told in full. */
export function problemError(problems: readonly ProbeProblem[]): SessionError {
  const [first, ...rest] = problems;
  const more =
    rest.length === 0 ? "" : ` (and ${rest.length} more: ${rest.map((problem) => problem.probe).join(", ")})`;
  return new SessionError(
    "cannot-probe",
    { operation: "probe", object: first!.probe, reason: first!.reason + more },
    first!.hint,
  );
}

/** Levels of the gate that are asked for single probes, by how these are written. */
import { Glob } from "../elf/index.ts";
import type { AttachRequest } from "./attach/probe-resolution.ts";
import type { ProbeGate } from "./options.ts";
import { SessionError } from "./session-error.ts";

/** The requests, each with what was asked for it last. Throws SessionError where nothing is written so. */
export function withGates(
  requests: readonly AttachRequest[],
  gates: readonly ProbeGate[] = [],
): AttachRequest[] {
  let asked = [...requests];
  for (const { probes, level } of gates) {
    const glob = new Glob(probes);
    const isMeant = ({ name }: AttachRequest["attachPoint"]) => name === probes || glob.matches(name);
    if (!requests.some(({ attachPoint }) => isMeant(attachPoint)))
      throw new SessionError(
        "no-such-probe",
        { operation: "choose gates", object: `--gate ${probes}=${level}`, reason: "no probe is written so" },
        requests.length === 0
          ? undefined
          : `there is ${requests.map(({ attachPoint }) => attachPoint.name).join(", ")}`,
      );
    asked = asked.map((request) => (isMeant(request.attachPoint) ? { ...request, gate: level } : request));
  }
  return asked;
}

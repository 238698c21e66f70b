/**
 * A process that the test itself is attached to, with the programs of a script at hand: what a session does, one step at a
 * time. ptrace belongs to the test's own thread.
 */
import { closeSync } from "node:fs";
import type { HitCounts } from "../../src/bpf/index.ts";
import { verifyProgram } from "../../src/bpf/verifier/index.ts";
import { compileScript } from "../../src/lang/index.ts";
import { ProbeAccounts } from "../../src/session/accounts/probe-accounts.ts";
import { Attachment } from "../../src/session/attach/attachment.ts";
import type { FunctionConsumer } from "../../src/session/attach/function-ops.ts";
import type { PlannedPoint } from "../../src/session/attach/point-builder.ts";
import { CodeCache, ProbeNames, resolveProbes } from "../../src/session/attach/probe-resolution.ts";
import { layoutSharedMaps, SharedMaps } from "../../src/session/attach/shared-maps.ts";
import type { RestoreReport } from "../../src/session/leave/restore-process.ts";
import type { GateLevel } from "../../src/session/options.ts";
import { userRequests } from "../../src/session/trace.ts";
import { ProcessImages } from "../../src/target/process/images.ts";
import { mapShared } from "../../src/target/process/libc.ts";
import { TracedProcess } from "../../src/target/process/traced-process.ts";
import type { ProcessTarget } from "../../src/target/process/tracer.ts";

/** The operations of a traced process as promises, and those that its main program's end adds. */
function asTarget(traced: TracedProcess): ProcessTarget {
  const own: Readonly<Record<string, unknown>> = {
    pid: traced.pid,
    locked: async (use: () => Promise<unknown>) => await use(),
    createShared: async (name: string, lenBytes: number, place?: bigint) => {
      const { at, fd } = traced.createShared(name, lenBytes, place);
      return { at, fd, mapping: mapShared(fd, lenBytes) };
    },
  };
  return new Proxy(traced, {
    get: (target, name: string) =>
      own[name] ??
      (async (...args: readonly unknown[]) =>
        (target[name as keyof TracedProcess] as (...all: readonly unknown[]) => unknown).apply(target, [
          ...args,
        ])),
  }) as unknown as ProcessTarget;
}

export class Attached {
  readonly attachment: Attachment;
  readonly codes = new CodeCache();
  readonly maps: SharedMaps;
  /** The attach points of the script, each with a program and an account of its own. */
  readonly #requests: ReturnType<typeof userRequests>;

  private constructor(attachment: Attachment, maps: SharedMaps, requests: ReturnType<typeof userRequests>) {
    this.attachment = attachment;
    this.maps = maps;
    this.#requests = requests;
  }

  static async to(pid: number, text: string, gate: GateLevel = "none"): Promise<Attached> {
    const compiled = compileScript(text, { fileName: "test", accounts: true });
    if (compiled.kind === "errors") throw new Error(`${text}: ${JSON.stringify(compiled.diagnostics)}`);
    const { bundle, accountMap } = compiled.script;
    const proofs = bundle.programs.map((program) => {
      const verdict = verifyProgram(program, bundle.maps);
      if (verdict.kind === "rejected") throw new Error(verdict.message);
      return verdict.proof;
    });
    const accounts = new ProbeAccounts(accountMap);
    const requests = userRequests(compiled.script).map((request) => accounts.open(request));
    const mapsLayout = layoutSharedMaps(bundle.maps, requests.length);
    const attachment = await Attachment.create({
      target: asTarget(TracedProcess.open(pid)),
      images: ProcessImages.open(pid),
      bundle,
      proofs,
      mapsLayout,
      accounts,
      sharedMapsFd: undefined,
      capacity: 256,
      maxActive: 64,
      perfMap: false,
      gates: { process: { level: gate, reason: "the test says so", isAuto: false }, others: [] },
    });
    const { mapping, fd } = attachment.ownMaps!;
    closeSync(fd);
    return new Attached(attachment, new SharedMaps(bundle.maps, mapsLayout, mapping.buffer), requests);
  }

  /** The attach points with these numbers, planned as a session would. */
  plan(...probes: readonly number[]): readonly PlannedPoint[] {
    const { points, problems } = resolveProbes(
      this.attachment.images,
      probes.map((index) => this.#requests[index]!),
      { mechanism: "auto", names: new ProbeNames(), codes: this.codes, armed: [] },
    );
    if (problems.length > 0) throw new Error(problems[0]!.reason);
    return points;
  }

  /** What an attach point runs, to be registered anywhere. */
  consumer(probe: number, cookie = 0n): FunctionConsumer {
    const { programIndex, account } = this.#requests[probe]!;
    return { run: { kind: "program", index: programIndex, account }, cookie };
  }

  counts(probe: number): HitCounts {
    return this.maps.account(this.#requests[probe]!.account!);
  }

  /** Puts back a child that the process has forked. */
  async restoreHeir(pid: number): Promise<RestoreReport> {
    return await this.attachment.restoreHeir(asTarget(TracedProcess.open(pid)));
  }

  async restore(): Promise<RestoreReport> {
    const report = await this.attachment.restore();
    await this.attachment.close();
    return report;
  }
}

/**
 * Frida's Interceptor, from its Python package. The callbacks are C (a CModule), or JavaScript in its default engine.
 * Each counts its calls, and does nothing else.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child } from "../child.ts";
import { CodeBytes } from "../code-bytes.ts";
import { repository } from "../fixture.ts";
import type { Tracer } from "./tracer.ts";

const venv = join(tmpdir(), "trapline-bench-frida");

/** A Python that has the package: the one of the virtual environment, or the machine's own. */
function findPython(): string | undefined {
  return [join(venv, "bin/python"), "python3"].find(
    (python) =>
      (!python.startsWith("/") || existsSync(python)) &&
      spawnSync(python, ["-c", "import frida"]).status === 0,
  );
}

export function frida(callback: "c" | "js"): Tracer {
  let python: string | undefined;
  return {
    name: callback === "c" ? "Frida, C callback" : "Frida, JavaScript callback",
    targetEnv: {},
    missing() {
      python ??= findPython();
      return python === undefined
        ? `not installed: python3 -m venv ${venv} && ${venv}/bin/pip install frida`
        : undefined;
    },
    async plant(target, site, work) {
      if (work !== "count" && work !== "return") throw new Error(`Frida's side of "${work}" is not written`);
      const code = new CodeBytes(target.pid, target.addressOf(site));
      const script = join(repository, "bench/tracers/frida-interceptor.py");
      const address = `0x${target.addressOf(site).toString(16)}`;
      const child = new Child([python!, script, `${target.pid}`, address, callback, work]);
      await child.line(({ text }) => text === "ready");
      await code.until("changed");
      return {
        async remove() {
          child.send("\n");
          const hits = Number((await child.line()).text);
          await child.end();
          code[Symbol.dispose]();
          return hits;
        },
      };
    },
  };
}

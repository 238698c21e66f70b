/** Programs in Go for tests, built on first use into test/fixtures/build without anything but the standard library. */
import { execFileSync } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export function findGo(): string | undefined {
  const places = (process.env.PATH ?? "").split(":").concat("/usr/local/go/bin");
  return places.map((place) => join(place, "go")).find(existsSync);
}

/** Path of the program built of `test/fixtures/NAME.go`. */
export function buildGo(command: string, name: string): string {
  const folder = fileURLToPath(new URL("../fixtures", import.meta.url));
  const target = join(folder, "build", name);
  const source = join(folder, `${name}.go`);
  if (existsSync(target) && statSync(target).mtimeMs > statSync(source).mtimeMs) return target;
  execFileSync(command, ["build", "-o", target, source], { stdio: "pipe", cwd: tmpdir() });
  return target;
}

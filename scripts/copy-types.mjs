// Copies the declarations that the library's own one needs from .build/ to dist/types/.
import { copyFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";

const copied = new Set();

function copy(file) {
  if (copied.has(file)) return;
  copied.add(file);
  const from = join(".build", file);
  const to = join("dist/types", file);
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, to);
  for (const [, name] of readFileSync(from, "utf8").matchAll(/(?:from|import\()\s*"(\.[^"]+)"/g)) {
    const next = join(dirname(file), name.replace(/\.[jt]s$/, ".d.ts"));
    if (!existsSync(join(".build", next))) throw new Error(`${from} needs ${next}, which is not there`);
    copy(next);
  }
}

copy("index.d.ts");

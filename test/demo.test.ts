/** What `npm start` shows, for a shorter time. */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { commandPath } from "./support/built-command.ts";

const demo = fileURLToPath(new URL("../demo/start.js", import.meta.url));

it("the demo traces a Node process at work and leaves it as it was", () => {
  if (!existsSync(commandPath)) throw new Error("dist/cli/main.js is not there: npm run build");
  const run = spawnSync(process.execPath, [demo, "3"], { encoding: "utf8", timeout: 50_000 });
  expect(run.stderr).toBe("");
  expect(run.status).toBe(0);
  const out = run.stdout;
  // The sites, with bytes before and after.
  expect(out).toMatch(
    /open\S* \(libc\S*\)\n +([0-9a-f]{2} )+ -> {2}(e9|cc)( [0-9a-f]{2})* {3}(jump|int3) to 0x/,
  );
  // The results.
  for (const map of ["@opened[", "@read_us", "@deflate_us", "@hashed_bytes", "@node_reads: "])
    expect(out).toContain(map);
  expect(out).toMatch(/@opened\[chunks\/\S+\.js\]: \d+/);
  // The proof.
  expect(out).toContain(": differs");
  expect(out).toContain(": the same as before");
  expect(out).toMatch(/went on all the time: \d+ rounds, 0 wrong results/);
});

/** Which rungs the images of this machine get, and what the command says about it. */
import { describe, expect, test } from "vitest";
import { libcPath, nodePath, openElf } from "../../../test/support/elf-images.ts";
import { buildFixture } from "../../../test/support/fixtures.ts";
import { recordIo } from "../../../test/support/session-io.ts";
import type { CoverageOptions } from "../options.ts";
import { type Coverage, coverage, fileImage, functionsOf, measureCoverage } from "./coverage.ts";

const share = ({ mechanisms, total }: Coverage) => (mechanisms.jump + mechanisms.punned) / total;

describe("nearly everything is free of traps", () => {
  test("functions of the C library", () => {
    const found = measureCoverage(fileImage(openElf(libcPath), libcPath), "functions");
    expect(found.total).toBeGreaterThan(2000);
    expect(share(found)).toBeGreaterThan(0.999);
  });

  test("instructions of the C library, by sample", () => {
    const found = measureCoverage(fileImage(openElf(libcPath), libcPath), "instructions", 0.05);
    expect(found.total).toBeGreaterThan(5000);
    expect(share(found)).toBeGreaterThan(0.99);
    // Five bytes alone would give less.
    expect(found.mechanisms.jump / found.total).toBeLessThan(0.97);
  });

  test("instructions of node, by sample", () => {
    const found = measureCoverage(fileImage(openElf(nodePath), nodePath), "instructions", 0.001);
    expect(found.total).toBeGreaterThan(2000);
    expect(share(found)).toBeGreaterThan(0.99);
  });
});

const shortSites = () => {
  const path = buildFixture("short-sites");
  return { path, image: fileImage(openElf(path), path) };
};

const sum = (counts: Readonly<Record<string, number>>) =>
  Object.values(counts).reduce((all, count) => all + count, 0);

test("counts, tactics and reasons add up, and each site is named once", () => {
  const { image } = shortSites();
  const sites: string[] = [];
  const found = measureCoverage(image, "instructions", 1, (site) => sites.push(`${site.at}`));
  const { mechanisms, tactics, reasons, total } = found;
  expect(sum(mechanisms)).toBe(total);
  expect(sum(tactics)).toBe(mechanisms.punned);
  expect(sum(reasons.jump ?? {})).toBe(total - mechanisms.jump);
  expect(sum(reasons.punned ?? {})).toBe(mechanisms.int3 + mechanisms.refused);
  expect(new Set(sites).size).toBe(total);
});

test("functions are found once each, in order", () => {
  const starts = [...functionsOf(shortSites().image.code)].map(({ start }) => start);
  expect(starts.length).toBeGreaterThan(5);
  for (let i = 1; i < starts.length; i++) expect(starts[i]! > starts[i - 1]!).toBe(true);
});

test("a sample is the same every time, and smaller", () => {
  const { image } = shortSites();
  const sample = () => measureCoverage(image, "functions", 0.5);
  expect(sample()).toEqual(sample());
  expect(sample().total).toBeLessThan(measureCoverage(image, "functions").total);
});

async function run(options: Partial<CoverageOptions>): Promise<string> {
  const io = recordIo();
  const base = {
    pid: undefined,
    candidates: "functions",
    sample: 1,
    verbose: false,
    format: "text",
  } as const;
  expect(await coverage({ ...base, image: shortSites().path, ...options }, io)).toBe(0);
  return io.outText();
}

test("as JSON: one object", async () => {
  const lines = (await run({ format: "json" })).trimEnd().split("\n");
  expect(lines).toHaveLength(1);
  const { type, data } = JSON.parse(lines[0]!) as { type: string; data: Record<string, unknown> };
  expect(type).toBe("coverage");
  expect(data.image).toBe(shortSites().path);
  expect(Object.keys(data.mechanisms as object)).toEqual(["call", "jump", "punned", "int3", "refused"]);
});

test("as text, with a line for each candidate", async () => {
  const out = await run({ candidates: "instructions", verbose: true });
  expect(out).toMatch(/^0x[0-9a-f]+ {2}punned \(\w+\) +hemmed\+0x19 {2}not jump: jump-into-region$/m);
  expect(out).toMatch(/^ {2}punned +[1-9]\d* +[\d.]+ % {2}\(.*pun/m);
});

test("a file that is not there", async () => {
  await expect(run({ image: "/nowhere" })).rejects.toThrow("coverage: /nowhere: there is no such file");
});

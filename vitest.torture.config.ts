import { defineConfig } from "vitest/config";

/** `npm run torture`: what takes minutes, one file after the other. */
export default defineConfig({
  test: {
    include: ["test/torture/**/*.torture.ts"],
    pool: "forks",
    maxWorkers: 1,
    testTimeout: 3_600_000,
    hookTimeout: 120_000,
  },
});

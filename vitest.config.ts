import { defineConfig } from "vitest/config";
import { patient } from "./test/support/patience.ts";

export default defineConfig({
  test: {
    include: ["src/**/*.test.ts", "test/**/*.test.ts", "bench/**/*.test.ts"],
    pool: "forks",
    // Targets are timed and stopped in these tests: two cores, so at most two files at once.
    maxWorkers: 2,
    testTimeout: patient(60_000),
    hookTimeout: patient(120_000),
  },
});

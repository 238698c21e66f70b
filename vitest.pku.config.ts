import { defineConfig } from "vitest/config";
import usual from "./vitest.config.ts";

/** `npm run test:pku`: what runs where there are protection keys. */
export default defineConfig({
  test: {
    ...usual.test,
    include: [
      "src/gate/**/*.test.ts",
      "src/patch/detour.test.ts",
      "src/patch/function-trampoline.test.ts",
      "test/e2e/gate*.test.ts",
      "**/*.pku.test.ts",
    ],
  },
});

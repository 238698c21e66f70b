/**
 * Tests that need protection keys of memory. Files of them are named `*.pku.test.ts`: where there are no keys they are
 * skipped, and `npm run test:pku` runs them in a machine that has some.
 */
import { readFileSync } from "node:fs";
import { describe } from "vitest";

/** Whether the processor has protection keys and the kernel uses them (Documentation/core-api/protection-keys.rst). */
export const hasProtectionKeys = /^flags\s*:.*\bospke\b/m.test(readFileSync("/proc/cpuinfo", "utf8"));

// Skipping everything must not look like success where keys are the purpose.
if (process.env.TRAPLINE_NEEDS_KEYS === "1" && !hasProtectionKeys)
  throw new Error("this machine should have protection keys, but /proc/cpuinfo has no ospke");

/** `describe`, skipped where there are no protection keys. */
export const describeWithKeys = describe.skipIf(!hasProtectionKeys);

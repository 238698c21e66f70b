import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";
import usual from "./vitest.config.ts";

/** Deals the files out in turn, there and back: the default, by a hash of their names, may give one machine all that take long. */
class InTurn extends BaseSequencer {
  override async shard(files: TestSpecification[]): Promise<TestSpecification[]> {
    const { index, count } = this.ctx.config.shard!;
    const sorted = [...files].sort((a, b) => (a.moduleId < b.moduleId ? -1 : 1));
    const turn = (i: number) => (Math.floor(i / count) % 2 === 0 ? i % count : count - 1 - (i % count));
    return sorted.filter((_, i) => turn(i) === index - 1);
  }
}

/** `npm run test:pku`: what runs where there are protection keys. */
export default defineConfig({
  test: {
    ...usual.test,
    include: ["src/gate/**/*.test.ts", "test/e2e/gate-strict.test.ts", "**/*.pku.test.ts"],
    sequence: { sequencer: InTurn },
  },
});

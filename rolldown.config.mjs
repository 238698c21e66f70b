/**
 * Bundles what tsc has written to .build/: a command that is a few files starts in half the time of one that is
 * hundreds of modules.
 *
 * The thread that does all ptrace calls is started by the name of its file, which therefore lies among the chunks: whoever
 * starts it is one of them.
 */
import { defineConfig } from "rolldown";

export default defineConfig({
  input: {
    "cli/main": "./.build/cli/main.js",
    index: "./.build/index.js",
    "session/index": "./.build/session/index.js",
    "chunks/tracer-worker": "./.build/target/process/tracer-worker.js",
  },
  platform: "node",
  external: ["koffi", "iced-x86"],
  output: {
    dir: "dist",
    format: "esm",
    cleanDir: true,
    entryFileNames: "[name].js",
    chunkFileNames: "chunks/[name].js",
    // What Node has to read and parse at each start: names stay, so that stacks can be read.
    comments: false,
    minify: { compress: false, mangle: false, codegen: { removeWhitespace: true } },
  },
});

#!/usr/bin/env node
/** The command. Whatever goes wrong is shown as one line, and as a hint where there is one; the exit code is then 1. */
import { readFileSync } from "node:fs";
import { type CommandLine, parseArguments } from "./arguments.ts";
import { describeFailure } from "./failure.ts";
import { helpText } from "./help.ts";
import { perform } from "./perform.ts";

async function main(argv: readonly string[]): Promise<number> {
  let commandLine: CommandLine | undefined;
  try {
    commandLine = parseArguments(argv);
    switch (commandLine.action.verb) {
      case "help":
        process.stdout.write(helpText());
        return 0;
      case "version":
        process.stdout.write(`trapline ${readVersion()}\n`);
        return 0;
      default:
        return await perform(commandLine.action, commandLine.outputFile);
    }
  } catch (error) {
    process.stderr.write(describeFailure(error, commandLine?.debug ?? argv.includes("-d")));
    return 1;
  }
}

function readVersion(): string {
  const packageFile = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(packageFile) as { version: string }).version;
}

process.exit(await main(process.argv.slice(2)));

/** The text form of eBPF programs, both ways. */
export { type ParsedProgram, parseProgram } from "./text-parse.ts";
export { printInsn, printProgram } from "./text-print.ts";

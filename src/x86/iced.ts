/**
 * The decoder library, loaded in the one way that is quick: by `require`. An `import` of a CommonJS file makes Node search
 * its text for names that it exports, which takes longer than all else at the start for a file of 900 KB.
 */
import { createRequire } from "node:module";
import type * as Iced from "iced-x86";

const iced = createRequire(import.meta.url)("iced-x86") as typeof Iced;

export const {
  Code,
  Decoder,
  DecoderOptions,
  FlowControl,
  Formatter,
  FormatterSyntax,
  Instruction,
  InstructionInfoFactory,
  Mnemonic,
  OpAccess,
  OpKind,
  Register,
} = iced;

export type Code = Iced.Code;
export type Formatter = Iced.Formatter;
export type Instruction = Iced.Instruction;
export type Mnemonic = Iced.Mnemonic;
export type Register = Iced.Register;
export type UsedRegister = Iced.UsedRegister;

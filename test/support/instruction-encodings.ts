/**
 * Every encoding of an instruction with a RIP-relative operand, and with registers only, by going through the opcode maps (Intel
 * SDM 2A, 2.1 to 2.7): legacy prefixes and REX, VEX and EVEX, each opcode, each value of ModRM.reg. What is no
 * instruction the decoder tells. Constants behind the operand are there in any number of bytes.
 */

const RIP_RELATIVE = 0x05;
const REGISTERS = 0xc1;
const legacyPrefixes = [[], [0x66], [0xf2], [0xf3], [0xf0], [0x66, 0xf0], [0x64], [0x67], [0x3e]] as const;
const rexes = [[], [0x48], [0x44]] as const;
/** The three maps behind an escape, as legacy bytes and as the field of VEX and EVEX; map 0 has no escape. */
const escapes = [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]] as const;

/** Opcodes of VEX and EVEX for which ModRM.reg is part of the opcode. */
const groups = new Set([0x71, 0x72, 0x73, 0xae, 0xc6, 0xc7, 0xf3]);

/** Displacement and constants. No byte is 0, so that a displacement that moved would be seen. */
const TAIL = [0x11, 0x12, 0x13, 0x04, 0x15, 0x16, 0x17, 0x18, 0x19] as const;

/** Each is a prefix of what is to be decoded: the instruction's length is for the decoder to say. */
export function* allEncodings(): Generator<readonly number[]> {
  for (const operand of [RIP_RELATIVE, REGISTERS])
    for (let opcode = 0; opcode < 256; opcode++)
      for (let field = 0; field < 8; field++) {
        const modRm = operand | (field << 3);
        for (const prefixes of legacyPrefixes)
          for (const rex of rexes)
            for (const lead of escapes) yield [...prefixes, ...rex, ...lead, opcode, modRm, ...TAIL];
        if (field > 0 && !groups.has(opcode)) continue;
        yield* vexEncodings(opcode, modRm);
        yield* evexEncodings(opcode, modRm);
      }
}

function* vexEncodings(opcode: number, modRm: number): Generator<readonly number[]> {
  for (let pp = 0; pp < 4; pp++)
    // vvvv is 1111 (none) or 1010 (a register), inverted in the byte.
    for (const length of [0, 4])
      for (const vvvv of [0x78, 0x50]) {
        yield [0xc5, 0x80 | vvvv | length | pp, opcode, modRm, ...TAIL];
        for (let map = 1; map <= 3; map++)
          for (const w of [0, 0x80]) yield [0xc4, 0xe0 | map, w | vvvv | length | pp, opcode, modRm, ...TAIL];
      }
}

function* evexEncodings(opcode: number, modRm: number): Generator<readonly number[]> {
  for (let map = 1; map <= 3; map++)
    for (let pp = 0; pp < 4; pp++)
      // No mask, a mask, a mask that zeroes, broadcast or rounding.
      for (const w of [0, 0x80])
        for (const vvvv of [0x78, 0x50])
          for (const length of [0, 0x20, 0x40])
            for (const masking of [0, 1, 0x81, 0x10])
              yield [0x62, 0xf0 | map, w | vvvv | 4 | pp, length | 8 | masking, opcode, modRm, ...TAIL];
}

import { beforeAll, describe, expect, test } from "vitest";
import { buildProgram } from "../../test/support/build-program.ts";
import { libcPath, openElf } from "../../test/support/elf-images.ts";
import { codeImageOf } from "../elf/index.ts";
import { ImageCode } from "../x86/regions.ts";
import { MaskedCode } from "./masked-code.ts";
import { planSites } from "./plan.ts";

function symbolsOf(path: string) {
  const elf = openElf(path);
  const code = new ImageCode(codeImageOf(elf, 0n));
  return { code, addressOf: (name: string) => elf.symbols.find(name)[0]!.addr };
}

describe("a function that blocks signals by constants", () => {
  const source = `
    .globl f, g, h, thread, main
    .type f, @function; .type g, @function; .type h, @function; .type thread, @function; .type main, @function
    .text
    f: push %rbx
      mov $8, %r10d; xor %edi, %edi; mov $14, %eax; syscall
    f_in: call g
      mov %rax, %rbx
      mov $8, %r10d; mov $2, %edi; mov $14, %eax; syscall
    f_out: call h
      pop %rbx
      ret
      .size f, . - f
    g: jmp deep
      .size g, . - g
      .type deep, @function
    deep: lea 1(%rdi), %rax
      ret
      .size deep, . - deep
    h: lea 2(%rdi), %rax
      ret
      .size h, . - h
    thread: mov %rdi, %rbx
      mov $2, %edi; mov $14, %eax; syscall
    thread_out: call h
      mov $0, %edi; lea 1f(%rip), %rsi; mov $14, %eax; syscall
    thread_end: call deep
    1: ret
      .size thread, . - thread
    main: ret
      .size main, . - main
  `;
  let masked: MaskedCode;
  let addressOf: (name: string) => bigint;
  beforeAll(() => {
    const path = buildProgram({
      name: "masks",
      source: `__asm__(${JSON.stringify(source)});`,
      flags: ["-g0"],
    });
    const found = symbolsOf(path);
    masked = new MaskedCode(found.code);
    addressOf = found.addressOf;
  });

  test.each([
    { at: "f", isMasked: false },
    { at: "f_in", isMasked: true },
    { at: "f_out", isMasked: false },
    { at: "g", isMasked: true },
    { at: "deep", isMasked: true },
    { at: "h", isMasked: false },
    { at: "thread", isMasked: true },
    { at: "thread_out", isMasked: false },
    { at: "thread_end", isMasked: true },
    { at: "main", isMasked: false },
  ])("$at runs with blocked signals: $isMasked", ({ at, isMasked }) => {
    expect(masked.has(addressOf(at))).toBe(isMasked);
  });
});

describe("in the C library", () => {
  const { code, addressOf } = symbolsOf(libcPath);

  test.each(["madvise", "munmap", "__clone"])(
    "%s takes no int3, since threads and children come by with blocked signals",
    (name) => {
      const [forced] = planSites(code, [addressOf(name)], { mechanism: "int3" });
      expect(forced).toMatchObject({ kind: "refused" });
      expect(forced!.refused.at(-1)).toMatchObject({
        mechanism: "int3",
        refusal: { reason: "signals-blocked" },
      });
      const [chosen] = planSites(code, [addressOf(name)], { mechanism: "auto" });
      expect(chosen).toMatchObject({ kind: "planned", mechanism: "jump" });
    },
  );

  test.each(["read", "write", "printf", "strlen", "qsort", "usleep", "epoll_wait"])(
    "%s may take one",
    (name) => {
      expect(planSites(code, [addressOf(name)], { mechanism: "int3" })).toMatchObject([{ kind: "planned" }]);
    },
  );
});

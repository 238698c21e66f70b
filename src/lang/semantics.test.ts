/** What scripts compute: every case is verified, interpreted on real maps, and read back. */
import { describe, expect, it } from "vitest";
import { TestRun } from "./test-run.ts";

/** Expressions and what `print` shows of them. Where bpftrace differs from C, C's result is expected. */
const expressions: readonly { readonly name: string; readonly body: string; readonly prints: string }[] = [
  { name: "precedence of arithmetic", body: "print(1 + 2 * 3 - 4 / 2 % 3)", prints: "5" },
  { name: "precedence of bits", body: "print(7 & 3 | 8 ^ 1)", prints: "11" },
  { name: "shift binds looser than plus", body: "print(1 << 2 + 1)", prints: "8" },
  { name: "comparison gives 1", body: "$x = 5; print($x > 3)", prints: "1" },
  { name: "comparison gives 0", body: "$x = 5; print($x < 3)", prints: "0" },
  { name: "not", body: "$x = 5; print(!$x); print(!!$x)", prints: "0 1" },
  { name: "complement", body: "$x = 5; print(~$x)", prints: "-6" },
  { name: "negative numbers", body: "$x = 5; print(-$x)", prints: "-5" },
  { name: "signed division truncates", body: "$x = -7; print($x / 2); print($x % 2)", prints: "-3 -1" },
  { name: "unsigned division", body: "$x = (uint64)-2; print($x / 2)", prints: "9223372036854775807" },
  { name: "division by zero gives 0", body: "$x = 7; $y = 0; print($x / $y); print($x % $y)", prints: "0 7" },
  { name: "signed shift right", body: "$x = -8; print($x >> 1)", prints: "-4" },
  { name: "unsigned shift right", body: "$x = (uint64)-8; print($x >> 1)", prints: "9223372036854775804" },
  { name: "unsigned wins in a comparison", body: "$x = (uint64)-1; $y = 1; print($x > $y)", prints: "1" },
  { name: "signed comparison", body: "$x = -1; print($x > 0)", prints: "0" },
  {
    name: "literal on the left of a comparison",
    body: "$x = 5; print(3 < $x); print(9 <= $x)",
    prints: "1 0",
  },
  {
    name: "casts cut and extend",
    body: "$x = 300; print((uint8)$x); $y = 200; print((int8)$y); print((uint16)-1); print((int32)0xffffffff)",
    prints: "44 -56 65535 -1",
  },
  {
    name: "cast of a variable",
    body: "$x = -1; print((uint32)$x); print((uint64)$x)",
    prints: "4294967295 18446744073709551615",
  },
  {
    name: "64-bit literals",
    body: "print(18446744073709551615); print(-9223372036854775808)",
    prints: "18446744073709551615 -9223372036854775808",
  },
  { name: "large constants in arithmetic", body: "$x = 1; print($x + 0x123456789a)", prints: "78187493531" },
  {
    name: "hexadecimal, octal, exponent, digits apart, suffix",
    body: "print(0x10); print(010); print(2e3); print(1_000_000); print(5UL)",
    prints: "16 8 2000 1000000 5",
  },
  {
    name: "time units are nanoseconds",
    body: "print(10ms); print(2s); print(3us); print(1m)",
    prints: "10000000 2000000000 3000 60000000000",
  },
  { name: "character literal", body: "print('A')", prints: "65" },
  { name: "ternary", body: "$x = 5; print($x > 3 ? 10 : 20); print($x > 7 ? 10 : 20)", prints: "10 20" },
  { name: "ternary of strings", body: '$x = 5; print($x > 3 ? "yes" : "no way")', prints: "yes" },
  { name: "ternary of actions", body: "$x = 5; $x > 3 ? print(1) : print(2)", prints: "1" },
  {
    name: "and does not evaluate its right side",
    body: "$x = 0; if ($x && @a++) { } print(@a++)",
    prints: "0",
  },
  {
    name: "or does not evaluate its right side",
    body: "$x = 1; if ($x || @a++) { } print(@a++)",
    prints: "0",
  },
  {
    name: "nested logic",
    body: "$x = 3; if (($x == 1 || $x == 3) && !($x > 3 && $x < 9)) { print(1) } else { print(0) }",
    prints: "1",
  },
  {
    name: "logic as a value",
    body: "$x = 3; print($x == 1 || $x == 3); print($x == 3 && $x == 4)",
    prints: "1 0",
  },
  {
    name: "postfix gives the old value",
    body: "$x = 5; print($x++); print($x--); print($x)",
    prints: "5 6 5",
  },
  { name: "prefix gives the new value", body: "$x = 5; print(++$x); print(--$x)", prints: "6 5" },
  { name: "step inside an expression", body: "$x = 5; $y = $x++ + $x; print($y); print($x)", prints: "11 6" },
  {
    name: "compound assignment",
    body: "$x = 5; $x += 3; $x *= 2; $x -= 1; $x <<= 1; $x |= 1; $x ^= 2; $x %= 10; print($x)",
    prints: "9",
  },
  {
    name: "else if",
    body: "$x = 6; if ($x == 5) { print(1) } else if ($x == 6) { print(2) } else { print(3) }",
    prints: "2",
  },
  {
    name: "while with break and continue",
    body: "$i = 0; while ($i < 5) { $i++; if ($i == 2) { continue; } if ($i == 4) { break; } print($i) }",
    prints: "1 3",
  },
  {
    name: "nested loops",
    body: "$i = 0; $n = 0; while ($i < 3) { $j = 0; while ($j < 3) { $j++; $n++ } $i++ } print($n)",
    prints: "9",
  },
  { name: "unroll", body: "$i = 1; unroll(5) { $i *= 2 } print($i)", prints: "32" },
  { name: "unroll by a parameter", body: "$i = 1; unroll($1) { $i *= 2 } print($i)", prints: "8" },
  { name: "return ends the program", body: "print(1); return; print(2)", prints: "1" },
  { name: "exit ends the program", body: "print(1); exit(); print(2)", prints: "1 exit" },
  {
    name: "a variable set in one branch only is 0 otherwise",
    body: "if (pid == 0) { $x = 5 } print($x)",
    prints: "0",
  },
  {
    name: "a string set in one branch only is empty otherwise",
    body: 'if (pid == 0) { $x = "abc" } print($x)',
    prints: "",
  },
  {
    name: "builtins",
    body: "print(pid); print(tid); print(uid); print(gid); print(cpu); print(rand)",
    prints: "1234 5678 10 20 0 3735928559",
  },
  { name: "time", body: "print(nsecs); print(elapsed)", prints: "1000000000 999999900" },
  { name: "comm", body: "print(comm)", prints: "tester" },
  {
    name: "comparing comm with a literal",
    body: 'print(comm == "tester"); print(comm != "tester"); print("test" == comm)',
    prints: "1 0 0",
  },
  {
    name: "a literal longer than comm is never equal",
    body: 'print(comm == "a name that is too long")',
    prints: "0",
  },
  {
    name: "string variables",
    body: '$s = "abc"; $s = "abcdefghijkl"; print($s); $s = "x"; print($s)',
    prints: "abcdefghijkl x",
  },
  {
    name: "comparing string variables",
    body: '$a = "abc"; $b = "abcd"; print($a == $b); $b = "abc"; print($a == $b)',
    prints: "0 1",
  },
  { name: "comparing literals", body: 'print("a" == "a"); print("a" != "a")', prints: "1 0" },
  {
    name: "strncmp",
    body: 'print(strncmp(comm, "test", 4)); print(strncmp(comm, "tex", 2)); print(strncmp(comm, "tex", 3))',
    prints: "0 0 1",
  },
  {
    name: "strlen",
    body: 'print(strlen(comm)); print(strlen("abc")); $s = "12345678"; print(strlen($s)); $s = ""; print(strlen($s))',
    prints: "6 3 8 0",
  },
  { name: "escapes", body: 'print("a\\tb\\x41\\101\\\\")', prints: "a\tbAA\\" },
  {
    name: "tuples",
    body: '$t = (1, "ab", (2, 3)); print($t); print($t.1); print($t.2.1)',
    prints: "(1, ab, (2, 3)) ab 3",
  },
  { name: "a tuple that uses itself", body: "$t = (1, 2); $t = ($t.1, $t.0); print($t)", prints: "(2, 1)" },
  {
    name: "a string that uses itself",
    body: '$s = "ab"; $s = pid > 0 ? $s : "longer"; print($s)',
    prints: "ab",
  },
  {
    name: "positional parameters",
    body: "print($1); print($#); print(str($2)); print($9); print(str($9))",
    prints: "3 2 hello  0 ",
  },
  {
    name: "sizeof",
    body: "print(sizeof(uint32)); print(sizeof(int8)); print(sizeof(uint64 *)); print(sizeof(5))",
    prints: "4 1 8 8",
  },
  { name: "bswap", body: "print(bswap((uint16)0x1234)); print(bswap((uint32)1))", prints: "13330 16777216" },
  {
    name: "pointer arithmetic",
    body: "$p = (uint32 *)100; print((uint64)($p + 2)); $p++; print((uint64)$p)",
    prints: "108 104",
  },
];

describe("expressions", () => {
  for (const { name, body, prints } of expressions) {
    it(name, () => {
      const run = new TestRun(`BEGIN { ${body} }`, { params: ["3", "hello "], startNs: 100n });
      run.hit();
      expect(run.events().join(" ")).toBe(prints);
    });
  }
});

const USER = 0x5000n;
const text = (value: string): Uint8Array => new TextEncoder().encode(value);

describe("user memory", () => {
  const cases: readonly { readonly name: string; readonly body: string; readonly prints: string }[] = [
    { name: "dereference", body: "print(*(uint32 *)arg0)", prints: "4294967295" },
    { name: "signed dereference", body: "print(*(int32 *)arg0)", prints: "-1" },
    { name: "dereference with an offset", body: "print(*(uint16 *)(arg0 + 4))", prints: "513" },
    { name: "array access", body: "$p = (uint8 *)arg0; print($p[4]); print($p[5])", prints: "1 2" },
    { name: "pointer to pointer", body: "print(*(uint8 *)*(uint64 *)(arg0 + 8))", prints: "104" },
    { name: "pointer type with two stars", body: "$p = (uint8 **)(arg0 + 8); print(**$p)", prints: "104" },
    { name: "unreadable memory is 0", body: "print(*(uint64 *)1)", prints: "0" },
    {
      name: "str",
      body: "print(str(arg1)); print(str(arg1, 3)); print(str(arg1, arg2))",
      prints: "hello hel he",
    },
    { name: "str of unreadable memory is empty", body: 'print(str(1)); print(str(1) == "")', prints: " 1" },
    {
      name: "comparing str",
      body: 'print(str(arg1) == "hello"); print(str(arg1) == "hell"); print(str(arg1) == "hello!")',
      prints: "1 0 0",
    },
    {
      name: "str as a condition in logic",
      body: 'if (pid > 0 && str(arg1) == "hello") { print(1) }',
      prints: "1",
    },
    {
      name: "strlen of str",
      body: "print(strlen(str(arg1))); print(strlen(str(1))); print(strlen(str(arg1, 2)))",
      prints: "5 0 2",
    },
    { name: "buf", body: "print(buf(arg1, 3)); print(buf(arg1, arg2))", prints: "hel he" },
    {
      name: "printf",
      body: 'printf("%s %d %r\\n", str(arg1), arg2, buf(arg1, 2))',
      prints: "printf hello 2 he",
    },
    {
      name: "printf evaluates steps once",
      body: 'printf("%d %d %d\\n", @x++, @x++, arg2); print(@x++)',
      prints: "printf 0 1 2 2",
    },
    { name: "join", body: 'join(arg3); join(arg3, "-")', prints: "hello lo hello-lo" },
    { name: "reg", body: 'print(reg("di")); print(reg("sp")); print(reg("ax"))', prints: "20480 28672 9" },
    {
      name: "func and probe",
      body: "print(func); print(probe); print(usym(arg2))",
      prints: "function:42 probe:42 sym:2",
    },
    { name: "arguments on the stack", body: "print(sarg0); print(sarg1)", prints: "11 12" },
    { name: "strftime", body: 'print(strftime("%H", nsecs))', prints: "%H@1000000000" },
  ];
  for (const { name, body, prints } of cases) {
    it(name, () => {
      const run = new TestRun(`uprobe:libc:f { ${body} }`);
      const memory = new Uint8Array(4096);
      memory.fill(0xff, 0, 4);
      memory.set([1, 2], 4);
      new DataView(memory.buffer).setBigUint64(8, USER + 32n, true);
      memory.set(text("hello\0"), 32);
      const view = new DataView(memory.buffer);
      view.setBigUint64(40, USER + 32n, true);
      view.setBigUint64(48, USER + 35n, true);
      run.user.set(USER, memory);
      const stack = new Uint8Array(32);
      new DataView(stack.buffer).setBigUint64(8, 11n, true);
      new DataView(stack.buffer).setBigUint64(16, 12n, true);
      run.user.set(0x7000n, stack);
      const ctx = new Map([
        [112, USER],
        [104, USER + 32n],
        [96, 2n],
        [88, USER + 40n],
        [80, 9n],
        [152, 0x7000n],
        [128, 0x77n],
        [120, 42n],
      ]);
      run.hit(0, { ctx });
      expect(run.events().join(" ")).toBe(prints);
    });
  }
});

describe("maps", () => {
  const cases: readonly {
    readonly name: string;
    readonly body: string;
    readonly holds: Record<string, string>;
    /** Processors on which the block runs, one after the other; processor 0 once if left out. */
    readonly cpus?: readonly number[];
  }[] = [
    { name: "never assigned", body: "if (pid == 0) { @ = 1 }", holds: {} },
    { name: "assigned 0", body: "@ = 0", holds: { "": "0" } },
    { name: "a number", body: "@ = -5", holds: { "": "-5" } },
    { name: "an unsigned number", body: "@ = (uint64)-5", holds: { "": "18446744073709551611" } },
    { name: "a string", body: '@ = "abc"', holds: { "": "abc" } },
    { name: "a longer string later", body: '@ = "abc"; @ = "abcdefghijkl"', holds: { "": "abcdefghijkl" } },
    { name: "a tuple", body: '@ = (1, "a", cpu)', holds: { "": "(1, a, 0)" } },
    { name: "steps", body: "@++; ++@; @++; @--", holds: { "": "4" }, cpus: [0, 1] },
    { name: "steps with keys", body: "@[1]++; @[2]++; @[1]++", holds: { 1: "2", 2: "1" } },
    {
      name: "values of steps",
      body: "@[1] = @x++; @[2] = ++@x; @[3] = @x--; @[4] = --@x",
      holds: { 1: "0", 2: "2", 3: "2", 4: "0" },
    },
    { name: "additions", body: "@ += 5; @ -= 2", holds: { "": "3" } },
    {
      name: "other compound assignments",
      body: "@ = 5; @ *= 6; @ /= 4; @ |= 8; @ ^= 1; @ &= 14; @ <<= 2; @ >>= 1; @ %= 19",
      holds: { "": "9" },
    },
    { name: "compound assignment with keys", body: '@["a"] += 5; @["a"] *= 3', holds: { a: "15" } },
    {
      name: "numbers as keys",
      body: "@[-1] = 1; @[arg] = 2".replace("arg", "cpu"),
      holds: { "-1": "1", 0: "2" },
    },
    { name: "several keys", body: '@[1, "a", comm] = 7', holds: { "1, a, tester": "7" } },
    { name: "a tuple as a key", body: '@[(1, "a")] = 7; @[1, "a"] += 1', holds: { "1, a": "8" } },
    {
      name: "strings of different lengths as keys",
      body: '@["a"] = 1; @["a longer key"] = 2; @["a"] += 5',
      holds: { a: "6", "a longer key": "2" },
    },
    {
      name: "a key before its map is assigned",
      body: '@[comm] = @y["k"]; @y["kk"] = 3',
      holds: { tester: "0" },
    },
    { name: "delete", body: "@[1] = 1; @[2] = 2; delete(@[1])", holds: { 2: "2" } },
    { name: "delete with the key apart", body: "@[1] = 1; @[2] = 2; delete(@, 2)", holds: { 1: "1" } },
    { name: "delete without keys", body: "@ = 1; delete(@)", holds: {} },
    { name: "delete of an aggregate", body: "@ = sum(5); delete(@)", holds: {} },
    { name: "reading what was assigned", body: "@x[1] = 5; @ = @x[1] + @x[2]", holds: { "": "5" } },
    {
      name: "reading strings",
      body: '@x[1] = "abc"; @[1] = @x[1]; @[2] = @x[2]',
      holds: { 1: "abc", 2: "" },
    },
    { name: "value before key", body: "$i = 2; @[$i] = --$i; @[$i] = --$i", holds: { 0: "0", 1: "1" } },
    { name: "count", body: "@ = count()", holds: { "": "3" }, cpus: [0, 1, 9] },
    { name: "count with keys", body: "@[cpu] = count()", holds: { 0: "2", 5: "1" }, cpus: [0, 5, 0] },
    { name: "count of nothing", body: "if (pid == 0) { @ = count() }", holds: { "": "0" } },
    { name: "sum", body: "@ = sum(-5); @ = sum(2)", holds: { "": "-6" }, cpus: [0, 1] },
    { name: "sum of nothing", body: "if (pid == 0) { @ = sum(1) }", holds: {} },
    { name: "avg", body: "@ = avg(cpu)", holds: { "": "9/3" }, cpus: [1, 3, 5] },
    { name: "stats", body: '@["a"] = stats(cpu)', holds: { a: "9/3" }, cpus: [1, 3, 5] },
    {
      name: "signed min and max",
      body: "@[1] = min(3 - (int64)cpu); @b = 1",
      holds: { 1: "-4" },
      cpus: [1, 7, 5],
    },
    { name: "signed max", body: "@ = max((int64)cpu - 9)", holds: { "": "-2" }, cpus: [1, 7, 5] },
    { name: "unsigned min", body: "@ = min(cpu)", holds: { "": "1" }, cpus: [5, 1, 7] },
    {
      name: "unsigned max of large numbers",
      body: "@ = max((uint64)0 - cpu)",
      holds: { "": "18446744073709551615" },
      cpus: [5, 1, 7],
    },
    { name: "max of nothing", body: "if (pid == 0) { @ = max(1) }", holds: {} },
    { name: "lhist", body: "@ = lhist(5, 0, 10, 3)", holds: { "": "2:1" } },
    {
      name: "lhist at and outside its ends",
      body: "@ = lhist(-1, 0, 10, 3); @ = lhist(0, 0, 10, 3); @ = lhist(9, 0, 10, 3); @ = lhist(10, 0, 10, 3)",
      holds: { "": "0:1 1:1 4:1 5:1" },
    },
    { name: "lhist of negative numbers", body: "@ = lhist(-7, -10, 10, 5)", holds: { "": "1:1" } },
    { name: "lhist of unsigned numbers", body: "@ = lhist(cpu, -4, 4, 2)", holds: { "": "3:1" }, cpus: [1] },
  ];
  for (const { name, body, holds, cpus } of cases) {
    it(name, () => {
      const run = new TestRun(`BEGIN { ${body} }`);
      for (const cpu of cpus ?? [0]) run.hit(0, { cpu });
      expect(run.map("@")).toEqual(holds);
    });
  }

  it("counts each power of two in its bucket", () => {
    const run = new TestRun("uprobe:libc:f { @ = hist(arg0) }");
    const expected: string[] = [];
    for (let power = 0n; power < 64n; power++) {
      const low = 1n << power;
      for (const value of [low, low | (low - 1n)]) run.hit(0, { ctx: new Map([[112, value]]) });
      expected.push(`${power + 2n}:2`);
    }
    run.hit(0, { ctx: new Map([[112, 0n]]) });
    expect(run.map("@")[""]).toBe(["1:1", ...expected].join(" "));
  });

  it("counts negative numbers of signed type in the first bucket", () => {
    const run = new TestRun("uprobe:libc:f { @ = hist((int64)arg0) }");
    for (const value of [-1n, -(1n << 63n), (1n << 63n) - 1n]) run.hit(0, { ctx: new Map([[112, value]]) });
    expect(run.map("@")[""]).toBe("0:2 64:1");
  });

  it("keeps what fits when a map is full", () => {
    const run = new TestRun("uprobe:libc:f { @[arg0] = count(); @x[arg0]++; @y[arg0] = 1 }", {
      maxMapKeys: 8,
    });
    for (let key = 0n; key < 20n; key++) run.hit(0, { ctx: new Map([[112, key]]) });
    for (const name of ["@", "@x", "@y"]) {
      const values = Object.values(run.map(name));
      expect(values.length).toBeGreaterThanOrEqual(8);
      expect(values.length).toBeLessThan(20);
      expect(new Set(values)).toEqual(new Set(["1"]));
    }
  });
});

describe("probes", () => {
  it("runs the body only where the predicate holds", () => {
    const run = new TestRun("uprobe:libc:f /arg0 / 2 == 3 && (arg1 / 2) > 0/ { @ = count() }");
    for (const value of [5n, 6n, 7n, 8n])
      run.hit(0, {
        ctx: new Map([
          [112, value],
          [104, 2n],
        ]),
      });
    expect(run.map("@")).toEqual({ "": "2" });
  });

  it("measures from entry to return", () => {
    const run = new TestRun(
      "uprobe:libc:f { @start[tid] = nsecs } uretprobe:libc:f /@start[tid]/ " +
        "{ @us = hist((nsecs - @start[tid]) / 1000); @sum = sum(retval); delete(@start[tid]) }",
    );
    run.hit(0);
    run.nowNs += 5_000n;
    run.hit(1, { ctx: new Map([[80, 7n]]) });
    run.hit(1, { ctx: new Map([[80, 7n]]) });
    expect(run.map("@us")).toEqual({ "": "4:1" });
    expect(run.map("@sum")).toEqual({ "": "7" });
    expect(run.map("@start")).toEqual({});
  });

  it("exits by a flag when the ring is full", () => {
    const run = new TestRun("BEGIN { exit() }", { ringBytes: 1 });
    for (let i = 0; i < 64; i++) run.hit();
    expect(run.exitFlag).toBe(false);
    run.hit();
    expect(run.exitFlag).toBe(true);
    expect(run.events()).toHaveLength(64);
  });

  it("sends the events of actions", () => {
    const run = new TestRun(
      'BEGIN { @[1] = 2; print(@, 3, 10); print(@[1]); clear(@); zero(@); time(); time("%H") }',
    );
    run.hit();
    expect(run.events()).toEqual([
      "print @ 3 10",
      "@[1]: 2",
      "clear @",
      "zero @",
      "time %H:%M:%S\n",
      "time %H",
    ]);
  });

  it("skips an action whose record finds no room, but not its steps", () => {
    const run = new TestRun('BEGIN { printf("%d", @x++) }', { ringBytes: 1 });
    for (let i = 0; i < 70; i++) run.hit();
    expect(run.events()).toHaveLength(64);
    expect(run.map("@x")).toEqual({ "": "70" });
  });
});

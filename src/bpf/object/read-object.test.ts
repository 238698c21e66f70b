import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { buildBpfFixture, buildBpfObject, PRELUDE } from "../../../test/support/bpf-objects.ts";
import { SeededRandom } from "../../../test/support/seeded-random.ts";
import { type InterpreterInput, interpret } from "../interpreter/interpreter.ts";
import { fakeHost } from "../interpreter/test-world.ts";
import { layoutMap, openMap, sharedMemoryOf } from "../maps/index.ts";
import { printInsn } from "../text.ts";
import { verifyProgram } from "../verifier/index.ts";
import { type BpfObject, fitRing, readObject } from "./index.ts";

function objectOf(path: string): BpfObject {
  const result = readObject(readFileSync(path));
  if (result.kind === "bad") throw new Error(result.message);
  return result.object;
}

const compile = (source: string, flags?: readonly string[]) =>
  buildBpfObject("test", PRELUDE + source, flags);

function linked(object: BpfObject, name: string) {
  const program = object.programs.find((candidate) => candidate.name === name);
  if (program?.code.kind !== "linked") throw new Error(`${name}: ${JSON.stringify(program?.code)}`);
  return program.code;
}

const object = () => objectOf(buildBpfFixture("maps"));

const mallocIn = (image: string) => ({ image, location: { kind: "symbol", symbol: "malloc", offset: 0n } });

describe("an object of clang's", () => {
  it("has maps with the sizes of their types, and globals as arrays of one", () => {
    const maps = object().maps.map(({ spec }) => spec);
    expect(maps.toSorted((a, b) => a.name.localeCompare(b.name))).toEqual([
      { name: ".bss", kind: "array", keyBytes: 4, valueBytes: 8, maxEntries: 1, isReadOnly: false },
      { name: ".data", kind: "array", keyBytes: 4, valueBytes: 24, maxEntries: 1, isReadOnly: false },
      {
        name: ".rodata",
        kind: "array",
        keyBytes: 4,
        valueBytes: 4,
        maxEntries: 1,
        isReadOnly: true,
        contents: Uint8Array.of(7, 0, 0, 0),
      },
      { name: "by_size", kind: "hash", keyBytes: 8, valueBytes: 16, maxEntries: 1024, isReadOnly: false },
      // Its records decide how large its cells are.
      { name: "events", kind: "ringbuf", keyBytes: 0, valueBytes: 0, maxEntries: 1, isReadOnly: false },
      { name: "slots", kind: "array", keyBytes: 4, valueBytes: 12, maxEntries: 4, isReadOnly: false },
    ]);
  });

  it("has globals with their first values", () => {
    const { maps } = object();
    const data = maps.find(({ spec }) => spec.name === ".data")!;
    const at = (name: string) => data.variables!.find((variable) => variable.name === name)!.offset;
    const view = new DataView(data.initial!.buffer, data.initial!.byteOffset);
    expect(view.getBigUint64(at("hidden"), true)).toBe(5n);
    expect([0, 4, 8].map((offset) => view.getInt32(at("table") + offset, true))).toEqual([1, 2, 3]);
    expect(maps.find(({ spec }) => spec.name === ".bss")!.initial).toBeUndefined();
  });

  it("has programs with the places of their sections", () => {
    const programs = object().programs.map(({ name, attach }) => ({ name, attach }));
    expect(programs).toEqual([
      { name: "on_malloc", attach: { kind: "uprobe", place: mallocIn("libc.so.6") } },
      { name: "malloc_returns", attach: { kind: "uretprobe", place: mallocIn("/usr/lib/libc.so.6") } },
      { name: "calls", attach: { kind: "uprobe", place: undefined } },
      { name: "bad_read", attach: { kind: "uprobe", place: undefined } },
      {
        name: "in_kernel",
        attach: {
          kind: "elsewhere",
          type: "kprobe",
          reason: expect.stringContaining("kprobe programs belong to the kernel"),
        },
      },
    ]);
  });

  it.each([
    // Each record of the kernel's has a header of 8 bytes.
    { name: "small records", ringBytes: 65_536, largest: 16, valueBytes: 16, maxEntries: 2730 },
    { name: "records of an odd size", ringBytes: 65_536, largest: 17, valueBytes: 24, maxEntries: 2048 },
    {
      name: "records nearly as large as the ring",
      ringBytes: 4096,
      largest: 4000,
      valueBytes: 4000,
      maxEntries: 64,
    },
    {
      name: "records of up to a mebibyte",
      ringBytes: 4096,
      largest: 1 << 20,
      valueBytes: 1 << 20,
      maxEntries: 63,
    },
    { name: "no records", ringBytes: 4096, largest: 0, valueBytes: 8, maxEntries: 256 },
  ])("has cells in a ring for $name", ({ ringBytes, largest, valueBytes, maxEntries }) => {
    const spec = { name: "r", kind: "ringbuf", keyBytes: 0, valueBytes: 0, maxEntries: 1 } as const;
    expect(fitRing(spec, ringBytes, largest)).toEqual({ ...spec, valueBytes, maxEntries });
  });

  it("knows licence and notes", () => {
    const { license, notes } = object();
    expect(license).toBe("Dual BSD/GPL");
    expect(notes).toEqual(["map by_size: pinning is ignored: maps live as long as the session"]);
  });

  it("has every kind of map, with what they begin with", () => {
    const { maps, programs, notes } = objectOf(buildBpfFixture("map-kinds"));
    const indexOf = (name: string) => maps.findIndex(({ spec }) => spec.name === name);
    expect(notes).toEqual([]);
    const shown = maps.map(({ spec: { name, kind, keyBytes, valueBytes, maxEntries } }) =>
      [name, kind, keyBytes, valueBytes, maxEntries].join(" "),
    );
    expect(new Set(shown)).toEqual(
      new Set([
        "recent lru_hash 8 8 16",
        "on_each percpu_array 4 8 4",
        "by_cpu percpu_hash 4 16 32",
        "recent_by_cpu lru_percpu_hash 4 8 64",
        "sent perf_event_array 4 0 1",
        "stacks stack_trace 4 1016 128",
        "waiting queue 0 8 10",
        "undone stack 0 4 11",
        "seen bloom_filter 0 8 1000",
        "steps prog_array 4 4 3",
        "first array 4 8 4",
        "second array 4 8 4",
        "both array_of_maps 4 4 3",
        "named hash_of_maps 8 4 7",
        "constants array 4 4 2",
        "records ringbuf 0 0 1",
        ".kconfig array 4 16 1",
      ]),
    );
    const map = (name: string) => maps[indexOf(name)]!;
    expect(map("seen").spec.hashFunctions).toBe(3);
    expect(map("both").spec.inner).toMatchObject({
      kind: "array",
      keyBytes: 4,
      valueBytes: 8,
      maxEntries: 4,
    });
    expect(map("named").spec.inner).toMatchObject({
      kind: "hash",
      keyBytes: 8,
      valueBytes: 8,
      maxEntries: 8,
    });
    expect(map("both").slots).toEqual([
      { index: 0, target: { kind: "map", map: indexOf("second") } },
      { index: 2, target: { kind: "map", map: indexOf("first") } },
    ]);
    expect(map("steps").slots).toEqual([{ index: 1, target: { kind: "program", name: "last_step" } }]);
    expect(map("constants").spec.isReadOnly).toBe(true);
    expect(map("first").spec.isWriteOnly).toBe(undefined);
    expect(programs.map(({ name, isAutoloaded }) => ({ name, isAutoloaded }))).toEqual([
      { name: "last_step", isAutoloaded: true },
      { name: "asks", isAutoloaded: true },
      { name: "on_demand", isAutoloaded: false },
    ]);
  });

  it("answers what libbpf answers itself, and what exists here", () => {
    const { maps, programs } = objectOf(buildBpfFixture("map-kinds"));
    const code = programs.find(({ name }) => name === "asks")!.code;
    if (code.kind !== "linked") throw new Error(code.reason);
    const opened = maps.map(({ spec, initial }) => {
      if (spec.name !== ".kconfig") return undefined;
      const map = openMap(spec, sharedMemoryOf(new ArrayBuffer(layoutMap(spec).totalBytes)), 0);
      if (map.kind === "array") map.update(new Uint8Array(4), initial!, 0n);
      return map;
    });
    const result = interpret({
      insns: code.insns,
      maps: opened as InterpreterInput["maps"],
      host: fakeHost(),
      entry: { kind: "context", bytes: new Uint8Array(168) },
    });
    expect(result).toMatchObject({ kind: "returned", value: 1n });
  });

  it("names maps by index and globals by offset", () => {
    const whole = object();
    const { insns } = linked(whole, "on_malloc");
    const named = insns
      .map((insn, at) =>
        insn.opcode === 0x18 ? `${printInsn(insns, at)} ${whole.maps[insn.imm]!.spec.name}` : "",
      )
      .filter((text) => text !== "");
    expect([...new Set(named.map((text) => text.replace(/^r\d = map\[\d\]/, "")))].sort()).toEqual(
      [" by_size", "[0]+0 .bss", "[0]+0 .rodata"].sort(),
    );
    expect(
      verifyProgram(
        { insns },
        whole.maps.map(({ spec }) => spec),
      ).kind,
    ).toBe("accepted");
  });

  it("links each function that is called behind the program once, and calls it there", () => {
    const { insns, functions } = linked(object(), "calls");
    expect([...functions.values()]).toEqual(["calls", "twice", "triple"]);
    const starts = new Map([...functions].map(([at, name]) => [at, name]));
    const calls = insns.flatMap(({ opcode, src, imm }, at) =>
      opcode === 0x85 && src === 1 ? [starts.get(at + 1 + imm)] : [],
    );
    expect(calls).toEqual(["twice", "twice", "triple", "triple"]);
  });

  it("knows the line of each instruction", () => {
    const { lines, functions } = linked(object(), "calls");
    const [triple] = [...functions].find(([, name]) => name === "triple")!;
    expect(lines.get(triple)).toMatchObject({
      file: expect.stringMatching(/maps\.bpf\.c$/),
      text: expect.stringMatching(/triple|hidden \+= x/),
    });
  });
});

describe("refusing an object", () => {
  const cases: readonly {
    readonly name: string;
    readonly source: string;
    readonly flags?: string[];
    readonly message: RegExp;
  }[] = [
    {
      name: "maps without BTF",
      source: `struct { __uint(type, 1); __uint(max_entries, 1); __type(key, u32); __type(value, u32); } m SEC(".maps");
        SEC("uprobe") int f(void *ctx) { u32 k = 0; return bpf_map_delete_elem(&m, &k); }`,
      flags: [],
      message: /section \.maps cannot be read without BTF: compile with -g/,
    },
    {
      name: "a kind of map that there is not",
      source: `struct { __uint(type, BPF_MAP_TYPE_LPM_TRIE); __uint(max_entries, 1); __type(key, u64); __type(value, u32); } m SEC(".maps");`,
      message: /map m: kind lpm_trie is not supported/,
    },
    ...Object.entries({
      "an attribute that there is not": [
        "__uint(type, BPF_MAP_TYPE_HASH); __uint(max_size, 1);",
        "there is no attribute max_size",
      ],
      "a map without a type": ["__uint(max_entries, 1);", "it does not say of which type it is"],
      "a hash without a key": [
        "__uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1); __type(value, u32);",
        "it has no key",
      ],
      "a key of another size": [
        "__uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1); __type(key, u32); __uint(key_size, 8); __type(value, u32);",
        "its key has 4 bytes, and key_size says 8",
      ],
      "a queue with a key": [
        "__uint(type, BPF_MAP_TYPE_QUEUE); __uint(max_entries, 1); __type(key, u32); __type(value, u32);",
        "a map of kind queue has no key",
      ],
      "a ring of an odd size": [
        "__uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 5000);",
        "max_entries 5000 is no power of two of at least 4096 bytes",
      ],
      "a ring with a value's size": [
        "__uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); __uint(value_size, 8);",
        "a ring buffer has no value_size; its records are as large as programs send them",
      ],
      "a stack trace of too many frames": [
        "__uint(type, BPF_MAP_TYPE_STACK_TRACE); __uint(max_entries, 1); __uint(key_size, 4); __uint(value_size, 1024);",
        "the value of a stack trace has 8 bytes for each of at most 127 frames, not 1024",
      ],
      "a map of maps that does not say of which": [
        "__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); __uint(max_entries, 1); __type(key, u32);",
        "it does not say what its inner maps are: __array(values, ...)",
      ],
      "too many hash functions": [
        "__uint(type, BPF_MAP_TYPE_BLOOM_FILTER); __uint(max_entries, 9); __type(value, u32); __uint(map_extra, 16);",
        "map_extra 16: a bloom filter has at most 15 hash functions",
      ],
      "map_extra of another kind": [
        "__uint(type, BPF_MAP_TYPE_STACK); __uint(max_entries, 9); __type(value, u32); __uint(map_extra, 1);",
        "map_extra has no meaning for a map of kind stack",
      ],
      "a flag of other kinds": [
        "__uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, u32); __uint(map_flags, BPF_F_NO_PREALLOC);",
        "BPF_F_NO_PREALLOC has no meaning for a map of kind array",
      ],
      "flags that exclude each other": [
        "__uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, u32); __uint(map_flags, BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG);",
        "BPF_F_RDONLY_PROG and BPF_F_WRONLY_PROG exclude each other",
      ],
      "a flag that there is not": [
        "__uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, u32); __uint(map_flags, 1 << 20);",
        "map_flags 0x100000 are not supported",
      ],
    }).map(([name, [members, message]]) => ({
      name,
      source: `struct { ${members} } m SEC(".maps");`,
      message: new RegExp(`map m: ${message!.replaceAll(/[()|.*]/g, "\\$&")}$`),
    })),
    {
      name: "globals that begin with addresses",
      source: `const char *names[2] = {"a", "b"}; SEC("uprobe") int f(void *ctx) { return (long)names[bpf_get_prandom_u32() & 1]; }`,
      message:
        /^section \.data: names begins with an address \(of \.rodata\.str1\.1\), which globals cannot hold/,
    },
    {
      name: "an inner map of another size",
      source: `struct inner { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, u32); __type(value, u64); };
        struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 5); __type(key, u32); __type(value, u64); } five SEC(".maps");
        struct { __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); __uint(max_entries, 1); __type(key, u32); __array(values, struct inner); } m SEC(".maps") = { .values = { (void *)&five } };`,
      message: /^map m: its value five is not like its inner maps: maxEntries is 5, not 4$/,
    },
    {
      name: "a map without entries",
      source: `struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, u32); __type(value, u32); } m SEC(".maps");`,
      message: /map m: max_entries is 0/,
    },
    {
      name: "an array with a long key",
      source: `struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u64); __type(value, u32); } m SEC(".maps");`,
      message: /map m: the key of an array has 4 bytes, not 8/,
    },
    {
      name: "old map definitions",
      source: `int m SEC("maps") = 1;`,
      message: /old map definitions are not supported/,
    },
  ];
  it.each(cases)("$name", ({ source, flags, message }) => {
    expect(readObject(readFileSync(compile(source, flags)))).toEqual({
      kind: "bad",
      message: expect.stringMatching(message),
    });
  });

  it.each([
    {
      name: "a kernel's variable",
      source: `extern const int bpf_prog_active __ksym;
        SEC("uprobe") int f(void *ctx) { return (long)&bpf_prog_active; }`,
      reason: /it refers to bpf_prog_active \(__ksym\), a variable of the kernel's/,
    },
    {
      name: "a kernel's function",
      source: `extern int bpf_task_release(int) __ksym; SEC("uprobe") int f(void *ctx) { return bpf_task_release(1); }`,
      reason: /it refers to bpf_task_release, which is not in the object/,
    },
    {
      name: "a kernel's type",
      source: `struct task_struct { int pid; } __attribute__((preserve_access_index));
        SEC("uprobe") int f(struct task_struct *t) { return t->pid; }`,
      reason: /it depends on the kernel's type task_struct \(CO-RE\)/,
    },
  ])("refuses a program that needs $name", ({ source, reason }) => {
    const { programs } = objectOf(compile(source));
    expect(programs[0]!.code).toEqual({ kind: "refused", reason: expect.stringMatching(reason) });
  });

  it.each([
    {
      name: "configuration",
      source: `extern int CONFIG_HZ __kconfig; SEC("uprobe") int f(void *ctx) { return CONFIG_HZ; }`,
      reason: /it asks for CONFIG_HZ \(__kconfig\), which is of the kernel's configuration/,
    },
    {
      name: "value of an enum",
      source: `#include <bpf/bpf_core_read.h>
        enum pid_type { PIDTYPE_PID }; SEC("uprobe") int f(void *ctx) { return bpf_core_enum_value(enum pid_type, PIDTYPE_PID); }`,
      reason: /it asks for PIDTYPE_PID of the kernel's enum pid_type \(CO-RE\)/,
    },
    {
      name: "type through BPF_CORE_READ",
      source: `#include <bpf/bpf_core_read.h>
        struct task_struct { int pid; } __attribute__((preserve_access_index));
        SEC("uprobe") int f(struct task_struct *t) { return BPF_CORE_READ(t, pid); }`,
      reason: /it depends on the kernel's type task_struct \(CO-RE\)/,
    },
  ])("refuses a program that needs the kernel's $name", ({ source, reason }) => {
    expect(objectOf(compile(source)).programs[0]!.code).toEqual({
      kind: "refused",
      reason: expect.stringMatching(reason),
    });
  });

  it("refuses static programs", () => {
    const object = objectOf(
      compile(`__attribute__((used)) SEC("uprobe") static int f(void *ctx) { return 0; }`),
    );
    expect(object.programs[0]).toMatchObject({
      name: "f",
      code: { kind: "refused", reason: "it is static, and programs have to be global" },
    });
  });

  it("a program that writes a constant is rejected", () => {
    const object = objectOf(
      compile(
        `const volatile int fixed = 1; SEC("uprobe") int f(void *ctx) { int *p = (int *)&fixed; asm volatile("" : "+r"(p)); *p = 2; return 0; }`,
      ),
    );
    expect(
      verifyProgram(
        linked(object, "f"),
        object.maps.map(({ spec }) => spec),
      ),
    ).toMatchObject({
      kind: "rejected",
      message: "write into map forbidden, value_size=4 off=0 size=4",
    });
  });

  it("a weak symbol that is not there is 0", () => {
    const object = objectOf(
      compile(
        `extern const int nothing __ksym __weak; SEC("uprobe") int f(void *ctx) { return &nothing != 0; }`,
      ),
    );
    expect(verifyProgram(linked(object, "f"), []).kind).toBe("accepted");
  });

  it.each([
    { name: "nothing", bytes: new Uint8Array(0), message: "it is no ELF file" },
    { name: "text", bytes: new Uint8Array(100).fill(65), message: "it is no ELF file" },
    {
      name: "another machine",
      bytes: readFileSync(process.execPath),
      message: /^it is for machine 62, not for BPF/,
    },
  ])("$name", ({ bytes, message }) => {
    expect(readObject(bytes)).toEqual({
      kind: "bad",
      message: typeof message === "string" ? message : expect.stringMatching(message),
    });
  });

  it.each(["maps", "map-kinds", "features"])("never throws, whatever the bytes of %s become", (fixture) => {
    const original = readFileSync(buildBpfFixture(fixture));
    const random = new SeededRandom(7);
    for (let round = 0; round < 150; round++) {
      const bytes = Uint8Array.from(
        original.subarray(0, round % 4 === 0 ? random.below(original.length) : undefined),
      );
      for (let i = 0; i <= random.below(8); i++) bytes[random.below(bytes.length)] = random.below(256);
      const result = readObject(bytes);
      if (result.kind === "bad") continue;
      const maps = result.object.maps.map(({ spec }) => spec);
      for (const { code } of result.object.programs) if (code.kind === "linked") verifyProgram(code, maps);
    }
  });
});

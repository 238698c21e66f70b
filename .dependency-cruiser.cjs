// The allowed imports, downwards only. `allowed` below is the whole table: what is not listed is refused.
// test/imports.test.ts proves that each kind of violation is caught.

const { Visitor } = require("@swc/core/Visitor.js");

// The parser reads `using` declarations, its visitor does not know them: a file with one would not be checked.
const visitStatement = Visitor.prototype.visitStatement;
Visitor.prototype.visitStatement = function (statement) {
  if (statement.type !== "UsingDeclaration") return visitStatement.call(this, statement);
  this.visitVariableDeclarators(statement.decls);
  return statement;
};

/** Each folder and the folders it may import from, besides itself. */
const allowedImports = {
  cli: ["session", "output"],
  session: ["lang", "probe", "patch", "gate", "bpf", "target", "elf", "x86", "output"],
  output: [],
  lang: ["bpf"],
  probe: ["patch", "target/target"],
  patch: ["x86", "gate"],
  gate: ["x86"],
  bpf: ["x86"],
  target: ["elf", "x86"],
  elf: [],
  x86: [],
};

const inFolder = (name) => (name.includes("/") ? `^src/${name}\\.ts$` : `^src/${name}/`);

/**
 * Only these may touch the operating system; the rest is pure and deterministic. (x86/iced.ts loads a library by
 * `require`, for a quick start.)
 */
const mayImportNode = "^src/(target/[^/]+|session|cli)/|^src/x86/iced\\.ts$|\\.test\\.ts$";

module.exports = {
  forbidden: [
    { name: "no-cycles", severity: "error", from: {}, to: { circular: true } },
    {
      name: "pure-code-imports-no-node",
      severity: "error",
      from: { path: "^src/", pathNot: mayImportNode },
      to: { dependencyTypes: ["core"] },
    },
    {
      name: "koffi-only-in-targets-and-session",
      severity: "error",
      from: { path: "^src/", pathNot: mayImportNode },
      to: { path: "node_modules/koffi" },
    },
    {
      name: "targets-do-not-know-each-other",
      severity: "error",
      from: { path: "^src/target/process/" },
      to: { path: "^src/target/kernel/" },
    },
    {
      name: "kernel-target-does-not-know-the-process-target",
      severity: "error",
      from: { path: "^src/target/kernel/" },
      to: { path: "^src/target/process/" },
    },
    {
      name: "only-the-jit-assembles",
      severity: "error",
      from: { path: "^src/bpf/", pathNot: "^src/bpf/jit/|\\.test\\.ts$" },
      to: { path: "^src/x86/" },
    },
    {
      name: "no-unresolvable",
      severity: "error",
      from: {},
      to: { couldNotResolve: true },
    },
    ...Object.entries(allowedImports).map(([folder, may]) => ({
      name: `${folder}-imports-downwards`,
      severity: "error",
      from: { path: `^src/${folder}/`, pathNot: "\\.test\\.ts$" },
      to: {
        path: "^src/",
        pathNot: [`^src/${folder}/`, ...may.map(inFolder)],
      },
    })),
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    parser: "swc",
    tsPreCompilationDeps: true,
    enhancedResolveOptions: { extensions: [".ts", ".js", ".json"] },
  },
};

import { describe, expect, it } from "vitest";
import { describeFailure } from "./failure.ts";
import { UsageError } from "./usage-error.ts";

describe("showing a failure", () => {
  it.each([
    {
      name: "refusal with a hint",
      error: new UsageError("-p x: not a process id", "a number"),
      text: "trapline: -p x: not a process id\nhint: a number\n",
    },
    {
      name: "refusal without a hint",
      error: Object.assign(new Error("attach to process 1: zombie"), { code: "zombie" }),
      text: "trapline: attach to process 1: zombie\n",
    },
    {
      name: "mistake of ours",
      error: new TypeError("x is undefined"),
      text: "trapline: internal error: TypeError: x is undefined\nhint: -d shows where it happened\n",
    },
    {
      name: "mistake of ours that Node has given a code",
      error: Object.assign(new TypeError("bad argument"), { code: "ERR_INVALID_ARG_TYPE" }),
      text: "trapline: internal error: TypeError: bad argument\nhint: -d shows where it happened\n",
    },
    {
      name: "something thrown that is no error",
      error: "oops",
      text: "trapline: internal error: thrown value: oops\nhint: -d shows where it happened\n",
    },
  ])("$name", ({ error, text }) => {
    expect(describeFailure(error, false)).toBe(text);
  });

  it("shows stacks, causes included, when debugging", () => {
    const error = new Error("outer", { cause: new Error("inner") });
    const text = describeFailure(error, true);
    expect(text).toContain("failure.test.ts");
    expect(text).toContain("caused by Error: inner");
  });
});

/**
 * Random programs of integer variables, loops and maps: what the compiled program prints must be what the same
 * statements compute directly. They keep many values alive at once, so registers run out and spill.
 */
import * as fc from "fast-check";
import { expect, it } from "vitest";
import { TestRun } from "./test-run.ts";

interface Number64 {
  readonly text: string;
  readonly signed: boolean;
  /** In the range of its signedness. */
  evaluate(env: Env): bigint;
}

interface Variable {
  readonly name: string;
  readonly signed: boolean;
}

type Env = Map<string, bigint>;

const wrap = (value: bigint, signed: boolean): bigint =>
  signed ? BigInt.asIntN(64, value) : BigInt.asUintN(64, value);

const variables: readonly Variable[] = Array.from({ length: 12 }, (_, i) => ({
  name: `$v${i}`,
  signed: i % 3 !== 0,
}));

/** Draws from a list of choices that fast-check made, so that a failure shrinks. */
class Choices {
  readonly #numbers: readonly number[];
  #at = 0;

  constructor(numbers: readonly number[]) {
    this.#numbers = numbers;
  }

  /** 0 to `limit - 1`; 0 when the list is used up. */
  below(limit: number): number {
    return (this.#numbers[this.#at++] ?? 0) % limit;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}

function literal(choices: Choices): Number64 {
  const values = [0n, 1n, 2n, 3n, 7n, 63n, 255n, 65536n, 0x7fff_ffffn, 0x8000_0000n, 0x1234_5678_9abcn];
  const value = choices.pick(values);
  return { text: `${value}`, signed: true, evaluate: () => value };
}

function expression(choices: Choices, depth: number): Number64 {
  if (depth <= 0) {
    if (choices.below(3) === 0) return literal(choices);
    const variable = choices.pick(variables);
    return { text: variable.name, signed: variable.signed, evaluate: (env) => env.get(variable.name)! };
  }
  switch (choices.below(8)) {
    case 0:
      return unary(choices, depth);
    case 1:
      return cast(choices, depth);
    case 2:
      return ternary(choices, depth);
    case 3:
      return comparison(choices, depth);
    default:
      return arithmetic(choices, depth);
  }
}

function unary(choices: Choices, depth: number): Number64 {
  const operand = expression(choices, depth - 1);
  const op = choices.pick(["-", "~", "!"]);
  const text = `${op}(${operand.text})`;
  // A minus directly before a literal makes it signed; the parenthesis here is only in the text.
  const signed = op === "!" || operand.signed;
  return {
    text,
    signed,
    evaluate: (env) => {
      const value = operand.evaluate(env);
      if (op === "!") return value === 0n ? 1n : 0n;
      return wrap(op === "-" ? -value : ~value, signed);
    },
  };
}

function cast(choices: Choices, depth: number): Number64 {
  const operand = expression(choices, depth - 1);
  const bits = choices.pick([8, 16, 32, 64]);
  const signed = choices.below(2) === 0;
  return {
    text: `(${signed ? "" : "u"}int${bits})(${operand.text})`,
    signed,
    evaluate: (env) => {
      const value = operand.evaluate(env);
      return signed ? BigInt.asIntN(bits, value) : BigInt.asUintN(bits, value);
    },
  };
}

function ternary(choices: Choices, depth: number): Number64 {
  const condition = expression(choices, depth - 1);
  const yes = expression(choices, depth - 1);
  const no = expression(choices, depth - 1);
  const signed = yes.signed && no.signed;
  return {
    text: `(${condition.text} ? ${yes.text} : ${no.text})`,
    signed,
    evaluate: (env) => wrap((condition.evaluate(env) !== 0n ? yes : no).evaluate(env), signed),
  };
}

function comparison(choices: Choices, depth: number): Number64 {
  const left = expression(choices, depth - 1);
  const right = expression(choices, depth - 1);
  const op = choices.pick(["<", "<=", ">", ">=", "==", "!=", "&&", "||"]);
  const signed = left.signed && right.signed;
  return {
    text: `(${left.text} ${op} ${right.text})`,
    signed: true,
    evaluate: (env) => {
      const a = wrap(left.evaluate(env), signed);
      const b = wrap(right.evaluate(env), signed);
      const result = {
        "<": a < b,
        "<=": a <= b,
        ">": a > b,
        ">=": a >= b,
        "==": a === b,
        "!=": a !== b,
        "&&": a !== 0n && b !== 0n,
        "||": a !== 0n || b !== 0n,
      }[op];
      return result ? 1n : 0n;
    },
  };
}

function arithmetic(choices: Choices, depth: number): Number64 {
  const left = expression(choices, depth - 1);
  const right = expression(choices, depth - 1);
  const op = choices.pick(["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"]);
  const isShift = op === "<<" || op === ">>";
  const signed = isShift ? left.signed : left.signed && right.signed;
  return {
    text: `(${left.text} ${op} ${right.text})`,
    signed,
    evaluate: (env) => compute(op, left.evaluate(env), right.evaluate(env), signed),
  };
}

function compute(op: string, left: bigint, right: bigint, signed: boolean): bigint {
  const a = wrap(left, signed);
  const b = wrap(right, signed);
  const shift = right & 63n;
  switch (op) {
    case "+":
      return wrap(a + b, signed);
    case "-":
      return wrap(a - b, signed);
    case "*":
      return wrap(a * b, signed);
    case "/":
      return b === 0n ? 0n : wrap(a / b, signed);
    case "%":
      return b === 0n ? a : wrap(a % b, signed);
    case "&":
      return wrap(a & b, signed);
    case "|":
      return wrap(a | b, signed);
    case "^":
      return wrap(a ^ b, signed);
    case "<<":
      return wrap(a << shift, signed);
    default:
      return a >> shift;
  }
}

interface Step {
  readonly text: string;
  run(env: Env): void;
}

let loops = 0;

function statement(choices: Choices, depth: number): Step {
  const kind = choices.below(depth > 0 ? 8 : 5);
  const target = choices.pick(variables);
  if (kind < 3) {
    const value = expression(choices, 3);
    return {
      text: `${target.name} = ${value.text};`,
      run: (env) => env.set(target.name, wrap(value.evaluate(env), target.signed)),
    };
  }
  if (kind === 3) {
    const op = choices.pick(["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"]);
    const value = expression(choices, 2);
    const signed = op === "<<" || op === ">>" ? target.signed : target.signed && value.signed;
    return {
      text: `${target.name} ${op}= ${value.text};`,
      run: (env) => {
        const result = compute(op, env.get(target.name)!, value.evaluate(env), signed);
        env.set(target.name, wrap(result, target.signed));
      },
    };
  }
  if (kind === 4) {
    const key = `@steps ${choices.below(3)}`;
    return {
      text: `${target.name} = ++@steps[${key.at(-1)}] + $v1++;`,
      run: (env) => {
        const stepped = env.get(key)! + 1n;
        env.set(key, stepped);
        const before = env.get("$v1")!;
        env.set("$v1", wrap(before + 1n, true));
        env.set(target.name, wrap(stepped + before, target.signed));
      },
    };
  }
  const body = statements(choices, depth - 1);
  if (kind === 5) {
    const condition = expression(choices, 2);
    const otherwise = statements(choices, depth - 1);
    return {
      text: `if (${condition.text}) { ${body.text} } else { ${otherwise.text} }`,
      run: (env) => (condition.evaluate(env) !== 0n ? body : otherwise).run(env),
    };
  }
  const counter = `$loop${loops++}`;
  const times = choices.below(4);
  return {
    text: `${counter} = 0; while (${counter} < ${times}) { ${counter}++; ${body.text} }`,
    run: (env) => {
      for (let i = 0; i < times; i++) body.run(env);
    },
  };
}

function statements(choices: Choices, depth: number): Step {
  const steps = Array.from({ length: 1 + choices.below(3) }, () => statement(choices, depth));
  return {
    text: steps.map((step) => step.text).join(" "),
    run: (env) => {
      for (const step of steps) step.run(env);
    },
  };
}

it("random programs compute what their statements say", () => {
  const numbers = fc.array(fc.nat(1_000_000), { minLength: 20, maxLength: 150 });
  fc.assert(
    fc.property(numbers, (list) => {
      loops = 0;
      const choices = new Choices(list);
      const body = statements(choices, 2);
      const env: Env = new Map([0, 1, 2].map((key) => [`@steps ${key}`, 0n]));
      const declarations = variables.map(({ name, signed }, i) => {
        env.set(name, BigInt(i * 3));
        return `${name} = (${signed ? "" : "u"}int64)(cpu + ${i * 3});`;
      });
      const prints = variables.map(({ name }) => `print(${name});`);
      const run = new TestRun(
        `BEGIN { ${declarations.join(" ")} @steps[9] = 1; ${body.text} ${prints.join(" ")} }`,
      );
      run.hit();
      body.run(env);
      expect(run.events()).toEqual(variables.map(({ name }) => `${env.get(name)}`));
    }),
    { numRuns: 150 },
  );
});

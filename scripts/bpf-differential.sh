#!/bin/sh
# Runs COUNT generated programs through the JIT and the interpreter, from seed SEED on.
set -eu
cd "$(dirname "$0")/.."
TRAPLINE_PROGRAMS=${1:-100000} TRAPLINE_SEED=${2:-1} exec npx vitest run test/torture/differential.test.ts --disable-console-intercept

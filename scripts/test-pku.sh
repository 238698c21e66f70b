#!/bin/bash
# Runs the tests that need protection keys of memory (vitest.pku.config.ts): here, if the processor has some and the kernel
# uses them, else in a virtual machine. Arguments go to vitest. Naming a kernel (TRAPLINE_MACHINE_KERNEL) asks for the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

run=(vitest run -c vitest.pku.config.ts "$@")
if [ -z "${TRAPLINE_MACHINE_KERNEL:-}" ] && grep -q '^flags.*\bospke\b' /proc/cpuinfo; then
  TRAPLINE_NEEDS_KEYS=1 exec npx "${run[@]}"
fi

log=$(mktemp)
second=
trap 'kill $second 2>/dev/null || true; rm -f "$log"' EXIT
# Collecting the files builds the programs that their tests will need there.
npx vitest list -c vitest.pku.config.ts "$@" >"$log" 2>&1 || {
  cat "$log" >&2
  exit 1
}
if [ $# -gt 0 ]; then
  scripts/pku-machine.sh "${run[@]}"
  exit
fi

# Each machine takes one processor of this one: all tests are shared by two.
scripts/pku-machine.sh "${run[@]}" --shard=2/2 >"$log" 2>&1 &
second=$!
code=0
scripts/pku-machine.sh "${run[@]}" --shard=1/2 || code=$?
wait $second || code=$?
second=
cat "$log"
exit $code

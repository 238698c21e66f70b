#!/bin/bash
# Everything that must hold: build, types, lint, import rules, tests. What the tests need beside Node is installed
# when this runs as root on a Debian or Ubuntu, or named in one line.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v gcc >/dev/null || missing+=(gcc)
command -v g++ >/dev/null || missing+=(g++)
command -v musl-gcc >/dev/null || missing+=(musl-tools)
command -v objdump >/dev/null || missing+=(binutils)
command -v python3 >/dev/null || missing+=(python3)
command -v redis-server >/dev/null || missing+=(redis-server)
[ -x /usr/sbin/nginx ] || command -v nginx >/dev/null || missing+=(nginx-light)
command -v clang >/dev/null || missing+=(clang)
[ -e /usr/include/bpf/bpf_helpers.h ] || missing+=(libbpf-dev)
command -v gdb >/dev/null || missing+=(gdb)
command -v strace >/dev/null || missing+=(strace)
command -v unshare >/dev/null || missing+=(util-linux)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
if ! grep -q '^flags.*\bospke\b' /proc/cpuinfo; then
  command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
  command -v cpio >/dev/null || missing+=(cpio)
fi

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    log=$(mktemp)
    echo "installing ${missing[*]}"
    { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" ||
      { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; }
    } >"$log" 2>&1 || {
      tail -n 5 "$log" >&2
      echo "the tests need: apt-get install ${missing[*]}" >&2
      exit 1
    }
  else
    echo "the tests need: apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi

step() {
  echo "== $1"
  shift
  "$@"
}

step "build" npm run --silent build
step "types" npm run --silent typecheck
step "lint" npm run --silent lint
step "import rules" npm run --silent imports
step "tests" npx vitest run "$@"
# What needs protection keys, in a machine that has some. With arguments, only the tests that they name were asked for.
[ $# -gt 0 ] || step "tests with protection keys" scripts/test-pku.sh

#!/bin/bash
# Runs a command in a virtual machine whose processor has protection keys: for machines without `pku`, by software emulation.
# The machine holds Node, this project as built, and programs that the fixtures were built to; no compiler, no network.
# All that lies in its memory, unpacked from the file that the kernel starts with: no disk, no modules.
#
#     scripts/pku-machine.sh vitest run src/gate
#
# Needs qemu-system-x86_64, cpio, and a kernel (scripts/machine-kernel.sh). The exit code is the command's. Environment:
#
#     TRAPLINE_MACHINE_KERNEL     which kernel: scripts/machine-kernel.sh
#     TRAPLINE_MACHINE_SECONDS    when it is ended by force (900)
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${TRAPLINE_MACHINE_SECONDS:-900}
for program in qemu-system-x86_64 cpio gcc; do
  command -v $program >/dev/null || {
    echo "the machine needs: apt-get install qemu-system-x86 cpio gcc" >&2
    exit 1
  }
done
kernel=$(scripts/machine-kernel.sh)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{proc,sys,dev,tmp,run,etc,root,project} "$root"/usr/{bin,sbin,lib,lib64}
for folder in bin sbin lib lib64; do ln -s usr/$folder "$root/$folder"; done
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"

# The libraries that a program or an addon is linked to.
bring_libraries() {
  local library
  for library in $(ldd "$1" 2>/dev/null | grep -oE '/[^ )]+'); do
    [ -e "$root/$library" ] || { mkdir -p "$root/$(dirname "$library")" && cp -L "$library" "$root/$library"; }
  done
}
for program in "$(command -v node)" /bin/sh /bin/sleep /bin/cat /bin/true /usr/bin/env; do
  cp -L "$program" "$root/usr/bin/$(basename "$program")"
  bring_libraries "$program"
done
for addon in node_modules/@rolldown/*/*.node; do bring_libraries "$addon"; done
gcc -O2 -static -o "$root/init" test/machine/init.c

tar --exclude=./.git --exclude=./node_modules -cf - . | tar -C "$root/project" -xf -
mkdir "$root/project/node_modules"
tar -C "$(readlink -f node_modules)" --exclude=./@biomejs --exclude=./@typescript --exclude=./@oxlint --exclude=./@swc \
  -cf - . | tar -C "$root/project/node_modules" -xf -
{
  echo 'cd /project'
  echo 'export CI=1 NO_COLOR=1 PATH=/project/node_modules/.bin:/usr/bin:/usr/sbin'
  echo 'export TRAPLINE_NEEDS_KEYS=1 TRAPLINE_NO_COMPILER=1 TRAPLINE_SLOWNESS=10'
  printf '%q ' "$@"
  echo
} >"$root/run-in-machine"
(cd "$root" && find . -print0 | cpio --null --create --format=newc --quiet) >"$work/initrd"

# The emulated processors share one clock, whatever the kernel thinks of their time stamp counters.
timeout "$seconds" qemu-system-x86_64 -machine pc -accel tcg,thread=multi -cpu max \
  -smp 2 -m 4G -nographic -no-reboot -nic none -kernel "$kernel" -initrd "$work/initrd" \
  -append 'console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable clocksource=tsc' \
  </dev/null | tee "$work/console" | sed -un '/machine: begins/,/machine: exit code/p' || true
code=$(sed -n 's/.*machine: exit code \([0-9]*\).*/\1/p' "$work/console" | tail -n 1)
if [ -z "$code" ]; then
  echo "the machine did not come to its end:" >&2
  tail -n 20 "$work/console" >&2
  exit 1
fi
exit "$code"

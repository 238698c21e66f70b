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
#     TRAPLINE_MACHINE_SECONDS    when it is ended by force (1800)
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${TRAPLINE_MACHINE_SECONDS:-1800}
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
gcc -O2 -o "$work/tsc-khz" test/machine/tsc-khz.c
khz=$("$work/tsc-khz")

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

# One thread emulates both processors, in turn: with one each, code that a program writes while it runs (as Node does) is now and
# then seen half old, half new. They share one clock, the host's, whatever the kernel thinks of it; how fast that one is, it cannot
# measure reliably here.
accelerator=(-accel tcg,thread=single -cpu max)
clock="tsc=reliable clocksource=tsc tsc_early_khz=$khz"
if [ -r /dev/kvm ] && [ -w /dev/kvm ] && grep -q '^flags.*\bpku\b' /proc/cpuinfo; then
  accelerator=(-accel kvm -cpu host)
  clock=
fi
machine=
trap 'kill $machine 2>/dev/null || true; rm -rf "$work"' EXIT
# A kernel that dies before its first program is started again: later ones than 6.1 often do under qemu 7.2.
for try in 1 2 3 4 5; do
  : >"$work/console"
  status=0
  timeout "$seconds" qemu-system-x86_64 -machine pc "${accelerator[@]}" \
    -smp 2 -m 4G -nographic -no-reboot -nic none -kernel "$kernel" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog rcupdate.rcu_cpu_stall_suppress=1 $clock" \
    </dev/null >"$work/console" 2>&1 &
  machine=$!
  # What it prints from its beginning on, as it comes.
  tail -n +1 -f --pid=$machine "$work/console" | sed -u '1,/machine: begins/d; /machine: exit code/,$d; s/\r$//' &
  wait $machine || status=$?
  wait
  [ "$status" = 0 ] && ! grep -q 'machine: begins' "$work/console" || break
done
code=$(sed -n 's/.*machine: exit code \([0-9]*\).*/\1/p' "$work/console" | tail -n 1)
[ -n "$code" ] && exit "$code"
if [ "$status" = 124 ]; then
  echo "the machine was still at work after $seconds seconds, and was ended" >&2
else
  echo "the machine ended without an exit code (status $status of qemu-system-x86_64); its last lines:" >&2
  tail -n 60 "$work/console" >&2
fi
exit 1

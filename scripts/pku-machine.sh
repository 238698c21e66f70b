#!/bin/bash
# Runs a command in a virtual machine whose processor has protection keys, by software emulation: for machines without
# `pku`. The machine holds Node, this project as built, and programs that the fixtures were built to; no compiler, no network.
#
#     scripts/pku-machine.sh npx vitest run src/gate
#
# Needs qemu-system-x86_64 and a kernel of Debian with its initrd (linux-image-cloud-amd64). The exit code is the command's.
set -euo pipefail
cd "$(dirname "$0")/.."

kernel=$(ls -1 /boot/vmlinuz-*-cloud-amd64 2>/dev/null | sort -V | tail -n 1)
initrd=${kernel/vmlinuz/initrd.img}
if [ -z "$kernel" ] || [ ! -e "$initrd" ] || ! command -v qemu-system-x86_64 >/dev/null; then
  echo "the machine needs: apt-get install qemu-system-x86 linux-image-cloud-amd64" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{proc,sys,dev,tmp,run,etc,root,project} "$root"/usr/{bin,sbin,lib,lib64}
for folder in bin sbin lib lib64; do ln -s usr/$folder "$root/$folder"; done
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"

# The libraries that a program or an addon is linked to.
bring_libraries() {
  for library in $(ldd "$1" 2>/dev/null | grep -oE '/[^ )]+'); do
    mkdir -p "$root/$(dirname "$library")"
    cp -Ln "$library" "$root/$library"
  done
}
for program in "$(command -v node)" /bin/sh /bin/sleep /bin/cat /usr/bin/env; do
  cp -L "$program" "$root/usr/bin/$(basename "$program")"
  bring_libraries "$program"
done
for addon in node_modules/@rolldown/*/*.node; do bring_libraries "$addon"; done
gcc -O2 -static -o "$root/usr/sbin/init" test/machine/init.c

tar --exclude=./.git --exclude=./node_modules -cf - . | tar -C "$root/project" -xf -
mkdir "$root/project/node_modules"
tar -C "$(readlink -f node_modules)" --exclude=./@biomejs --exclude=./@typescript --exclude=./@oxlint --exclude=./@swc \
  -cf - . | tar -C "$root/project/node_modules" -xf -
{
  echo 'cd /project'
  echo 'export CI=1 NO_COLOR=1 PATH=/project/node_modules/.bin:/usr/bin:/usr/sbin'
  printf '%q ' "$@"
  echo
} >"$root/run-in-machine"

megabytes=$(($(du -sm "$root" | cut -f1) + 200))
mke2fs -q -t ext4 -O ^has_journal -d "$root" "$work/disk" "${megabytes}M"
timeout "${TRAPLINE_MACHINE_SECONDS:-600}" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max \
  -smp 2 -m 3G -nographic -no-reboot -nic none \
  -kernel "$kernel" -initrd "$initrd" -append 'root=/dev/vda rw init=/sbin/init console=ttyS0 quiet panic=-1' \
  -drive "file=$work/disk,if=virtio,format=raw,snapshot=on" </dev/null | tee "$work/console" | sed -un '/machine: begins/,/machine: exit code/p'
code=$(sed -n 's/.*machine: exit code \([0-9]*\).*/\1/p' "$work/console" | tail -n 1)
if [ -z "$code" ]; then
  echo "the machine did not come to its end:" >&2
  tail -n 20 "$work/console" >&2
  exit 1
fi
exit "$code"

#!/bin/bash
# Prints the path of a Linux kernel for scripts/pku-machine.sh. Nothing is installed: a kernel that is not there is taken
# out of its package. TRAPLINE_MACHINE_KERNEL says which one:
#
#     debian       Debian's kernel for clouds, of this release: from /boot, or from its package (what is taken otherwise)
#     backports    the same of this release's backports: a later one (since Linux 6.12 the kernel opens all keys while it
#                  writes a signal's frame)
#     /PATH        a vmlinuz
set -euo pipefail

wanted=${TRAPLINE_MACHINE_KERNEL:-debian}
kept=${TMPDIR:-/tmp}/trapline-kernels-$(id -u)
package=linux-image-cloud-amd64

fail() {
  echo "a kernel for the machine: $1" >&2
  exit 1
}

newest() { { find "$1" -maxdepth 1 -name 'vmlinuz-*-cloud-amd64' 2>/dev/null || true; } | sort -V | tail -n 1; }

# Downloads the package that the meta-package depends on and keeps its vmlinuz. Arguments: the folder to keep it in, and options
# of apt-get.
take_from_package() (
  folder=$1
  shift
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  # apt-get downloads as a user of its own, if root lets it.
  chmod 755 "$work"
  image=$(apt-cache "$@" depends "$package" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
  [ -n "$image" ] || return 1
  (cd "$work" && apt-get "$@" download "$image" >log 2>&1) || return 1
  dpkg-deb --fsys-tarfile "$work"/*.deb | tar -C "$work" -xf - --wildcards './boot/vmlinuz-*'
  mkdir -p "$folder"
  mv "$work"/boot/vmlinuz-* "$folder"
)

case $wanted in
  /*)
    [ -r "$wanted" ] || fail "$wanted cannot be read"
    echo "$wanted"
    exit
    ;;
  debian)
    kernel=$(newest /boot)
    [ -n "$kernel" ] && [ -r "$kernel" ] || kernel=$(newest "$kept/debian")
    if [ -z "$kernel" ]; then
      command -v apt-get >/dev/null || fail "set TRAPLINE_MACHINE_KERNEL to a vmlinuz"
      take_from_package "$kept/debian" ||
        { [ "$(id -u)" = 0 ] && apt-get update >/dev/null 2>&1 && take_from_package "$kept/debian"; } ||
        fail "the package $package cannot be downloaded"
      kernel=$(newest "$kept/debian")
    fi
    ;;
  backports)
    kernel=$(newest "$kept/backports")
    if [ -z "$kernel" ]; then
      command -v apt-get >/dev/null || fail "set TRAPLINE_MACHINE_KERNEL to a vmlinuz"
      # Sources and lists of their own: those of this machine stay as they are.
      apt=$kept/apt
      mkdir -p "$apt/lists/partial" "$apt/parts"
      release=$(. /etc/os-release && echo "$VERSION_CODENAME")
      archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' "Codename: $release" | head -n 1)
      [ -n "$archive" ] || fail "no archive of Debian among the sources of apt-get"
      echo "deb $archive $release-backports main" >"$apt/sources"
      options=(-o "Dir::Etc::sourcelist=$apt/sources" -o "Dir::Etc::sourceparts=$apt/parts" -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache=$apt" -o "Dir::Cache::archives=$apt/archives")
      mkdir -p "$apt/archives/partial"
      apt-get "${options[@]}" update >"$apt/log" 2>&1 || fail "$archive $release-backports cannot be read: $apt/log"
      take_from_package "$kept/backports" "${options[@]}" || fail "the package $package of $release-backports cannot be downloaded"
      kernel=$(newest "$kept/backports")
    fi
    ;;
  *) fail "TRAPLINE_MACHINE_KERNEL is neither debian, backports nor an absolute path: $wanted" ;;
esac
echo "$kernel"

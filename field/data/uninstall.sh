#!@SHELL@
# Removes what install.sh installed, and nothing else.
set -u
android='@ANDROID@'
unit=hypervl-edge-watch.service

fail() { # message, remedy, exit code
    echo "error: $1" >&2
    [ -z "${2-}" ] || echo "$2" >&2
    exit "${3:-3}"
}

case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
here=$(CDPATH='' cd -- "$here" && pwd) || exit 3
if [ "${1-}" = --prefix ] && [ -n "${2-}" ]; then
    prefix=$2
elif [ "${1-}" = --help ] || [ "${1-}" = -h ]; then
    echo "sh uninstall.sh [--prefix DIR]"
    exit 0
elif [ $# -gt 0 ]; then
    fail "unknown option $1" "sh uninstall.sh [--prefix DIR]" 2
elif [ -r "$here/current" ]; then
    prefix=$here
elif [ "$android" = yes ]; then
    prefix=/data/local/tmp/hypervl-edge
else
    prefix=${HOME-}/.local/share/hypervl-edge
fi
[ -r "$prefix/current" ] && [ -d "$prefix/runtimes" ] ||
    fail "nothing is installed in $prefix" "Name the folder: sh uninstall.sh --prefix DIR."
units=${XDG_CONFIG_HOME:-${HOME-}/.config}/systemd/user
if [ -r "$units/$unit" ] && grep -F -q "$prefix/bin/toolkit" "$units/$unit"; then
    systemctl --user disable --now "$unit" 2>/dev/null
    rm -f "$units/$unit"
    systemctl --user daemon-reload 2>/dev/null
fi
# First that by which it starts.
rm -f "$prefix/current" "$prefix/previous" "$prefix/current.partial" "$prefix/bin/toolkit" "$prefix/uninstall.sh"
rm -rf "${prefix:?}/runtimes" "${prefix:?}/bundles" "${prefix:?}/incoming"
[ "$android" = no ] || rm -rf "${prefix:?}/cache"
rmdir "$prefix/bin" 2>/dev/null
rmdir "$prefix" 2>/dev/null
if [ -d "$prefix" ]; then
    echo "removed; what was not installed stays in $prefix"
else
    echo "removed $prefix"
fi
exit 0

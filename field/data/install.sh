#!@SHELL@
# Installs hypervl-edge for @TARGET@ into a folder of yours. It needs no network and no root.
set -u
target='@TARGET@' kernels='@KERNELS@' python='@PYTHON@' bits='@BITS@' glibc='@GLIBC@' android='@ANDROID@'
runtime='@RUNTIME@' bundle='@BUNDLE@' name='@NAME@'
runtime_kilobytes='@RUNTIME_KILOBYTES@' bundle_kilobytes='@BUNDLE_KILOBYTES@'
unit=hypervl-edge-watch.service

usage() {
    echo "sh install.sh [--prefix DIR] [--watch FOLDER --prompt TEXT [--no-start]]"
    echo "  --prefix DIR     install there; by default $(default_prefix)"
    echo "  --watch FOLDER   have a systemd user service answer --prompt for each picture put into FOLDER"
    echo "  --no-start       write the service, and start nothing"
}

fail() { # message, remedy, exit code
    echo "error: $1" >&2
    [ -z "${2-}" ] || echo "$2" >&2
    exit "${3:-3}"
}

default_prefix() {
    if [ "$android" = yes ]; then echo /data/local/tmp/hypervl-edge; else echo "${HOME-}/.local/share/hypervl-edge"; fi
}

shown() { # as it can be typed into a shell
    case $1 in *[!A-Za-z0-9_./~-]*) echo "'$(echo "$1" | sed "s/'/'\\\\''/g")'" ;; *) echo "$1" ;; esac
}

absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

read_options() {
    prefix='' folder='' prompt='' start=yes
    while [ $# -gt 0 ]; do
        case $1 in
            --prefix | --watch | --prompt)
                [ $# -gt 1 ] && [ -n "$2" ] || fail "$1 needs a value" "See sh install.sh --help." 2
                case $1 in --prefix) prefix=$2 ;; --watch) folder=$2 ;; --prompt) prompt=$2 ;; esac
                shift 2
                ;;
            --no-start) start=no && shift ;;
            -h | --help) usage && exit 0 ;;
            *) fail "unknown option $1" "See sh install.sh --help." 2 ;;
        esac
    done
    if [ -z "$prefix" ]; then
        [ -n "${HOME-}" ] || [ "$android" = yes ] || fail "HOME is not set" "Name a folder: --prefix DIR." 2
        prefix=$(default_prefix)
    fi
    prefix=$(absolute "$prefix")
    [ -n "$folder" ] || [ -z "$prompt" ] || fail "--prompt is for --watch" "Add --watch FOLDER." 2
    [ -z "$folder" ] || check_watch
}

check_watch() {
    [ "$android" = no ] || fail "Android has no systemd, which --watch needs" "Install without --watch." 2
    [ -n "$prompt" ] || fail "--watch has nothing to ask" "Add --prompt TEXT." 2
    [ -n "$bundle" ] || [ -r "$prefix/current" ] ||
        fail "--watch needs a bundle, and this package has none" "Make one: toolkit package BUNDLE ..." 2
    case $prompt$folder in *'
'*) fail "a prompt or folder of several lines cannot be in a service" "Write it in one line." 2 ;; esac
    folder=$(absolute "$folder")
}

check_machine() {
    machine=$(uname -m)
    case " $kernels " in *" $machine "*) return ;; esac
    fail "this machine is $machine, and the package is for $target" \
        "Make one for it: toolkit package --target pi-arm64, pi-armv7, linux-arm64, linux-x64 or android-arm64."
}

# Debian's programs of 32 bits are laid out for pages of 4 kB; the usual kernel of a Pi 5 has 16.
check_pages() {
    [ "$bits" = 32 ] || return 0
    pages=$(getconf PAGESIZE 2>/dev/null) || return 0
    [ "$pages" = 4096 ] || fail "this kernel has pages of $pages bytes, and programs of 32 bits need 4096" \
        "On a Pi 5, add kernel=kernel8.img to config.txt; or use a package for pi-arm64."
}

# Of an installed Python that is to serve: its version, whether it is whole, its bits, its C library.
check_python() {
    [ -n "$python" ] || return 0 # it is in the package
    ask='import ctypes, hashlib, json, platform, struct, sys
print("%d.%d" % sys.version_info[:2], struct.calcsize("P") * 8, "-".join(platform.libc_ver()))'
    other='' version=''
    for one in "python$python" python3; do
        command -v "$one" >/dev/null 2>&1 || continue
        version=$("$one" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        [ "$version" = "$python" ] && break
        other=$version version=''
    done
    remedy="Make a package for it: toolkit package --python ${other:-own}, or with a Python of its own: --python own."
    case $other in '' | 3.11 | 3.12 | 3.13) ;; *) remedy="Make a package with a Python of its own: --python own." ;; esac
    [ -n "$version" ] || [ -n "$other" ] || fail "there is no Python $python here" \
        "Install it (sudo apt install python3), or make a package with a Python of its own: --python own."
    [ -n "$version" ] || fail "Python is $other here, and the package is for Python $python" "$remedy"
    told=$("$one" -c "$ask" 2>&1) || fail "Python $python is not whole here: $(echo "$told" | tail -n 1)" \
        "Install all of it: sudo apt install python3."
    # shellcheck disable=SC2086
    set -- $told
    [ "$2" = "$bits" ] || fail "Python $python is one of $2 bits here, and the package is for $bits" \
        "Make one for 32 bits: toolkit package --target pi-armv7."
    check_glibc "${3-}"
}

check_glibc() { # "glibc-2.36", or something else
    have=${1#glibc-}
    case $1 in glibc-[0-9]*.[0-9]*) ;; *) fail "the C library here is not glibc" \
        "Make a package that brings its own: toolkit package --python own." ;; esac
    have_minor=${have#*.} need_minor=${glibc#*.}
    [ "${have%%.*}" -gt "${glibc%%.*}" ] || { [ "${have%%.*}" = "${glibc%%.*}" ] &&
        [ "${have_minor%%.*}" -ge "$need_minor" ]; } ||
        fail "the C library here is glibc $have, and the package needs $glibc or newer" \
            "Update the system, or make a package that brings its own: toolkit package --python own."
}

check_space() {
    above=$prefix
    while [ ! -d "$above" ]; do above=${above%/*} && [ -n "$above" ] || above=/; done
    [ -w "$above" ] || fail "you may not write to $above" "Choose another folder: --prefix DIR."
    [ "$here" != "$prefix" ] || return 0
    kilobytes=0
    [ -d "$prefix/runtimes/$runtime" ] || kilobytes=$((kilobytes + runtime_kilobytes))
    [ -z "$bundle" ] || [ -d "$prefix/bundles/$bundle" ] || kilobytes=$((kilobytes + bundle_kilobytes))
    # shellcheck disable=SC2046
    set -- $(df -Pk "$above" 2>/dev/null | tail -n 1)
    case ${4-} in '' | *[!0-9]*) return 0 ;; esac
    [ "$4" -ge "$kilobytes" ] || fail "$above has $(($4 / 1000)) MB free, and $((kilobytes / 1000 + 1)) MB are needed" \
        "Free some space, or choose another folder: --prefix DIR."
}

check_files() {
    echo "checking the package's files"
    told=$(cd "$here" && sha256sum -c files.sha256 2>&1) || fail \
        "the package is damaged: $(echo "$told" | sed '/: OK$/d' | head -n 1)" \
        "Copy the archive here again, and unpack it again."
}

is_whole() { # runtimes/<id> or bundles/<id>, as it lies in the prefix
    listed=$(sed -n "s| $1/|&|p" "$here/files.sha256")
    [ -d "$prefix/$1" ] && [ -n "$listed" ] && (cd "$prefix" && echo "$listed" | sha256sum -c - >/dev/null 2>&1)
}

place() { # runtimes/<id> or bundles/<id>
    [ "$here" != "$prefix" ] || return 0
    if is_whole "$1"; then return; fi
    partial=$prefix/${1%/*}/.${1#*/}.partial
    rm -rf "$partial" && mkdir -p "${partial%/*}" && cp -R "$here/$1" "$partial" ||
        give_up "$1 cannot be copied to $prefix"
    rm -rf "${prefix:?}/$1" && mv "$partial" "$prefix/$1" || give_up "$1 cannot be copied to $prefix"
}

give_up() {
    [ -z "${partial-}" ] || rm -rf "$partial"
    rm -f "$prefix/current.partial" "$prefix/bin/.toolkit.partial"
    fail "$1" "Free some space, or choose another folder: --prefix DIR. What was installed before is as it was."
}

make_programs() { # a file system may have lost who is one
    for one in "$prefix/bin" "$prefix/runtimes/$runtime/bin" "$prefix/runtimes/$runtime/root/lib" \
        "$prefix/runtimes/$runtime/root/usr/bin"; do
        [ ! -d "$one" ] || chmod 755 "$one"/*
    done
}

switch() {
    was_bundle='' was_name=''
    if [ -r "$prefix/current" ]; then
        while IFS='=' read -r key value; do
            case $key in bundle) was_bundle=$value ;; name) was_name=$value ;; esac
        done <"$prefix/current"
    fi
    # A package without a bundle leaves that which is there.
    [ -n "$bundle" ] || { bundle=$was_bundle && name=$was_name; }
    # Android's shell has no printf of its own.
    { echo "runtime=$runtime" && echo "bundle=$bundle" && echo "name=$name"; } >"$prefix/current.partial" ||
        give_up "$prefix/current cannot be written"
    sync
    if [ -r "$prefix/current" ] && [ "$(cat "$prefix/current")" != "$(cat "$prefix/current.partial")" ]; then
        cp "$prefix/current" "$prefix/previous.partial" && mv -f "$prefix/previous.partial" "$prefix/previous"
    fi
    mv -f "$prefix/current.partial" "$prefix/current" || give_up "$prefix/current cannot be written"
}

quoted() { # as one word of ExecStart=
    printf '"%s"' "$(printf '%s' "$1" | sed 's/[\\"]/\\&/g; s/%/%%/g; s/\$/$$/g')"
}

write_unit() {
    units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
    if [ -n "$folder" ]; then
        mkdir -p "$folder" "$units" || fail "$folder and $units cannot be made"
        # Which bundle it asks is what is in use whenever it starts.
        command="$(quoted "$prefix/bin/toolkit") watch"
        command="$command --folder $(quoted "$folder") --prompt $(quoted "$prompt")"
        command="$command --output $(quoted "$folder/answers.jsonl")"
        while IFS= read -r line; do
            case $line in ExecStart=*) printf 'ExecStart=%s\n' "$command" ;; *) printf '%s\n' "$line" ;; esac
        done <"$here/watch.service" >"$units/$unit.partial"
        mv -f "$units/$unit.partial" "$units/$unit" || fail "$units/$unit cannot be written"
    elif [ ! -r "$units/$unit" ] || ! grep -F -q "$prefix/bin/toolkit" "$units/$unit"; then
        return 0
    fi
    [ "$start" = yes ] || { echo "wrote $units/$unit; start it with: systemctl --user enable --now $unit" && return; }
    if systemctl --user daemon-reload 2>/dev/null && systemctl --user enable "$unit" 2>/dev/null &&
        systemctl --user restart "$unit" 2>/dev/null; then
        echo "started $unit, which watches a folder; its log: journalctl --user -u $unit"
    else
        echo "wrote $units/$unit, and systemd cannot be reached here to start it:"
        echo "  systemctl --user enable --now $unit"
    fi
    echo "To have it run when nobody is logged in: loginctl enable-linger"
}

case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
here=$(CDPATH='' cd -- "$here" && pwd) || exit 3
read_options "$@"
check_machine
check_pages
check_python
check_space
check_files
trap 'give_up "stopped"' INT TERM HUP
mkdir -p "$prefix/bin" || fail "$prefix cannot be made" "Choose another folder: --prefix DIR."
place "runtimes/$runtime"
[ -z "$bundle" ] || place "bundles/$bundle"
if [ "$here" != "$prefix" ]; then
    cp "$here/bin/toolkit" "$prefix/bin/.toolkit.partial" &&
        mv -f "$prefix/bin/.toolkit.partial" "$prefix/bin/toolkit" &&
        cp "$here/uninstall.sh" "$prefix/uninstall.sh" || give_up "$prefix/bin/toolkit cannot be written"
fi
make_programs
switch
trap - INT TERM HUP
[ "$android" = yes ] || write_unit
echo "installed in $prefix: runtime $runtime${bundle:+, bundle $name ($bundle)}"
echo "Next:"
if [ -n "$bundle" ]; then
    echo "  $(shown "$prefix/bin/toolkit") run --image photo.jpg --prompt \"What is this?\""
else
    echo "  $(shown "$prefix/bin/toolkit") run BUNDLE --image photo.jpg --prompt \"What is this?\""
fi
echo "To be rid of it: sh $(shown "$prefix/uninstall.sh")"

#!@SHELL@
# Starts the toolkit of the runtime that ../current names, and tells it the bundle.
case $0 in */*) prefix=${0%/*}/.. ;; *) prefix=.. ;; esac
prefix=$(CDPATH='' cd -- "$prefix" && pwd) || exit 3
runtime='' bundle=''
if [ -r "$prefix/current" ]; then
    while IFS='=' read -r key value; do
        case $key in
            runtime) runtime=$value ;;
            bundle) bundle=$value ;;
        esac
    done <"$prefix/current"
fi
if [ ! -r "$prefix/runtimes/$runtime/bin/toolkit" ] || [ -z "$runtime" ]; then
    echo "error: $prefix/current names no runtime that is there" >&2
    echo "Install the package again." >&2
    exit 3
fi
[ -z "$bundle" ] || export HYPERVL_BUNDLE="$prefix/bundles/$bundle"
exec @SHELL@ "$prefix/runtimes/$runtime/bin/toolkit" "$@"

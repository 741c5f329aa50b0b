#!@SHELL@
# Starts the Python that this runtime uses, with the runtime's libraries alone. Where it lies is found by its own
# name, so the folder may be moved.
case $0 in */*) here=${0%/*}/.. ;; *) here=.. ;; esac
here=$(CDPATH='' cd -- "$here" && pwd) || exit 3
export PYTHONPATH="$here/site" PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 PYTHONUTF8=1
[ -w "$here/site" ] || export PYTHONDONTWRITEBYTECODE=1
@ENVIRONMENT@
@START@

: "${TMPDIR:=/data/local/tmp}" "${XDG_CACHE_HOME:=${here%/runtimes/*}/cache}"
export TMPDIR XDG_CACHE_HOME

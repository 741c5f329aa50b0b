export PYTHONHOME="$here/root/usr" OPENSSL_CONF=/dev/null
exec "$here/root/lib/@LOADER@" --inhibit-cache --library-path "$here/root/lib" \
    --argv0 "$here/bin/python" "$here/root/usr/bin/python@PYTHON@" "$@"

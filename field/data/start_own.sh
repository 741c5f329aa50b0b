# The system's locales were made for another C library, its OpenSSL settings for another OpenSSL.
export PYTHONHOME="$here/root/usr" LC_ALL=C OPENSSL_CONF=/dev/null
exec "$here/root/lib/@LOADER@" --inhibit-cache --library-path "$here/root/lib" \
    --argv0 "$here/bin/python" "$here/root/usr/bin/python@PYTHON@" "$@"

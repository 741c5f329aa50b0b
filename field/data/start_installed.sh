unset PYTHONHOME
for python in /usr/bin/python@PYTHON@ python@PYTHON@; do
    command -v "$python" >/dev/null 2>&1 && exec "$python" "$@"
done
case $(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) in
    @PYTHON@) exec python3 "$@" ;;
esac
echo "error: Python @PYTHON@ is not on this machine any more" >&2
echo "Install it, or make a package for the Python that is: toolkit package --python own" >&2
exit 3

#!@SHELL@
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
exec "$here/python" -c 'import sys; from toolkit.entry import main; sys.argv[0] = "toolkit"; main()' "$@"

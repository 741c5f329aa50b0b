#!/bin/sh
# Python may have left bytecode beside its modules, which dpkg knows nothing of.
set -e
[ ! -d /opt/hypervl-edge/runtimes ] || find /opt/hypervl-edge/runtimes -name __pycache__ -prune -exec rm -rf {} +

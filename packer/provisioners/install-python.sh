#!/bin/bash
# Make the worker's virtual environment from the system's Python.
set -euo pipefail

usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if ! usable python3; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=300 update -qq
  apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends python3 python3-venv
  usable python3 || { echo "$(python3 --version) is too old: the worker wants 3.11" >&2; exit 1; }
fi
if [ ! -x /opt/transcribe/venv/bin/python ]; then
  python3 -m venv /opt/transcribe/venv
  # what older Pythons put in is too old for torch, which brings its own
  /opt/transcribe/venv/bin/python -m pip --disable-pip-version-check --quiet uninstall --yes setuptools 2>/dev/null
fi
/opt/transcribe/venv/bin/python --version

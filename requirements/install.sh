#!/bin/sh
# Makes .venv with everything the project uses: torch first and by itself, then the exact, hashed files beside this script,
# then the project with its C++ (and, where nvcc is, CUDA) kernels. Run by `make install`; safe to run again.
set -eu
cd "$(dirname "$0")/.."
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        command -v "$name" >/dev/null 2>&1 || continue
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then
            command -v "$name"
            return
        fi
    done
}
python=$(find_python)
[ -n "$python" ] || fail "Python 3.11, 3.12 or 3.13 is needed and ${PYTHON:-python3} is $(${PYTHON:-python3} -V 2>&1 || true); install one, or name it: make install PYTHON=/path/to/python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv module; on Debian and Ubuntu: apt install python3-venv (or python3.11-venv)"

free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
need_mb=${HANDPOSE_NEED_MB:-4000}
[ -d .venv ] || [ "$free_mb" -ge "$need_mb" ] || fail "only $free_mb MB are free here and the environment needs about $need_mb MB (a CUDA build of torch more); free some space or clone to another disk"

[ -x .venv/bin/python ] || "$python" -m venv .venv || fail "could not create .venv; remove it and try again"
pip=".venv/bin/python -m pip --disable-pip-version-check"

say() { printf '== %s\n' "$*"; }
say "torch 2.13.0 (alone: it decides between the CPU and the CUDA build)"
$pip install --quiet torch==2.13.0 || fail "torch 2.13.0 could not be installed; see the lines above (network, disk space, or a Python without a torch build)"
say "the locked packages"
$pip install --quiet --no-deps --require-hashes -r requirements/runtime.txt -r requirements/build.txt -r requirements/dev.txt \
    || fail "the locked packages could not be installed; see the lines above"
say "handpose itself"
$pip install --quiet --no-deps --no-build-isolation -e . || fail "handpose could not be installed; see the lines above"
.venv/bin/python -m shared.kernels

#!/usr/bin/env bash
# Everything that only a GPU can prove, in one go: build, tests, compute-sanitizer, tuning, benches with records.
#
#   bench/gpu.sh -t 1500                    all of it, within 25 minutes (without -t: 9.5, which cuts off the last)
#   bench/gpu.sh build tests sanitize       some of it; the parts are these and tune readout network step tangent_gram
#   bench/gpu.sh tune bench                 empirical_ntk infinite_ntk mnist, of which bench is all after tune
#
# build is csrc, with CUDA and for this GPU alone; where nvcc is not, nftk/_C*.so as it lies here is taken.
# A part that fails or runs out of time is told at the end and does not stop the others. Logs and records go to $OUT
# (default: bench/out): records.tar.gz is unpacked into bench/results, sm_*.json is what tuning left in kernels/tuned.
# MNIST is found by NFTK_DATA.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
total=560
if [ "${1:-}" = "-t" ]; then
  total=$2
  shift 2
fi
OUT="${OUT:-$PWD/bench/out}"
mkdir -p "$OUT"
work=$(mktemp -d)
pack() {
  if [ -d "$work/records" ]; then tar -czf "$OUT/records.tar.gz" -C "$work/records" .; fi
  cp kernels/tuned/sm_*.json "$OUT/" 2>/dev/null
}
trap 'pack; rm -rf "$work"' EXIT
began=$SECONDS

# a part's share of the time that is left
declare -A weight=(
  [build]=14 [tests]=22 [sanitize]=18 [tune]=20
  [readout]=10 [network]=20 [step]=16 [tangent_gram]=16 [empirical_ntk]=10 [infinite_ntk]=4 [mnist]=8
)
parts=()
for part in "${@:-build tests sanitize tune bench}"; do
  for name in $part; do
    if [ "$name" = bench ]; then
      parts+=(readout network step tangent_gram empirical_ntk infinite_ntk mnist)
    elif [ -n "${weight[$name]:-}" ]; then
      parts+=("$name")
    else
      echo "bench/gpu.sh: no part is called $name; there are ${!weight[*]}, and bench for all that are timed" >&2
      exit 2
    fi
  done
done

# the package: the checkout itself, installed or, where that cannot be done, put together in a folder of links
this_checkout='import os, nftk, nftk.kernels as k
assert os.path.realpath(k.__path__[0]) == os.path.realpath("kernels"), k.__path__'
map_package() {
  python3 -c "$this_checkout" 2>/dev/null && return
  # not over an extension that is there
  if ! compgen -G "nftk/_C*.so" >/dev/null; then
    python3 -m pip install --quiet --no-index --no-build-isolation --no-deps -e . 2>&1 | tail -n 5
  fi
  python3 -c "$this_checkout" 2>/dev/null && return
  echo "no editable install here; links instead"
  mkdir -p "$work/package/nftk"
  ln -s "$PWD"/nftk/* "$PWD/kernels" "$work/package/nftk/"
  # Python 3.11 and newer would else find ./nftk first, which has no kernels in it
  export PYTHONSAFEPATH=1 PYTHONPATH="$work/package:$PWD/bench"
  python3 -c "$this_checkout"
}

machine() {
  python3 - <<'PYTHON'
import torch
assert torch.cuda.is_available(), "torch finds no CUDA GPU"
import platform, triton
from importlib.metadata import version
print(torch.cuda.get_device_properties(0))
print("python", platform.python_version(), "torch", torch.__version__, "triton", triton.__version__,
      "pytest-benchmark", version("pytest-benchmark"))
PYTHON
}

# run LOG SECONDS COMMAND...: with a limit, output on the screen and at the end of a log
run() {
  local log=$1 seconds=$2
  shift 2
  echo "== $*" | tee -a "$OUT/$log"
  timeout -k 10 "$seconds" "$@" 2>&1 | tee -a "$OUT/$log"
  local code=${PIPESTATUS[0]}
  if [ "$code" = 124 ]; then echo "stopped after $seconds s" | tee -a "$OUT/$log"; fi
  return "$code"
}

build() {
  local arch
  arch=$(python3 -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))')
  run build.log "$1" env NFTK_BUILD_CUDA=1 NFTK_CUDA_ARCHS="$arch" python3 setup.py -q build_ext --inplace || return
  if [ -d "$work/package" ]; then ln -sf "$PWD"/nftk/_C* "$work/package/nftk/"; fi
  python3 -c 'import nftk._C as C; print(C.build_info())' | tee -a "$OUT/build.log"
}

tests() { run tests.log "$1" python3 -m pytest -q -p no:cacheprovider tests -m gpu; }

sanitize() {
  # the first run compiles, so that the tools watch nothing but the kernels
  run sanitize.log $(($1 / 3)) python3 bench/sanitize.py || return
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not here" | tee -a "$OUT/sanitize.log"
    return 3
  fi
  local failed=0 tool
  for tool in memcheck racecheck; do
    run sanitize.log $(($1 / 3)) compute-sanitizer --tool "$tool" --error-exitcode 9 python3 bench/sanitize.py || failed=1
  done
  return $failed
}

tune() { run tune.log "$1" python3 bench/tune.py --seconds $(($1 * 4 / 5)); }

benches() {
  local file=bench/bench_$1.py left=$2 since=$SECONDS
  if [[ $1 =~ ^(readout|network|step)$ ]] && python3 -c "import xdist" 2>/dev/null; then
    # compile the kernels in several processes; what fails here fails again below, where it counts
    run bench.log $((left / 3)) \
      python3 -m pytest -q -p no:cacheprovider "$file" --benchmark-disable -n 6 --dist loadgroup >/dev/null
    left=$((left - SECONDS + since))
  fi
  run bench.log "$left" \
    python3 -m pytest -q -p no:cacheprovider "$file" --record "$work/records" --seconds $((left * 3 / 5))
}
readout() { benches readout "$1"; }
network() { benches network "$1"; }
step() { benches step "$1"; }
tangent_gram() { benches tangent_gram "$1"; }
empirical_ntk() { benches empirical_ntk "$1"; }
infinite_ntk() { benches infinite_ntk "$1"; }
mnist() { benches mnist "$1"; }

rm -f "$OUT"/{build,tests,sanitize,tune,bench}.log "$OUT"/summary.txt
{ machine && map_package; } >"$OUT/machine.txt" 2>&1 || { cat "$OUT/machine.txt"; exit 1; }
cat "$OUT/machine.txt"

failed=0
for i in "${!parts[@]}"; do
  part=${parts[$i]} later=0
  for name in "${parts[@]:$i}"; do later=$((later + weight[$name])); done
  left=$((total - SECONDS + began))
  limit=$((left * weight[$part] / later))
  start=$SECONDS
  if [ "$left" -lt 20 ]; then
    said="no time left" code=1
  else
    "$part" "$limit"
    code=$?
    said=$([ "$code" = 0 ] && echo ok || echo "FAILED ($code)")
  fi
  [ "$code" = 0 ] || failed=1
  echo "$part: $said, $((SECONDS - start)) of $limit s" >>"$OUT/summary.txt"
  pack
done
echo "== summary"
cat "$OUT/summary.txt"
exit "$failed"

#!/usr/bin/env bash
# Everything that only a GPU can prove, in one go: the tests with the GPU ones on, then the benches.
# Logs and records go to $OUT (default: bench/out); copy what is to be kept into bench/results.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT="${OUT:-$PWD/bench/out}"
mkdir -p "$OUT"
export PYTHONPATH="$PWD"
python -c "import torch; assert torch.cuda.is_available(), 'no GPU'; print(torch.__version__, torch.cuda.get_device_name())" \
  | tee "$OUT/machine.txt" || exit 1
failed=0
python -m pytest tests/test_gpu.py -q 2>&1 | tee "$OUT/test_gpu.log" || failed=1
python -m pytest tests -q -m "not slow and not gpu" --ignore tests/test_package.py 2>&1 | tee "$OUT/test_all.log" || failed=1
python -m pytest bench/ -q --record "$OUT" 2>&1 | tee "$OUT/bench.log" || failed=1
exit "$failed"

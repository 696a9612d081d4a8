#!/usr/bin/env bash
# Builds, checks and times the CUDA kernels on the GPU of this machine, then prints one table with
# the dense attention of cuDNN and FlashAttention-2 (through PyTorch, where it is installed) from
# the same run. Exits 0 with a message where there is no GPU.
#   test/kernels/run-gpu.sh [folder for the logs]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
logs="${1:-$root/build/cuda-gpu/logs}"
build="$root/build/cuda-gpu"

if ! nvidia-smi --query-gpu=name --format=csv,noheader >/dev/null 2>&1; then
  echo "No NVIDIA GPU here: the CUDA kernels were not run."
  exit 0
fi
mkdir -p "$logs"

capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)"
# The sm_90 code of the general kernels comes with sm_90a, which wgmma needs.
[[ "$capability" == 90 ]] && capability=90a
state() { nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader; }

echo "== Build for sm_$capability"
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
cmake -S "$root/kernels/cuda" -B "$build" "${generator[@]}" -DCMAKE_CUDA_ARCHITECTURES="$capability-real" \
  >"$logs/configure.txt"
cmake --build "$build" --parallel 2>&1 | tee "$logs/build.txt" | grep -E "error|warning" || true
python3 "$root/test/kernels/cuda/check_resources.py" "$logs/build.txt"

echo "== Check"
state
"$build/test_cuda_kernels" >"$logs/check.txt" || { grep -E "FAIL" "$logs/check.txt"; exit 1; }
tail -1 "$logs/check.txt"

echo "== Time"
state
"$build/bench_cuda_kernels" >"$logs/bench.txt"
head -1 "$logs/bench.txt"
grep -E ": [0-9.]+$" "$logs/bench.txt"
state
torch=()
if python3 -c "import torch" 2>/dev/null; then
  python3 "$root/test/kernels/cuda/torch_bench.py" >"$logs/torch.txt"
  torch=("$logs/torch.txt")
else
  echo "PyTorch is not installed: no comparison with cuDNN and FlashAttention-2"
fi
state
python3 "$root/test/kernels/cuda/summary.py" "$logs/bench.txt" "${torch[@]}" | tee "$logs/table.txt"

echo "== Sanitize"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # racecheck takes the copies of TMA for hazards, so it checks the path without them.
    path=()
    [[ "$tool" == racecheck ]] && path=(--mma-sync)
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/test_cuda_kernels" --small "${path[@]}" \
      >"$logs/$tool.txt" 2>&1 || { tail -30 "$logs/$tool.txt"; exit 1; }
    echo "$tool: $(tail -1 "$logs/$tool.txt")"
  done
else
  echo "compute-sanitizer is not installed: not run"
fi

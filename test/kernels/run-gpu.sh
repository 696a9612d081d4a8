#!/usr/bin/env bash
# Builds, checks, times and sanitizes the CUDA kernels and the CUDA engine on the GPU of this
# machine. Exits 0 with a message where there is no GPU; every part that is left out says why.
#   test/kernels/run-gpu.sh [--only PART,...] [--logs FOLDER]
# Parts, in this order:
#   check      every kernel against its reference
#   engine     the engine against double precision and, through sessions, against the CPU backend;
#              the latter needs the native tests (`npm run build -- --tests`; built here where Node
#              is) and for some cases a model (LONGSIGHT_TEST_MODEL)
#   time       kernels, beside cuDNN and FlashAttention-2 where PyTorch is installed
#   bench      the engine with random weights: prefill by part, steps, memory
#   llama      libllama with random weights of the same shape; needs LONGSIGHT_LLAMA_CUDA, a folder
#              with a CUDA build of it that this driver runs
#   sanitize   compute-sanitizer over small cases of all of it
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
build="$root/build/cuda-gpu"
logs="$build/logs"
parts=check,engine,time,bench,llama,sanitize

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "$1"
}
while (($#)); do
  case "$1" in
    --only) parts="${2:?--only needs parts}"; shift 2 ;;
    --logs) logs="${2:?--logs needs a folder}"; shift 2 ;;
    --help) usage 0 ;;
    *) echo "Unknown argument: $1" >&2; usage 2 >&2 ;;
  esac
done
for part in ${parts//,/ }; do
  [[ ,check,engine,time,bench,llama,sanitize, == *,"$part",* ]] || { echo "Unknown part: $part" >&2; exit 2; }
done
wanted() { [[ ,$parts, == *,"$1",* ]]; }

if ! nvidia-smi --query-gpu=name --format=csv,noheader >/dev/null 2>&1; then
  echo "No NVIDIA GPU here: neither the CUDA kernels nor the engine were run."
  exit 0
fi
mkdir -p "$logs"
export LONGSIGHT_CUDA_LIBRARY="$build/longsight-cuda.so" LONGSIGHT_CUDA_REQUIRED=1
state() { nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader; }
# Runs a program, keeps what it says in a log and shows its last line, or the failures.
checked() {
  local log="$logs/$1.txt"
  shift
  if ! "$@" >"$log" 2>&1; then
    grep -E "FAIL|rror" "$log" | head -40 || tail -20 "$log"
    echo "failed: $* (see $log)"
    exit 1
  fi
  echo "$(basename "$1"): $(tail -1 "$log")"
}

capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)"
# The sm_90 code of the general kernels comes with sm_90a, which wgmma needs.
[[ "$capability" == 90 ]] && capability=90a
echo "== Build for sm_$capability"
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
cmake -S "$root/kernels/cuda" -B "$build" "${generator[@]}" -DCMAKE_CUDA_ARCHITECTURES="$capability-real" \
  >"$logs/configure.txt"
cmake --build "$build" --parallel --target all longsight-cuda check_cuda_engine bench_cuda_engine 2>&1 |
  tee "$logs/build.txt" | grep -E "error|warning" || true
python3 "$root/test/kernels/cuda/check_resources.py" "$logs/build.txt"

if wanted check; then
  echo "== Check"
  state
  for program in test_cuda_kernels test_cuda_pointwise test_cuda_weights test_cuda_linear; do
    checked "$program" "$build/$program"
  done
fi

sessions="$root/build/native/test_cuda_engine"
if wanted engine; then
  echo "== Engine"
  state
  checked check_cuda_engine "$build/check_cuda_engine"
  if [[ ! -x "$sessions" ]] && command -v node >/dev/null; then
    (cd "$root" && node scripts/build.mjs --tests) >"$logs/build-native.txt" 2>&1 || tail -5 "$logs/build-native.txt"
  fi
  if [[ -x "$sessions" ]]; then
    model=()
    [[ -n "${LONGSIGHT_TEST_MODEL:-}" ]] || model=(--gtest_filter=-RealModel.*)
    checked test_cuda_engine "$sessions" --gtest_brief=1 "${model[@]}"
    [[ -n "${LONGSIGHT_TEST_MODEL:-}" ]] || echo "LONGSIGHT_TEST_MODEL is not set: the real model was not run"
  else
    echo "$sessions is not there and cannot be built here: the engine was not compared with the CPU backend"
  fi
fi

if wanted time; then
  echo "== Time"
  state
  "$build/bench_cuda_kernels" >"$logs/bench.txt"
  head -1 "$logs/bench.txt"
  grep -E ": [0-9.]+$" "$logs/bench.txt"
  "$build/bench_cuda_linear" | tee "$logs/linear.txt"
  "$build/bench_cuda_weights" | tee "$logs/weights.txt"
  state
  torch=()
  if python3 -c "import torch" 2>/dev/null; then
    python3 "$root/test/kernels/cuda/torch_bench.py" >"$logs/torch.txt"
    torch=("$logs/torch.txt")
  else
    echo "PyTorch is not installed: no comparison with cuDNN and FlashAttention-2"
  fi
  python3 "$root/test/kernels/cuda/summary.py" "$logs/bench.txt" "${torch[@]}" | tee "$logs/table.txt"
fi

if wanted bench; then
  echo "== Engine with random weights"
  for weights in bf16 q4_k_m; do
    state
    "$build/bench_cuda_engine" --weights "$weights" --tokens 131072 --new 200 --depths 4096,131072 |
      tee "$logs/engine-$weights.txt"
  done
fi

if wanted llama; then
  echo "== libllama with random weights"
  libraries="${LONGSIGHT_LLAMA_CUDA:-}"
  if [[ -z "$libraries" ]]; then
    echo "LONGSIGHT_LLAMA_CUDA is not set: no comparison with libllama"
  else
    headers="$root/.deps/llama"
    c++ -std=c++20 -O2 -I"$headers/include" -I"$headers/ggml/include" \
      "$root/test/bench/llama_gpu.cpp" -o "$build/llama_gpu" -L"$libraries" \
      "-Wl,-rpath,$libraries" -Wl,--allow-shlib-undefined \
      $(cd "$libraries" && printf -- '-l:%s ' libllama.*so libggml.*so libggml-base.so)
    for weights in q4_k_m f16; do
      state
      "$build/llama_gpu" write "/dev/shm/longsight-$weights.gguf" "$weights"
      "$build/llama_gpu" bench "/dev/shm/longsight-$weights.gguf" "$libraries" 4096,32768,131072 2048 \
        "$weights" | tee "$logs/llama-$weights.txt"
      rm "/dev/shm/longsight-$weights.gguf"
    done
  fi
fi

if wanted sanitize; then
  echo "== Sanitize"
  if command -v compute-sanitizer >/dev/null; then
    sanitized() { # TOOL NAME PROGRAM ARGUMENTS...
      local log="$logs/$1-$2.txt" tool="$1" name="$2"
      shift 2
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$@" >"$log" 2>&1 || { tail -30 "$log"; exit 1; }
      echo "$tool, $name: $(tail -1 "$log")"
    }
    for program in kernels pointwise weights linear; do
      sanitized memcheck "$program" "$build/test_cuda_$program" --small
    done
    # racecheck takes the copies of TMA for hazards, so it checks the path without them.
    sanitized racecheck kernels "$build/test_cuda_kernels" --small --mma-sync
    if [[ -x "$sessions" ]]; then
      sanitized memcheck engine "$sessions" \
        --gtest_filter='*TinySessions.StepsReplaceRows/cuda:*TinyAttention.BordersAnywhere/cuda:*TinyModels.EveryArchitecture/cuda'
    fi
  else
    echo "compute-sanitizer is not installed: not run"
  fi
fi

"""What the kernels are compared with, through PyTorch: the matrix rate that the card sustains for
three seconds, and dense causal attention of cuDNN and FlashAttention-2.

One line a measurement: name, median milliseconds of one layer, TFLOP/s.
"""

import statistics
import subprocess
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = [
    (32768, 32, 8, 128),
    (131072, 32, 8, 128),
    (131072, 14, 2, 64),
    (32768, 32, 8, 80),
    (32768, 32, 8, 96),
    (32768, 16, 4, 256),
]


def median_ms(work, runs=3):
    flush = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    times = []
    for index in range(runs + 1):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if index > 0:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def sustained_matmul():
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    begin = time.monotonic()
    products = 0
    while time.monotonic() - begin < 3:
        for _ in range(20):
            torch.matmul(a, b)
        torch.cuda.synchronize()
        products += 20
    seconds = time.monotonic() - begin
    state = subprocess.run(
        ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    ms = seconds * 1e3 / products
    tflops = 2.0 * size**3 / ms / 1e9
    print(f"{'matrix product 8192, sustained 3 s (' + state + ')':58s} {ms:10.3f} ms {tflops:8.1f} TFLOP/s", flush=True)


def main():
    sustained_matmul()
    for rows, heads, kv_heads, dim in SHAPES:
        q = torch.randn(1, rows, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        k, v = (
            torch.randn(1, kv_heads, rows, dim, device="cuda", dtype=torch.bfloat16)
            for _ in range(2)
        )
        for name, backend in (
            ("cuDNN", SDPBackend.CUDNN_ATTENTION),
            ("FlashAttention-2", SDPBackend.FLASH_ATTENTION),
        ):
            label = f"{rows} {heads}/{kv_heads} d{dim} {name} dense"
            try:
                with sdpa_kernel(backend):
                    ms = median_ms(
                        lambda: torch.nn.functional.scaled_dot_product_attention(
                            q, k, v, is_causal=True, enable_gqa=True
                        )
                    )
                tflops = 2.0 * rows * rows * dim * heads / ms / 1e9
                print(f"{label:58s} {ms:10.3f} ms {tflops:8.1f} TFLOP/s", flush=True)
            except RuntimeError as error:
                print(f"{label:58s} not available: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()

"""cuBLAS on the products of bench_cuda_linear, through PyTorch: name, median ms, TFLOP/s."""

import statistics
import sys

import torch

SHAPES = [("qkv", 4096, 6144), ("output", 4096, 4096), ("gate|up", 4096, 28672), ("down", 14336, 4096)]


def timed(work):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def report(name, ms, flop):
    print(f"{name:66s} {ms:10.4f} ms {flop / ms / 1e9:8.1f} TFLOP/s", flush=True)


def main():
    flush = torch.zeros(64 << 20, dtype=torch.float32, device="cuda")
    for rows in map(int, sys.argv[1:] or ["16", "64", "200", "256", "8192", "16384"]):
        def draw(*size):
            return torch.rand(*size, device="cuda", dtype=torch.float32).mul_(4).sub_(2).bfloat16()

        tasks = [
            (name, draw(rows, inner), draw(outputs, inner)) for name, inner, outputs in SHAPES
        ]
        products = [(name, lambda x=x, w=w: x @ w.T, 2.0 * rows * w.numel()) for name, x, w in tasks]
        for name, product, flop in products:
            times = []
            for _ in range(8):
                flush.sum()
                times.append(timed(product))
            report(f"{rows} rows {name}, cuBLAS", statistics.median(times[1:]), flop)

        def model():
            for _ in range(32):
                for _, product, _ in products:
                    product()

        times = [timed(model) for _ in range(16384 * 6 // rows if rows > 1024 else 20)]
        report(
            f"{rows} rows 32 layers in turns, sustained, cuBLAS",
            statistics.mean(times[len(times) // 2 :]),
            32 * sum(flop for _, _, flop in products),
        )


if __name__ == "__main__":
    main()

"""One table from the logs of bench_cuda_kernels and torch_bench.py: time, share of cuDNN's dense
attention, speed against cuDNN or FlashAttention-2.

    python3 summary.py BENCH_LOG [TORCH_LOG]
"""

import re
import sys

LINE = re.compile(r"^(?P<name>.+?)\s+(?P<ms>\d+\.\d+) ms\s+(?P<rate>\d+\.\d) (?P<unit>\S+)$")


def read(path):
    with open(path, encoding="utf-8") as file:
        matches = (LINE.match(line.rstrip()) for line in file)
        return [(m["name"], float(m["ms"]), f"{m['rate']} {m['unit']}") for m in matches if m]


def main():
    ours = read(sys.argv[1])
    dense = {name: ms for name, ms, _ in read(sys.argv[2])} if len(sys.argv) > 2 else {}
    print(f"{'measurement':78s} {'ms':>10s} {'rate':>16s} {'% cuDNN':>8s} {'x cuDNN':>8s} {'x FA2':>6s}")
    for name, ms, rate in ours:
        shape = " ".join(name.split()[:3])
        cudnn = dense.get(f"{shape} cuDNN dense")
        flash = dense.get(f"{shape} FlashAttention-2 dense")
        share = f"{100 * ms / cudnn:8.2f} {cudnn / ms:8.2f}" if cudnn else " " * 17
        against = f"{flash / ms:6.2f}" if flash else ""
        print(f"{name:78s} {ms:10.3f} {rate:>16s} {share} {against}")
    for name, ms in dense.items():
        print(f"{name:78s} {ms:10.3f}")


if __name__ == "__main__":
    main()

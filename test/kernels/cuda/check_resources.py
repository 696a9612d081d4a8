"""Reads ptxas' report of a build and checks it: no spills, no serialised wgmma, and registers and
static shared memory of every kernel within the limits below. Prints a table of the kernels.

    python3 check_resources.py BUILD_LOG
"""

import re
import sys

# For the kernels of a source: most registers, so that as many blocks fit on a multiprocessor as the
# design counts on, and most bytes of static shared memory; "source 256" is for heads of that many
# dimensions, "source x2" for instances with two tiles of rows. Dynamic shared memory is not in the
# report: the launchers assert at compile time that it fits (kSharedBytesEverywhere). wgmma kernels
# shift registers between warpgroups: 168 at entry for 384 threads.
LIMITS = {
    "attend_sm90": (168, 0),
    "peak_votes_sm90": (255, 0),
    "attend_sm80": (255, 0),
    "attend_sm80 64": (168, 0),
    "peak_votes_sm80": (255, 0),
    "masses_sm90": (168, 0),
    "masses_sm80": (255, 0),
    "voter_log_sums": (128, 0),
    "quantize": (128, 128),
    "mass_threshold": (64, 20 << 10),
    "anchors": (128, 0),
    "audit": (168, 0),
    "decode": (168, 8 << 10),
    "decode 256": (255, 8 << 10),
    "decode x2": (255, 8 << 10),
    "column_lists": (64, 32 << 10),
    "q8_rows": (64, 0),
    "combine": (64, 0),
    "drawn_votes": (64, 0),
    "norms": (128, 256),
    "rope_store": (80, 8 << 10),
    "place": (96, 0),
    # Two blocks either way: where these take more than 96, shared memory allows no third.
    "expand": (128, 36 << 10),
    "product": (128, 1 << 10),
    "linear_sm90": (168, 0),
    "linear_sm80": (255, 0),
    "to_e4m3": (64, 64),
    "bench_data": (64, 0),
    "linear_reference": (80, 8 << 10),
}


def source_of(kernel: str) -> str | None:
    """The name of the file, without .cu, in which a kernel of an anonymous namespace stands.

    Names inside of a mangled one have their length before them. nvcc calls the namespace
    _GLOBAL__N__<hash>_<length>_<file, dots as underscores>_<hash>, and a hash may end in digits or
    be nothing else: only the lengths tell where a name ends.
    """
    rest = kernel.removeprefix("_ZN")
    while length := re.match(r"\d+", rest):
        end = length.end() + int(length[0])
        space = re.match(r"_GLOBAL__N__[0-9a-f]+_(\d+)_", rest[length.end() : end])
        if space:
            begin = length.end() + space.end()
            return rest[begin : begin + int(space[1])].removesuffix("_cu")
        rest = rest[end:]
    return None


def limits_of(kernel: str, source: str | None) -> tuple[int, int] | None:
    if re.search(r"Li\d+ELi2E", kernel) and f"{source} x2" in LIMITS:
        return LIMITS[f"{source} x2"]
    dim = re.search(r"Li(64|80|96|128|256)E", kernel)
    return LIMITS.get(f"{source} {dim[1]}" if dim else source, LIMITS.get(source))


def main() -> int:
    text = open(sys.argv[1], encoding="utf-8", errors="replace").read()
    faults = [line for line in text.splitlines() if "C7514" in line or "C7510" in line]
    rows = {}
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.S,
    )
    for match in pattern.finditer(text):
        kernel = f"{match['name']} for {match['arch']}"
        source = source_of(match["name"])
        registers = int(match["registers"])
        smem = re.search(r"(\d+) bytes smem", match["rest"])
        shared = int(smem[1]) if smem else 0
        seen = rows.get((source or "?", match["arch"]), (0, 0, 0))
        rows[source or "?", match["arch"]] = (
            seen[0] + 1,
            max(seen[1], registers),
            max(seen[2], shared),
        )
        if int(match["stores"]) or int(match["loads"]):
            faults.append(f"{kernel} spills {match['stores']} bytes")
        limits = limits_of(match["name"], source)
        if limits is None:
            faults.append(f"{kernel}, of source {source or 'unknown'}, has no limits in LIMITS")
        elif registers > limits[0] or shared > limits[1]:
            faults.append(
                f"{kernel} uses {registers} registers of {limits[0]}, "
                f"{shared} static shared bytes of {limits[1]}"
            )
    compiled = text.count("Compiling entry function")
    reported = sum(kernels for kernels, _, _ in rows.values())
    if reported != compiled:
        faults.append(f"ptxas compiled {compiled} kernels and reported the resources of {reported}")
    if not rows:
        faults.append(f"no ptxas report in {sys.argv[1]}: was anything compiled?")
    print(f"{'source':18s} {'arch':8s} kernels  most registers  static shared bytes")
    for (source, arch), (kernels, registers, shared) in sorted(rows.items()):
        print(f"{source:18s} {arch:8s} {kernels:7d}  {registers:14d}  {shared:19d}")
    for fault in faults:
        print("FAULT:", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

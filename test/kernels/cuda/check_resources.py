"""Reads ptxas' report of a build and checks it: no spills, no serialised wgmma, and registers
within the limits below. Prints a table of the kernels.

    python3 check_resources.py BUILD_LOG
"""

import re
import sys

# Most registers that a kernel may use so that as many blocks fit on a multiprocessor as its design
# counts on; "source 256" is for heads of that many dimensions. Dynamic shared memory is not in the
# report: the launchers assert at compile time that it fits (kSharedBytesEverywhere). wgmma kernels
# shift registers between warpgroups: 168 at entry for 384 threads.
LIMITS = {
    "attend_sm90": 168,
    "peak_votes_sm90": 255,
    "attend_sm80": 255,
    "attend_sm80 64": 168,
    "peak_votes_sm80": 255,
    "masses_sm90": 168,
    "masses_sm80": 255,
    "voter_log_sums": 128,
    "quantize": 128,
    "mass_threshold": 64,
    "anchors": 128,
    "audit": 168,
    "decode": 168,
    "decode 256": 255,
    "column_lists": 64,
}


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
        source = re.search(r"_\d+_([a-z_0-9]+?)_cu_[0-9a-f]+", match["name"])
        unit = source.group(1) if source else match["name"]
        registers = int(match["registers"])
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        key = (unit, match["arch"])
        seen = rows.get(key, (0, 0, 0))
        rows[key] = (
            seen[0] + 1,
            max(seen[1], registers),
            max(seen[2], int(shared.group(1)) if shared else 0),
        )
        if int(match["stores"]) or int(match["loads"]):
            faults.append(f"{match['name']} for {match['arch']} spills {match['stores']} bytes")
        dim = re.search(r"Li(64|80|96|128|256)E", match["name"])
        limit = LIMITS.get(f"{unit} {dim.group(1)}" if dim else unit, LIMITS.get(unit, 255))
        if registers > limit:
            faults.append(f"{match['name']} for {match['arch']} uses {registers} registers of {limit}")
    if not rows:
        faults.append(f"no ptxas report in {sys.argv[1]}: was anything compiled?")
    print(f"{'source':18s} {'arch':8s} kernels  most registers  static shared bytes")
    for (unit, arch), (kernels, registers, shared) in sorted(rows.items()):
        print(f"{unit:18s} {arch:8s} {kernels:7d}  {registers:14d}  {shared:19d}")
    for fault in faults:
        print("FAULT:", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

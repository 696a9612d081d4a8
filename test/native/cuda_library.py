"""Opens longsight-cuda.so as the addon does, asks for GPUs, and says what it answers.

    python3 cuda_library.py LIBRARY HEADER none|some

`none`: this machine has no GPU, and the engine must say so in words; `some`: it must find one.
HEADER is native/cuda/api.h, which has the version and the names of the statuses.
"""

import ctypes
import re
import sys


class Error(ctypes.Structure):
    _fields_ = [
        ("status", ctypes.c_int),
        ("largest_context_rows", ctypes.c_int64),
        ("message", ctypes.c_char * 512),
        ("remedy", ctypes.c_char * 256),
    ]


class Device(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 128),
        ("ordinal", ctypes.c_int32),
        ("compute_capability", ctypes.c_int32),
        ("driver_version", ctypes.c_int32),
        ("total_bytes", ctypes.c_uint64),
        ("free_bytes", ctypes.c_uint64),
        ("status", ctypes.c_int),
    ]


DevicesFunction = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(Device),
    ctypes.c_int32,
    ctypes.POINTER(ctypes.c_int32),
    ctypes.POINTER(Error),
)


class Api(ctypes.Structure):
    """The first two members of the table."""

    _fields_ = [("version", ctypes.c_int32), ("devices", DevicesFunction)]


def main(library: str, header: str, expected: str) -> int:
    text = open(header, encoding="utf-8").read()
    version = int(re.search(r"#define LS_CUDA_API_VERSION (\d+)", text)[1])
    listed = re.search(r"enum LsStatus \{(.*?)\}", text, re.S)[1]
    statuses = {int(value): name for name, value in re.findall(r"(LS_\w+) = (\d+)", listed)}

    table_of = ctypes.CDLL(library).longsightCudaApi
    table_of.restype = ctypes.POINTER(Api)
    table_of.argtypes = [ctypes.c_int32]
    if table_of(version + 1):
        print(f"it claims to speak version {version + 1}")
        return 1
    table = table_of(version)
    if not table or table.contents.version != version:
        print(f"it does not speak version {version}")
        return 1

    devices = (Device * 16)()
    count = ctypes.c_int32(-1)
    error = Error()
    status = table.contents.devices(devices, 16, ctypes.byref(count), ctypes.byref(error))
    name = statuses[status]
    message = error.message.decode()
    print(f"{name} {message} {error.remedy.decode()}".rstrip())
    if expected == "some":
        for device in devices[: count.value]:
            print(f"{device.name.decode()}, compute capability {device.compute_capability}")
        return 0 if name == "LS_OK" and count.value > 0 else 1
    wanted = name in ("LS_NO_DRIVER", "LS_NO_DEVICE") and error.status == status
    return 0 if wanted and message.endswith(".") and count.value <= 0 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))

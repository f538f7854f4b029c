"""What the machine offers: device, precision, memory. Nothing is chosen when this is imported."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager

import torch


def pick_device() -> torch.device:
    """Return the GPU if there is one (CUDA, then Apple's), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _cpu_has_bfloat16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def pick_precision(device: torch.device) -> torch.dtype:
    """Return the fastest precision that `device` computes in natively.

    bfloat16 on CPUs with AVX-512-BF16 or AMX and on GPUs from Ampere on, float16 on older GPUs
    (training then needs a gradient scaler), float32 elsewhere.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager:
    """Return a context in which matrix products are done in `precision`."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest memory use so far in bytes: the GPU's, or this process's on a CPU.

    Returns 0 where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS gives bytes, Linux KiB


def describe_device(device: torch.device) -> str:
    """Name the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return {"mps": "GPU (Apple)", "cpu": "CPU"}[device.type]


def describe_hardware(device: torch.device, precision: torch.dtype) -> str:
    """Say in one line what was found: device, precision and, on a CPU, the number of threads."""
    line = f"{describe_device(device)}, {str(precision).removeprefix('torch.')}"
    if device.type == "cpu":
        line += f", {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return line


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory in the process instead of returning it.

    Training frees and allocates the same large tensors in every step; pages that come fresh from
    the system have to be cleared each time. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not shrink

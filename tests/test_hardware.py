import ctypes
import os
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from supplementary import hardware
from supplementary.hardware import (
    autocast,
    describe_hardware,
    keep_freed_memory,
    peak_memory_bytes,
    pick_device,
    pick_precision,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_gpu_is_picked_if_there_is_one(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device().type == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4
        ((8, 0), torch.bfloat16),  # A100
        ((8, 9), torch.bfloat16),  # L4
        ((9, 0), torch.bfloat16),  # H100
        ((10, 0), torch.bfloat16),
    ],
)
def test_gpus_from_ampere_on_take_bfloat16_and_older_ones_float16(
    monkeypatch, capability, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    assert pick_precision(CUDA) == expected


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (True, True, torch.bfloat16),
    ],
)
def test_cpu_takes_bfloat16_only_where_it_is_native(monkeypatch, avx512, amx, expected):
    for probe, answer in (("_is_avx512_bf16_supported", avx512), ("_is_amx_tile_supported", amx)):
        monkeypatch.setattr(torch.cpu, probe, lambda answer=answer: answer, raising=False)
    assert pick_precision(CPU) == expected


def test_cpu_takes_float32_where_torch_cannot_tell(monkeypatch):
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    assert pick_precision(CPU) == torch.float32


def test_apple_gpus_take_float32(monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_has_bfloat16", lambda: True)
    assert pick_precision(torch.device("mps")) == torch.float32


def test_matrix_products_are_done_in_the_precision_asked_for():
    weight = torch.ones(2, 2)
    with autocast(CPU, torch.bfloat16):
        assert (weight @ weight).dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with autocast(CPU, torch.float32):
            assert (weight @ weight).dtype == torch.float32


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak memory")
def test_peak_memory_of_this_process_is_plausible():
    assert 2**25 < peak_memory_bytes(CPU) < 2**40  # Python with torch takes more than 32 MiB


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3 * 1024), ("darwin", 3)])
def test_peak_memory_is_in_bytes_on_every_system(monkeypatch, platform, expected):
    usage = {"self": SimpleNamespace(ru_maxrss=3)}
    resource = SimpleNamespace(RUSAGE_SELF="self", getrusage=usage.get)
    monkeypatch.setitem(sys.modules, "resource", resource)
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory_bytes(CPU) == expected


def test_peak_memory_is_0_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails, as on Windows
    assert peak_memory_bytes(CPU) == 0


def test_peak_memory_of_a_gpu_is_what_torch_says(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *device: 12345)
    assert peak_memory_bytes(CUDA) == 12345


def test_hardware_is_described_in_one_line(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Tesla T4")
    assert describe_hardware(CPU, torch.float32) == "CPU, float32, 8 threads of 16 cores"
    assert describe_hardware(CUDA, torch.float16) == "Tesla T4, float16"
    assert describe_hardware(torch.device("mps"), torch.float32) == "GPU (Apple), float32"


class Library:
    """A C library that notes which of its settings are changed."""

    def __init__(self) -> None:
        self.settings = {}

    def mallopt(self, name: int, value: int) -> None:
        self.settings[name] = value


def test_freed_memory_is_kept_by_glibc(monkeypatch):
    library = Library()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    assert library.settings == {-4: 0, -1: 2**31 - 1}  # M_MMAP_MAX, M_TRIM_THRESHOLD


def test_nothing_is_asked_of_other_c_libraries(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # musl has no mallopt
    keep_freed_memory()

    def refuse(name):
        raise AssertionError("no library is to be opened")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    for platform in ("win32", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        keep_freed_memory()

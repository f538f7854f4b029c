"""Check that a machine is ready for the workshop, and say what is missing and what to do.

At its top this file imports the standard library only: it has to run where packages are missing.
"""

import ctypes
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 10), (3, 13))
MEMORY = 7 * 2**30  # bytes: notebook 04, which keeps copies of the weights, peaks at 6.8 GiB
DISK = 6 * 2**30  # bytes: the runs of notebooks 04 and 05 with their checkpoints
INSTALL = "pip install -r requirements.txt"
OFFLINE = (
    "without a network: `pip install --no-index --find-links wheels -r requirements.txt`, where "
    "`wheels` was filled by `pip download -r requirements.txt -d wheels` on a machine like this one"
)


@dataclass(frozen=True)
class Finding:
    """What one examination found.

    Args:
        name: what was looked at, and what is there.
        remedy: what to do; empty if all is well.
    """

    name: str
    remedy: str = ""


def check_python() -> Finding:
    """Look at the version of Python."""
    lowest, highest = (".".join(map(str, version)) for version in PYTHONS)
    name = f"Python {platform.python_version()}"
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Finding(name)
    return Finding(name, f"make the virtual environment with Python {lowest} to {highest}")


def _find_parser() -> type | None:
    """Return the class that reads a line of requirements; it comes with JupyterLab and with pip."""
    for name in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(name).Requirement
        except ImportError:
            continue
    return None


def check_packages(requirements: Path = ROOT / "requirements.txt") -> Finding:
    """Compare what is installed with the lines of `requirements.txt`."""
    parser = _find_parser()
    if parser is None:
        remedy = f"`python -m venv .venv`, activate it, then `{INSTALL}`; {OFFLINE}"
        return Finding("packages: not even pip is there", remedy)
    lines = requirements.read_text(encoding="utf-8").splitlines()
    wanted = [parser(text) for line in lines if (text := line.partition("#")[0].strip())]
    wanted = [need for need in wanted if need.marker is None or need.marker.evaluate()]
    wrong = []
    for need in wanted:
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
        else:
            if not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{need.name} {version} is not {need.specifier}")
    name = f"packages, {len(wanted) - len(wrong)} of {len(wanted)}"
    if wrong:
        return Finding(f"{name}: {'; '.join(wrong)}", f"`{INSTALL}`; {OFFLINE}")
    return Finding(name)


def check_jupyter() -> Finding:
    """See whether `jupyter` would start in the environment of this Python."""
    found = shutil.which("jupyter")
    if found is None:
        return Finding(
            "jupyter: no such command", f"activate the virtual environment, or `{INSTALL}`"
        )
    if Path(found).parent.resolve() != Path(sys.executable).parent.resolve():
        return Finding(
            f"jupyter: {found} belongs to another Python than {sys.executable}",
            "activate the virtual environment, or start with `python -m jupyterlab`",
        )
    return Finding("jupyter")


def check_data() -> Finding:
    """See whether the files of `data/` are there and whole."""
    least = {  # bytes: a pointer of Git LFS, or a cut download, is smaller
        "instruction-data.json": 100_000,
        "answer-key.json": 100_000,
        "adapter/adapter_model.safetensors": 5_000_000,
    }
    files = {name: ROOT / "data" / name for name in least}
    wrong = [n for n, f in files.items() if not f.is_file() or f.stat().st_size < least[n]]
    if wrong:
        return Finding(
            f"data: {', '.join(wrong)}: missing or cut", "copy the whole repository anew"
        )
    return Finding("data")


def check_model() -> Finding:
    """See whether the cache holds the pretrained model, whole."""
    from .download import GGUF_NAME, GGUF_SHA256, cache_folder
    from .files import sha256

    path = cache_folder() / GGUF_NAME
    remedy = (
        "with a network: `python -m supplementary doctor --fetch`; without one: copy the file from "
        f"another machine's cache to {path}, or set WORKSHOP_CACHE to a folder that holds it"
    )
    if not path.is_file():
        return Finding(f"model: {path} is missing", remedy)
    if sha256(path) != GGUF_SHA256:
        return Finding(f"model: {path} is damaged", f"remove it; then {remedy}")
    return Finding(f"model, in {path.parent}")


def total_memory() -> int | None:
    """Return the machine's memory in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        status = (ctypes.c_ulonglong * 8)()  # MEMORYSTATUSEX: two 32-bit fields, then 64-bit ones
        ctypes.cast(status, ctypes.POINTER(ctypes.c_ulong))[0] = ctypes.sizeof(status)
        return status[1] if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def check_memory() -> Finding:
    """Look at the machine's memory."""
    total = total_memory()
    if total is None:
        return Finding("memory: unknown")
    name = f"memory, {total / 2**30:.0f} GiB"
    if total < MEMORY:
        return Finding(name, "close other programs; run notebooks 04 and 05 on Colab instead")
    return Finding(name)


def check_folders() -> Finding:
    """See whether runs can be written, and whether the disk has room for them."""
    try:
        with tempfile.NamedTemporaryFile(dir=ROOT):
            pass
    except OSError as error:
        return Finding(f"disk: {ROOT} cannot be written ({error})", "copy the repository elsewhere")
    free = shutil.disk_usage(ROOT).free
    name = f"disk, {free / 2**30:.0f} GiB free"
    if free < DISK:
        return Finding(name, f"free {DISK / 2**30:.0f} GiB, or keep `runs/` on another disk")
    return Finding(name)


def check_answer() -> Finding:
    """Load the model and let it write a few tokens, as the notebooks do."""
    from .checkpoints import load_pretrained
    from .generation import respond
    from .hardware import describe_hardware, pick_device, pick_precision

    device = pick_device()
    model, tokenizer = load_pretrained(device=device)
    entry = {"instruction": "Name a colour.", "input": "", "output": ""}
    respond(model, tokenizer, [entry], max_new_tokens=4)
    return Finding(f"the model answers, on: {describe_hardware(device, pick_precision(device))}")


def describe_machine(minutes: int) -> "pandas.DataFrame":
    """Return one row for the beginning of a notebook: device, precision, memory, minutes.

    Args:
        minutes: what the notebook computes on two CPU cores.
    """
    import pandas
    import torch

    from .hardware import describe_device, pick_device, pick_precision

    device = pick_device()
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else total_memory()
    slower = max(1, 2 / torch.get_num_threads())
    expected = f"about {minutes * slower:.0f}" if device.type == "cpu" else f"less than {minutes}"
    row = {
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "precision": str(pick_precision(device)).removeprefix("torch."),
        "memory": f"{memory / 2**30:.0f} GiB" if memory else "unknown",
        "minutes": expected if minutes > 1 else "one or less",
    }
    return pandas.DataFrame([row], index=["here"])


EXAMINATIONS: list[Callable[[], Finding]] = [
    check_python,
    check_packages,
    check_jupyter,
    check_data,
    check_memory,
    check_folders,
    check_model,
    check_answer,
]


def examine(examination: Callable[[], Finding]) -> Finding:
    """Make an examination; if it fails itself, that is what it finds."""
    try:
        return examination()
    except Exception as error:  # whatever is broken here is to be told
        name = examination.__name__.removeprefix("check_")
        name = f"{name}: {type(error).__name__}: {error}"
        return Finding(name, f"mend what stands above; `{INSTALL}`")


def main(arguments: list[str] | None = None) -> int:
    """Print what was found; return 0 if the machine is ready, else 1."""
    if "--fetch" in (sys.argv[1:] if arguments is None else arguments):
        from .download import fetch_default_model

        fetch_default_model()
    problems = 0
    for examination in EXAMINATIONS:
        finding = examine(examination)
        print(f"{'problem' if finding.remedy else 'ok':8} {finding.name}", flush=True)
        if finding.remedy:
            problems += 1
            print(f"{'':8} remedy: {finding.remedy}")
    plural = "" if problems == 1 else "s"
    print(f"\n{problems} problem{plural}" if problems else "\nready for the workshop")
    return min(problems, 1)

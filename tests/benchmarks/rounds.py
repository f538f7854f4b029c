"""What the benchmarks share: rounds in fresh processes, the machine in words, tables.

A benchmark compares peers. Each measurement is a process of its own, which loads what it needs,
warms up, and prints one line of JSON at the end. All peers are measured once, then all once more,
so that a machine that slows down for a while slows all of them down.

The process that starts the others never loads a model: on Linux a process's peak memory is at least
what its parent held when it was started.
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

from supplementary.hardware import describe_hardware, pick_device, pick_precision

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def native_precisions() -> list[str]:
    """Name the precisions that this machine computes in natively, the fastest one first."""
    native = pick_precision(pick_device()) == torch.bfloat16
    return ["bfloat16", "float32"] if native else ["float32"]


def use_precision(name: str) -> None:
    """Let the workshop's code compute in this precision, whatever the machine does best.

    Replaces `pick_precision` in the modules that are loaded, so it is called after the imports.
    """
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("supplementary.") and hasattr(module, "pick_precision"):
            module.pick_precision = lambda device: PRECISIONS[name]


def now(device: torch.device) -> float:
    """Return a time in seconds at which all work given to `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(module: str, peer: str, arguments: list[str]) -> dict:
    """Measure one peer in a fresh process.

    Args:
        module: the benchmark, as `python -m` takes it.
        peer: handed to it as `--worker`; "save" makes it write the model instead.
        arguments: further arguments.

    Returns:
        What the process printed as JSON in its last line.

    Raises:
        RuntimeError: if the process fails; the message holds the end of its output.
    """
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", module, "--worker", peer, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=os.environ | quiet
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        end = (done.stdout + done.stderr).strip().splitlines()[-12:]
        raise RuntimeError(f"{peer} ended with code {done.returncode}:\n" + "\n".join(end))
    return json.loads(lines[-1])


def run_rounds(
    module: str, peers: list[str], rounds: int, arguments: list[str]
) -> dict[str, list[dict]]:
    """Measure all peers in turn, several times, and print each measurement.

    A peer that fails once is left out of everything that follows.

    Args:
        module, arguments: see `measure`; a `--round` with its number, from 0, is added.
        peers: their names.
        rounds: how often.

    Returns:
        For each peer that never failed one measurement a round.
    """
    results = {peer: [] for peer in peers}
    for number in range(rounds):
        for peer in list(results):
            try:
                row = measure(module, peer, [*arguments, "--round", str(number)])
            except RuntimeError as error:
                print(f"LEFT OUT: {error}", flush=True)
                del results[peer]
                continue
            results[peer].append(row)
            short = {key: value for key, value in row.items() if not isinstance(value, list)}
            print(f"round {number + 1} of {rounds}  {peer:36} {json.dumps(short)}", flush=True)
    return results


def choose_peers(peers: dict[str, str], only: str | None) -> list[str]:
    """Choose the peers to measure, and print which are left out because of their precision.

    Args:
        peers: the precision of each peer.
        only: names separated by commas; if None, all in the machine's native precisions.

    Raises:
        SystemExit: if a name is unknown.
    """
    if only:
        chosen = only.split(",")
        if unknown := [name for name in chosen if name not in peers]:
            raise SystemExit(f"unknown: {', '.join(unknown)}; there are: {', '.join(peers)}")
        return chosen
    native = native_precisions()
    left_out = [name for name, precision in peers.items() if precision not in native]
    if left_out:
        print(f"left out, as this machine has no native bfloat16: {', '.join(left_out)}\n")
    return [name for name in peers if name not in left_out]


def median_ratio(above: list[dict], below: list[dict], key: str = "seconds") -> float:
    """Return the median of the ratios that two peers have in each round."""
    return median(a[key] / b[key] for a, b in zip(above, below, strict=True))


def describe_machine(packages: list[str]) -> str:
    """Say on what and with what is measured: processor, threads, precision, versions."""
    device, cpu = pick_device(), Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if cpu.exists():
        lines = cpu.read_text(encoding="utf-8").splitlines()
        name = next((line.split(": ")[1] for line in lines if "model name" in line), name)
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    hardware = describe_hardware(device, pick_precision(device))
    return f"{name}: {hardware}; Python {platform.python_version()}, {', '.join(versions)}"


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; all columns but the first two are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    line = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (header, line, *rows)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)

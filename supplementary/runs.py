"""Checkpoints of a run: everything that is needed to go on as if nothing had happened."""

import shutil
from pathlib import Path

import torch
from torch import nn

from .files import read_json, read_tensors, sha256, whole_folder, write_json, write_tensors

_CONTENT = ("weights.safetensors", "optimizer.safetensors", "state.json")
_HASHES = "sha256.json"  # of these files; safetensors has no check of its own
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def write_checkpoint(
    run_folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict
) -> Path:
    """Write the trainable weights, the optimizer's moments and `state`; then drop the others.

    Args:
        run_folder: the folder of the run; the checkpoint is `checkpoint-STEP` in it.
        step: steps done.
        model: the model.
        optimizer: an AdamW optimizer over the model's trainable parameters.
        state: anything JSON can hold.

    Returns:
        The checkpoint's folder.
    """
    folder = Path(run_folder) / f"checkpoint-{step:06d}"
    parameters = _trainable(model)
    moments = {
        f"{name}.{moment}": optimizer.state[p][moment]
        for name, p in parameters.items()
        for moment in _MOMENTS
    }
    with whole_folder(folder, (*_CONTENT, _HASHES)) as beside:
        write_tensors(beside / "weights.safetensors", parameters)
        write_tensors(beside / "optimizer.safetensors", moments)
        write_json(beside / "state.json", state)
        write_json(beside / _HASHES, {name: sha256(beside / name) for name in _CONTENT})
    for other in _checkpoints(run_folder):
        if other != folder:
            shutil.rmtree(other)
    return folder


def _checkpoints(run_folder: Path) -> list[Path]:
    return sorted(Path(run_folder).glob("checkpoint-*"))


def latest_checkpoint(run_folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None if it has none."""
    return max(_checkpoints(run_folder), default=None)


def check_checkpoint(folder: Path) -> None:
    """See whether a checkpoint's files are, to the last bit, those that were written.

    Raises:
        ValueError: naming the file that is missing or damaged.
    """
    for name in (_HASHES, *_CONTENT):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; remove {folder} and train anew")
    hashes = read_json(folder / _HASHES)
    for name in _CONTENT:
        if hashes.get(name) != sha256(folder / name):
            raise ValueError(f"{folder / name} is damaged; remove {folder} and train anew")


def read_state(folder: Path) -> dict:
    """Return the `state` that was written with a checkpoint."""
    return read_json(folder / "state.json")


def read_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and moments into `model` and `optimizer`.

    Raises:
        ValueError: if it does not belong to this model's trainable parameters; nothing is changed.
    """
    weights = read_tensors(folder / "weights.safetensors")
    moments = read_tensors(folder / "optimizer.safetensors")
    parameters = _trainable(model)
    if {n: w.shape for n, w in weights.items()} != {n: p.shape for n, p in parameters.items()}:
        raise ValueError(f"{folder} was written for another model or method; train anew")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])
            # A fused optimizer counts its steps where the parameter is, others on the CPU.
            places = dict.fromkeys(_MOMENTS, p.device)
            if not optimizer.defaults["fused"]:
                places["step"] = torch.device("cpu")
            optimizer.state[p] = {
                moment: moments[f"{name}.{moment}"].to(place) for moment, place in places.items()
            }

"""LoRA adapters as small files, and the finetuned model to go on with.

An adapter's folder has the form of the PEFT library; `PeftModel.from_pretrained` loads it, too.
"""

from pathlib import Path

import torch

from .checkpoints import load_pretrained, prompt_style_of
from .data import ROOT
from .files import read_json, read_tensors, whole_folder, write_json, write_tensors
from .lora import TARGETS, LoRALinear, add_lora, merge_lora
from .model import CausalLM
from .tokenizer import Tokenizer

ADAPTER = ROOT / "data" / "adapter"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE_KEY = "base_model_name_or_path"
FILES = ("adapter_config.json", "adapter_model.safetensors", "metrics.json", "README.md")
_PREFIX = "base_model.model."  # what PEFT writes before a parameter's own name


def save_adapter(
    model: CausalLM, folder: Path, base: str = BASE, dtype: torch.dtype = torch.float32
) -> None:
    """Write the LoRA matrices of a model as a PEFT folder, whole or not at all.

    Args:
        model: a model with LoRA layers that are not merged.
        folder: holds `adapter_model.safetensors` and `adapter_config.json` afterwards.
        base: name or folder of the model that the adapter belongs to.
        dtype: precision of the stored matrices.

    Raises:
        FileExistsError: if the folder holds other files.
        ValueError: if the model has no LoRA layers.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    if not layers:
        raise ValueError("the model has no LoRA layers to save; call add_lora first")
    weights = {
        f"{_PREFIX}{name}.{half}.weight": getattr(layer, half).to(dtype)
        for name, layer in layers.items()
        for half in ("lora_A", "lora_B")
    }
    layer = next(iter(layers.values()))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        BASE_KEY: base,
        "r": layer.rank,
        "lora_alpha": layer.scaling * layer.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
        "inference_mode": True,
    }
    with whole_folder(folder, FILES) as beside:
        write_tensors(beside / "adapter_model.safetensors", weights)
        write_json(beside / "adapter_config.json", settings)


def load_adapter(model: CausalLM, folder: Path) -> None:
    """Put LoRA layers with the weights of a PEFT folder around a model's layers, in place.

    Raises:
        FileNotFoundError: if the folder lacks a file.
        ValueError: if it holds another kind of adapter, is damaged, or does not fit the model.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / name).exists():
            raise FileNotFoundError(
                f"{folder} has no {name}; it is no folder of an adapter in safetensors, and "
                "pickled ones are not read"
            )
    settings = read_json(Path(folder) / "adapter_config.json")
    _check(settings, folder)
    stored = read_tensors(Path(folder) / "adapter_model.safetensors")
    add_lora(model, settings["r"], settings["lora_alpha"])
    wanted = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    found = {name.removeprefix(_PREFIX).removesuffix(".weight"): t for name, t in stored.items()}
    shapes = {name: tuple(p.shape) for name, p in wanted.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in found.items()}:
        merge_lora(model)  # B is zero: the model is what it was
        raise ValueError(f"{folder}: the adapter does not fit this model; it was made for another")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])


def _check(settings: dict, folder: Path) -> None:
    wanted = {
        "peft_type": ["LORA"],
        "bias": ["none"],
        "use_rslora": [False],
        "use_dora": [False],
        "rank_pattern": [{}],
        "alpha_pattern": [{}],
        "init_lora_weights": [True, False, "gaussian"],  # others change the base model, too
        "target_modules": [sorted(TARGETS)],
    }
    for key, values in wanted.items():
        got = settings.get(key, values[0])
        if (sorted(got) if isinstance(got, list) else got) not in values:
            raise ValueError(f"{folder}: {key} is {got!r}; only {values[0]!r} is supported")
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), int | float):
            raise ValueError(f"{folder}/adapter_config.json gives no number as {key!r}")


def load_run(folder: Path, device: torch.device | None = None) -> tuple[CausalLM, Tokenizer]:
    """Load the model that a run ended with.

    Args:
        folder: a run's folder, with `model/` or `adapter/` in it; a model's; or an adapter's, which
            is put on its base model and merged.
        device: where the model goes; the CPU if None.

    Raises:
        FileNotFoundError: if the folder holds none of these.
        OSError, ValueError: as `load_pretrained` and `load_adapter`.
    """
    if saved := _find_model(folder):
        return load_pretrained(saved, device)
    adapter = find_adapter(folder)
    if adapter is None:
        raise FileNotFoundError(
            f"{folder} holds no finished run, no model and no adapter; give the folder that "
            "`finetune` wrote as --out"
        )
    model, tokenizer = load_base(adapter, device)
    load_adapter(model, adapter)
    merge_lora(model)
    return model, tokenizer


def _find(folder: Path, part: str, file: str) -> Path | None:
    """Return the part of a run that holds `file`, or `folder` if it does; None if neither does."""
    places = (Path(folder) / part, Path(folder))
    return next((place for place in places if (place / file).exists()), None)


def _find_model(folder: Path) -> Path | None:
    return _find(folder, "model", "config.json")


def find_adapter(folder: Path) -> Path | None:
    """Return the adapter's folder of a run, or `folder` if it is one; None if there is none."""
    return _find(folder, "adapter", "adapter_config.json")


def load_base(adapter: Path, device: torch.device | None = None) -> tuple[CausalLM, Tokenizer]:
    """Load the model that an adapter belongs to, as its configuration names it.

    The workshop's copy, with its 4-bit weights, stands for the original of that name.
    """
    base = read_json(adapter / "adapter_config.json").get(BASE_KEY)
    return load_pretrained(None if base == BASE else base, device)


def find_prompt_style(folder: Path) -> str | None:
    """Return the prompt style that a run, a model or an adapter was trained with, if files say it.

    Args:
        folder: as for `load_run`; its `metrics.json`, that of the run around it, and the chat
            template are looked at, in this order.
    """
    for metrics in (Path(folder) / "metrics.json", Path(folder).parent / "metrics.json"):
        if metrics.exists() and (style := read_json(metrics).get("prompt_style")):
            return style
    return prompt_style_of(folder)


def load_finetuned(
    run: Path | str | None = "runs/finetune", device: torch.device | None = None
) -> tuple[CausalLM, Tokenizer]:
    """Load the finetuned model: that of a run of your own, or else the workshop's adapter.

    Prints which of the two it is.

    Args:
        run: the folder of a run, or of a saved model; used if it holds a finished model. None for
            the adapter in any case.
        device: where the model goes; the CPU if None.

    Raises:
        OSError, ValueError: as `load_pretrained`.
    """
    if run and (saved := _find_model(run)):
        print(f"finetuned weights: your own, in {saved}")
        return load_pretrained(saved, device)
    reason = f", as {run} holds no finished run" if run else ""
    print(f"finetuned weights: the workshop's adapter{reason}")
    return load_run(ADAPTER, device)

"""Models as folders in Hugging Face's form, read and written; `load_pretrained` reads GGUF, too.

Only GGUF and safetensors files are read, never pickles, which can run code.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from .download import fetch_default_model, fetch_repository
from .files import read_json, read_tensors, whole_folder, write_json, write_tensors
from .gguf_files import read_gguf
from .model import CausalLM, ModelConfig, plain_weights
from .templates import chat_template, style_of_template
from .tokenizer import Tokenizer

FILES = ("config.json", "generation_config.json", "model*.safetensors*", "tokenizer*.json")


def load_pretrained(
    source: str | Path | None = None, device: torch.device | None = None
) -> tuple[CausalLM, Tokenizer]:
    """Load a pretrained model of the Llama family and its tokenizer.

    Args:
        source: None for the workshop's model (fetched once, then cached); a GGUF file; a folder in
            Hugging Face's form; or "owner/name" for a repository on the Hugging Face Hub.
        device: where the model goes; the CPU if None.

    Returns:
        The model, float32, in evaluation mode, and its tokenizer.

    Raises:
        FileNotFoundError: if a folder lacks a file.
        ValueError: if `source` is none of these, or the checkpoint is of another architecture.
        OSError: if the files cannot be fetched.
    """
    if source is None:
        read, path = read_gguf, fetch_default_model()
    elif Path(source).is_dir():
        read, path = read_folder, Path(source)
    elif Path(source).is_file():
        read, path = read_gguf, Path(source)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        read, path = read_folder, fetch_repository(str(source))
    else:
        raise ValueError(
            f"unknown model {str(source)!r}: neither a folder, nor a GGUF file, nor a name such as "
            "'HuggingFaceTB/SmolLM2-135M'; leave it out for the workshop's model"
        )
    try:
        config, weights, tokenizer = read(path)
    except KeyError as error:
        raise ValueError(f"{path} does not say its {error}, which every model has") from error
    try:
        return build_model(config, weights).to(device or "cpu"), tokenizer
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def build_model(config: ModelConfig, weights: dict[str, Tensor]) -> CausalLM:
    """Make a model in evaluation mode that holds `weights`, without a copy of float32 tensors.

    Raises:
        ValueError: if names or shapes do not fit `config`.
    """
    with torch.device("meta"):
        model = CausalLM(config)
    if config.tie_word_embeddings and "model.embed_tokens.weight" in weights:
        weights = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    weights = {name: tensor.float() for name, tensor in weights.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit the configuration: {error}") from error
    model.tie_weights()
    return model.eval()


def read_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer]:
    """Read a folder in Hugging Face's form: configuration, safetensors and `tokenizer.json`.

    Raises:
        FileNotFoundError: if one of them is missing.
        ValueError: if the model is not of a kind that `CausalLM` computes, or a file is damaged.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}; it is no folder of a whole model")
    settings = read_json(folder / "config.json")
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no model.safetensors; pickled weights are not read")
    weights = {}
    for file in files:
        weights |= read_tensors(file)
    config = _config_from_folder(settings, folder)
    tokenizer = Tokenizer(read_json(folder / "tokenizer.json"), _eos_token_id(settings, folder))
    return config, weights, tokenizer


def _config_from_folder(settings: dict, folder: Path) -> ModelConfig:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    wanted = {
        "model_type": (settings.get("model_type"), "llama"),
        "hidden_act": (settings.get("hidden_act", "silu"), "silu"),
        "attention_bias": (settings.get("attention_bias", False), False),
        "mlp_bias": (settings.get("mlp_bias", False), False),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
    }
    for key, (got, supported) in wanted.items():
        if got != supported:
            raise ValueError(f"{folder}: {key} is {got!r}; only {supported!r} is supported")
    heads = settings["num_attention_heads"]
    return ModelConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["hidden_size"],
        intermediate_size=settings["intermediate_size"],
        num_hidden_layers=settings["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=settings.get("num_key_value_heads") or heads,
        head_dim=settings.get("head_dim") or settings["hidden_size"] // heads,
        max_position_embeddings=settings["max_position_embeddings"],
        rope_theta=rope.get("rope_theta") or settings.get("rope_theta", 10000.0),
        rms_norm_eps=settings["rms_norm_eps"],
        tie_word_embeddings=settings.get("tie_word_embeddings", False),
    )


def _eos_token_id(settings: dict, folder: Path) -> int:
    eos = settings.get("eos_token_id")
    if isinstance(eos, list):
        eos = eos[0]
    if eos is None:
        raise ValueError(f"{folder}/config.json names no eos_token_id; add the end-of-text id")
    return eos


def save_pretrained(
    model: CausalLM, tokenizer: Tokenizer, folder: Path, prompt_style: str = "alpaca"
) -> None:
    """Write a model and its tokenizer as a folder in Hugging Face's form, whole or not at all.

    `transformers` loads it with `AutoModelForCausalLM` and `AutoTokenizer`, whose chat template
    gives the prompt that the model was trained on. A model that `folder` held before is replaced.
    The weights keep their precision.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: where to write.
        prompt_style: the prompt format that the model was trained on.

    Raises:
        FileExistsError: if `folder` is a file or holds anything but a model.
        OSError: if something cannot be written; `folder` is as it was.
        ValueError: if the model has LoRA layers.
    """
    weights = plain_weights(model)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **vars(model.config),
        "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        **ends,
    }
    with whole_folder(folder, FILES) as beside:
        write_tensors(beside / "model.safetensors", weights)
        write_json(beside / "config.json", settings)
        write_json(beside / "generation_config.json", {**ends, "do_sample": False})
        save_tokenizer(tokenizer, beside, prompt_style, model.config.max_position_embeddings)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, prompt_style: str, context: int) -> None:
    """Write `tokenizer.json`, and `tokenizer_config.json` with the chat template, into a folder.

    Args:
        tokenizer: the tokenizer.
        folder: an existing folder.
        prompt_style: the prompt format that the model was trained on.
        context: most tokens that the model reads.
    """
    eos_token = tokenizer.eos_token
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos_token,
        "pad_token": eos_token,
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(prompt_style),
    }
    write_json(folder / "tokenizer.json", tokenizer.description)
    write_json(folder / "tokenizer_config.json", settings)


def prompt_style_of(folder: Path) -> str | None:
    """Return the prompt style whose chat template a model's folder holds; None if it has none."""
    path = Path(folder) / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    template = settings.get("chat_template") if isinstance(settings, dict) else None
    alone = Path(folder) / "chat_template.jinja"  # where newer versions of transformers put it
    if alone.exists():
        template = alone.read_text(encoding="utf-8")
    return style_of_template(template) if isinstance(template, str) else None

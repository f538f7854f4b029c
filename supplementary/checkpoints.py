"""Pretrained weights: read from GGUF files and Hugging Face folders, and written as the latter.

Only GGUF and safetensors files are read, never pickles, which can run code.
"""

import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .download import fetch_default_model, fetch_repository
from .files import read_json, whole_folder, write_json
from .model import CausalLM, ModelConfig
from .tokenizer import Tokenizer, describe_gguf_tokenizer

_GGUF_NAMES = {  # GGUF name -> Hugging Face name
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


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


def read_gguf(path: Path) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer]:
    """Read a GGUF file of the Llama architecture; quantized weights become float32.

    Raises:
        ValueError: if it is no GGUF file, or of another architecture or tokenizer.
    """
    from gguf import GGUFReader, dequantize

    try:
        reader = GGUFReader(path)
    except Exception as error:  # the reader fails in many ways on files that are something else
        raise ValueError(f"{path} is no whole GGUF file ({error})") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields.get("general.architecture")
    if architecture != "llama" or fields.get("tokenizer.ggml.model") != "gpt2":
        raise ValueError(
            f"{path} holds a {architecture!r} model with a {fields.get('tokenizer.ggml.model')!r} "
            "tokenizer; supported is 'llama' with a byte-level tokenizer ('gpt2')"
        )
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"{path}: llama.rope.scaling.type is {scaling!r}; it is not supported")
    heads, size = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    names = {tensor.name for tensor in reader.tensors}
    config = ModelConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=size,
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=fields.get("llama.rope.dimension_count", size // heads),
        max_position_embeddings=fields["llama.context_length"],
        rope_theta=fields.get("llama.rope.freq_base", 10000.0),
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        tie_word_embeddings="output.weight" not in names,
    )
    weights = {}
    for tensor in reader.tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        part, _, kind = tensor.name.removeprefix(layer[0] if layer else "").rpartition(".")
        if part not in _GGUF_NAMES or kind != "weight":
            raise ValueError(f"{path} holds a tensor {tensor.name!r}, which this model has not")
        name = _GGUF_NAMES[part]
        dequantized = dequantize(tensor.data, tensor.tensor_type)
        # Only what still lies in the file, which is read-only, is copied.
        values = torch.from_numpy(np.require(dequantized, requirements="W"))
        if name.endswith(("q_proj", "k_proj")):
            values = _undo_rotary_order(values, config.head_dim)
        prefix = f"model.layers.{layer[1]}." if layer else ""
        weights[f"{prefix}{name}.weight"] = values
    description = describe_gguf_tokenizer(
        fields["tokenizer.ggml.tokens"],
        fields["tokenizer.ggml.merges"],
        fields["tokenizer.ggml.token_type"],
        fields["tokenizer.ggml.pre"],
    )
    return config, weights, Tokenizer(description, fields["tokenizer.ggml.eos_token_id"])


def _undo_rotary_order(weight: Tensor, head_dim: int) -> Tensor:
    """Put the rows of a query or key matrix back into Hugging Face's order.

    llama.cpp rotates neighbouring dimensions (2i, 2i + 1), Hugging Face (i, i + D/2).
    """
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


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
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); fetch or make it again") from error
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


def save_folder(model: CausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model and its tokenizer as a folder in Hugging Face's form, whole or not at all.

    Whatever `folder` held before is replaced. The weights keep their precision.
    """
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    eos = tokenizer.eos_token_id
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **vars(model.config),
        "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        "eos_token_id": eos,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with whole_folder(folder) as beside:
        save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})
        write_json(beside / "config.json", settings)
        write_json(beside / "tokenizer.json", tokenizer.description)

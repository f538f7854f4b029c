"""GGUF files, the format of llama.cpp and Ollama: read and written.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (keys and names).
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import whole_file
from .model import CausalLM, ModelConfig, plain_weights
from .templates import chat_template, modelfile
from .tokenizer import GGUF_PRE_TOKENIZERS, Tokenizer, describe_gguf_tokenizer

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


QUANTIZATIONS = ("f16", "q8_0")


def open_gguf(path: Path):
    """Return a `gguf.GGUFReader` of a file that holds its bytes as a plain array.

    It takes tens of thousands of small slices, and a slice of NumPy's memory map is slow: the
    workshop's file is read in a third of the time (1.9 s instead of 5.6 s on two CPU cores).
    """
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        def __setattr__(self, name: str, value) -> None:
            super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

    return PlainReader(path)


def read_gguf(path: Path) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer]:
    """Read a GGUF file of the Llama architecture; quantized weights become float32.

    Raises:
        ValueError: if it is no GGUF file, or of another architecture or tokenizer.
    """
    from gguf import dequantize

    try:
        reader = open_gguf(path)
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


def _rotary_order(weight: Tensor, head_dim: int) -> Tensor:
    """Put the rows of a query or key matrix into llama.cpp's order; see `_undo_rotary_order`."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def export_gguf(
    model: CausalLM,
    tokenizer: Tokenizer,
    path: Path,
    prompt_style: str = "alpaca",
    quantization: str = "f16",
) -> None:
    """Write a model as a GGUF file, and beside it a `Modelfile` for `ollama create`.

    Both hold the chat template of the prompt format that the model was trained on: without it, or
    without the end-of-text token, a finetuned model talks nonsense or does not stop.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        path: the GGUF file; its name ends in `.gguf`.
        prompt_style: the prompt format that the model was trained on.
        quantization: how matrices are stored, "f16" or "q8_0" (8.5 bits a weight).

    Raises:
        FileExistsError: if one of the two files exists.
        ValueError: if the quantization is unknown, the tokenizer has no name in GGUF files or more
            tokens than the model, or the model has LoRA layers.
        OSError: if something cannot be written; nothing is left then.
    """
    path = Path(path)
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {quantization!r}; one of {QUANTIZATIONS}")
    if path.suffix != ".gguf":
        raise ValueError(f"{path} does not end in .gguf; give the file such a name")
    recipe = path.with_name("Modelfile")
    for file in (path, recipe):
        if file.exists():
            raise FileExistsError(f"{file} exists already; move it away or write elsewhere")
    with whole_file(path) as beside, whole_file(recipe) as recipe_beside:
        _write_gguf(model, tokenizer, beside, chat_template(prompt_style), quantization)
        text = modelfile(path.name, prompt_style, tokenizer.eos_token)
        recipe_beside.write_text(text, encoding="utf-8", newline="\n")  # it is in the prompt


def _write_gguf(
    model: CausalLM, tokenizer: Tokenizer, path: Path, template: str, quantization: str
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    config, half = model.config, quantization == "f16"
    writer = GGUFWriter(path, "llama")
    writer.add_name("instruction-finetuned")
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if half else LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    writer.add_chat_template(template)
    names = {name: short for short, name in _GGUF_NAMES.items()}
    for name, tensor in plain_weights(model).items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        part = name.removeprefix(layer[0] if layer else "").removesuffix(".weight")
        if part.endswith(("q_proj", "k_proj")):
            tensor = _rotary_order(tensor, config.head_dim)
        kind = GGMLQuantizationType.F32  # vectors
        if tensor.ndim > 1:
            whole_blocks = tensor.shape[-1] % 32 == 0  # which Q8_0 is made of
            kind = GGMLQuantizationType[quantization.upper() if whole_blocks else "F16"]
        values = quantize(tensor.float().cpu().numpy(), kind)
        prefix = f"blk.{layer[1]}." if layer else ""
        writer.add_tensor(f"{prefix}{names[part]}.weight", values, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_tokenizer(writer, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Add what llama.cpp needs to give the same token ids; no token is put before a prompt."""
    from gguf import TokenType

    description = tokenizer.description
    steps = description["pre_tokenizer"]
    steps = steps.get("pretokenizers", [steps])
    known = [name for name, wanted in GGUF_PRE_TOKENIZERS.items() if _same_steps(steps, wanted)]
    if not known:
        raise ValueError(
            "llama.cpp knows tokenizers by name, and this one's is not known here (known: "
            f"{', '.join(GGUF_PRE_TOKENIZERS)}); convert the Hugging Face folder with llama.cpp's "
            "convert_hf_to_gguf.py instead"
        )
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {vocab_size}"
        )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for token, token_id in description["model"]["vocab"].items():
        tokens[token_id], types[token_id] = token, TokenType.NORMAL
    for token in description["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    merges = description["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(known[0])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.eos_token_id)  # llama.cpp would assume another
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)


def _same_steps(steps: list[dict], wanted: list[dict]) -> bool:
    """Compare pre-tokenizers; what `trim_offsets` says does not change the ids."""

    def essence(step: dict) -> dict:
        return {"use_regex": True} | {k: v for k, v in step.items() if k != "trim_offsets"}

    return list(map(essence, steps)) == list(map(essence, wanted))

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from supplementary.checkpoints import build_model, load_pretrained, read_gguf, save_folder
from supplementary.model import CausalLM
from supplementary.tokenizer import Tokenizer

TEXT = "What is an antonym of 'complicated'?\n 12 km"


@torch.no_grad()
def logits_of(model, input_ids):
    output = model(input_ids)
    return getattr(output, "logits", output)


def difference(a, b):
    """Return the largest absolute difference of two tensors of the same shape."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def assert_same_model(ours, reference):
    """Compare the logits with those of a model of `transformers`."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(reference.config.vocab_size, (2, 30), generator=generator)
    expected = logits_of(reference, input_ids)
    assert expected.std() > 1  # large enough for the comparison to mean something
    assert difference(logits_of(ours, input_ids), expected) <= 1e-4


def write_folder(folder, model, tokenizer, **save):
    """Let `transformers` and `tokenizers` write a folder."""
    model.save_pretrained(folder, **save)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def change_config(folder, **settings):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture
def own_folder(llama_folder, tmp_path):
    """A copy of `llama_folder` that a test may change."""
    return Path(shutil.copytree(llama_folder, tmp_path / "llama"))


# Folders that transformers wrote


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": False},
        {"head_dim": 16},
        {"rope_theta": 500.0, "rms_norm_eps": 1e-2, "num_hidden_layers": 1},
    ],
    ids=["grouped", "all heads", "one head", "untied", "wide heads", "rope and norm"],
)
def test_a_folder_of_transformers_gives_its_logits(make_llama, train_tokenizer, tmp_path, settings):
    reference, trained = make_llama(**settings), train_tokenizer()
    model, tokenizer = load_pretrained(write_folder(tmp_path, reference, trained))
    assert_same_model(model, reference)
    assert not model.training
    assert tokenizer.encode(TEXT) == trained.encode(TEXT).ids
    assert tokenizer.eos_token_id == 0


def test_a_folder_may_be_given_as_a_string(llama_folder):
    model, _ = load_pretrained(str(llama_folder))
    assert model.config.hidden_size == 32


def test_weights_in_several_files_are_put_together(make_llama, train_tokenizer, tmp_path):
    reference = make_llama()
    write_folder(tmp_path, reference, train_tokenizer(), max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_model(load_pretrained(tmp_path)[0], reference)


def test_a_missing_part_of_the_weights_is_an_error(make_llama, train_tokenizer, tmp_path):
    write_folder(tmp_path, make_llama(), train_tokenizer(), max_shard_size="20KB")
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=tmp_path.name):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_become_float32(make_llama, train_tokenizer, tmp_path, dtype):
    half, reference = make_llama().to(dtype), make_llama()
    model, _ = load_pretrained(write_folder(tmp_path, half, train_tokenizer()))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    reference.load_state_dict(half.state_dict())
    assert_same_model(model, reference)


def test_tied_weights_stay_tied_after_loading(llama_folder):
    model, _ = load_pretrained(llama_folder, device=torch.device("cpu"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_first_of_several_end_of_text_ids_is_taken(own_folder):
    change_config(own_folder, eos_token_id=[2, 0])
    assert load_pretrained(own_folder)[1].eos_token_id == 2


# Folders that we write


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_comes_back_exactly(tiny_config, train_tokenizer, tmp_path, tied):
    config = type(tiny_config)(**vars(tiny_config) | {"tie_word_embeddings": tied})
    model = CausalLM(config).eval()
    tokenizer = Tokenizer(json.loads(train_tokenizer().to_str()), eos_token_id=2)
    save_folder(model, tokenizer, tmp_path / "deep" / "model")
    loaded, loaded_tokenizer = load_pretrained(tmp_path / "deep" / "model")
    assert loaded.config == config
    assert loaded_tokenizer == tokenizer
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "settings",
    [{}, {"tie_word_embeddings": False}, {"rope_theta": 500.0, "rms_norm_eps": 1e-2}],
    ids=["tied", "untied", "rope and norm"],
)
def test_transformers_loads_what_is_saved(make_llama, train_tokenizer, tmp_path, settings):
    from tokenizers import Tokenizer as Reference
    from transformers import LlamaForCausalLM

    write_folder(tmp_path / "theirs", make_llama(**settings), train_tokenizer())
    model, tokenizer = load_pretrained(tmp_path / "theirs")
    save_folder(model, tokenizer, tmp_path / "ours")
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert reference.dtype == torch.float32
    assert reference.config.eos_token_id == reference.config.pad_token_id == 0
    assert_same_model(model, reference)
    written = Reference.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    assert written.encode(TEXT).ids == tokenizer.encode(TEXT)


def test_saved_weights_keep_their_precision(llama_folder, tmp_path):
    model, tokenizer = load_pretrained(llama_folder)
    save_folder(model.bfloat16(), tokenizer, tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    loaded = load_pretrained(tmp_path / "half")[0].state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in weights.items())


def test_saving_replaces_all_that_the_folder_held(llama_folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model-00002-of-00002.safetensors").touch()
    save_folder(*load_pretrained(llama_folder), tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_save_that_fails_leaves_the_old_folder(llama_folder, tmp_path, monkeypatch):
    model, tokenizer = load_pretrained(llama_folder)
    save_folder(model, tokenizer, tmp_path / "model")
    with torch.no_grad():
        model.lm_head.weight.zero_()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("supplementary.checkpoints.write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        save_folder(model, tokenizer, tmp_path / "model")
    assert load_pretrained(tmp_path / "model")[0].lm_head.weight.any()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# Folders that cannot be read


def test_a_folder_without_a_configuration_is_refused(own_folder):
    (own_folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"llama has no config\.json"):
        load_pretrained(own_folder)


def test_a_folder_without_a_tokenizer_is_refused(own_folder):
    (own_folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"llama has no tokenizer\.json"):
        load_pretrained(own_folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path.name} has no"):
        load_pretrained(tmp_path)


def test_a_folder_with_pickled_weights_only_is_refused(own_folder):
    (own_folder / "model.safetensors").unlink()
    (own_folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FileNotFoundError, match=r"llama has no model\.safetensors; pickled"):
        load_pretrained(own_folder)


@pytest.mark.parametrize("kept", [0, 4, 1_000, -10])
def test_cut_off_weights_are_refused_and_the_file_is_named(own_folder, kept):
    path = own_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_pretrained(own_folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_cut_off_json_is_refused_and_the_file_is_named(own_folder, name):
    text = (own_folder / name).read_text(encoding="utf-8")
    (own_folder / name).write_text(text[:-20], encoding="utf-8")
    with pytest.raises(ValueError, match=name):
        load_pretrained(own_folder)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type is 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type is 'linear'"),
        ({"eos_token_id": None}, "eos_token_id"),
    ],
)
def test_what_the_model_cannot_compute_is_refused_by_its_name(own_folder, settings, said):
    change_config(own_folder, **settings)
    with pytest.raises(ValueError, match=rf"llama.*{said}"):
        load_pretrained(own_folder)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "rms_norm_eps"])
def test_a_configuration_without_a_size_is_refused(own_folder, key):
    config = json.loads((own_folder / "config.json").read_text(encoding="utf-8"))
    del config[key]
    (own_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"llama.*{key}"):
        load_pretrained(own_folder)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_and_named(own_folder, change):
    path, name = own_folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(path)
    tensor = weights.pop(name)
    if change == "unknown":
        weights |= {name: tensor, "model.layers.1.mlp.up_proj.bias": torch.zeros(64)}
    if change == "shape":
        weights[name] = tensor[:, :-1].contiguous()
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"(?s)llama.*model\.layers\.1\.mlp\.up_proj"):
        load_pretrained(own_folder)


@pytest.mark.parametrize("name", ["smollm", "a/b/c", "no such/folder", "/nothing"])
def test_an_unknown_name_is_refused_and_the_kinds_of_names_are_listed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"unknown model .*folder.*GGUF file.*SmolLM2-135M"):
        load_pretrained(name)


def test_build_model_copies_no_float32_tensor(tiny_model):
    weights = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    model = build_model(tiny_model.config, weights)
    name = "model.layers.0.mlp.up_proj.weight"
    assert model.state_dict()[name].data_ptr() == weights[name].data_ptr()


# GGUF files


def permute(weight, heads):
    """Put the rows of a query or key matrix into llama.cpp's order (conversion/llama.py there)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def gguf_tensors(reference):
    """Give the weights of a model of `transformers` under the names that llama.cpp uses."""
    config = reference.config
    weights = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = weights["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        q = weights[ours + "self_attn.q_proj.weight"]
        k = weights[ours + "self_attn.k_proj.weight"]
        tensors[theirs + "attn_q.weight"] = permute(q, config.num_attention_heads)
        tensors[theirs + "attn_k.weight"] = permute(k, config.num_key_value_heads)
        for name, part in {
            "attn_norm": "input_layernorm",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items():
            tensors[f"{theirs}{name}.weight"] = weights[f"{ours}{part}.weight"]
    return tensors


@pytest.fixture
def write_gguf(make_llama, train_tokenizer, tmp_path):
    """Return a function that writes a tiny GGUF file and gives its path and the reference model."""
    from gguf import GGUFWriter
    from gguf.quants import quantize

    def write(architecture="llama", kind=None, extra=None, before_writing=None, **settings):
        reference = make_llama(**settings)
        config = reference.config
        description = json.loads(train_tokenizer().to_str())["model"]
        path = tmp_path / "tiny.gguf"
        writer = GGUFWriter(path, architecture)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        if config.num_key_value_heads != config.num_attention_heads:
            writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if "rope_theta" in settings:
            writer.add_rope_freq_base(settings["rope_theta"])
        if "head_dim" in settings:
            writer.add_rope_dimension_count(settings["head_dim"])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(sorted(description["vocab"], key=description["vocab"].get))
        writer.add_token_types([3, 3, 3] + [1] * 317)
        writer.add_token_merges([" ".join(pair) for pair in description["merges"]])
        writer.add_eos_token_id(0)
        if before_writing:
            before_writing(writer)
        for name, values in (gguf_tensors(reference) | (extra or {})).items():
            if kind is None or values.ndim == 1:
                writer.add_tensor(name, values)
            else:
                writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, reference

    return write


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 4},
        {"tie_word_embeddings": False},
        {"head_dim": 16},
        {"rope_theta": 500.0, "rms_norm_eps": 1e-2},
    ],
    ids=["grouped", "all heads", "untied", "wide heads", "rope and norm"],
)
def test_a_gguf_file_gives_the_logits_of_the_model_it_was_made_from(write_gguf, settings):
    path, reference = write_gguf(**settings)
    assert_same_model(load_pretrained(path)[0], reference)


def test_a_gguf_file_gives_its_tokenizer(write_gguf, train_tokenizer):
    tokenizer = load_pretrained(write_gguf()[0])[1]
    assert tokenizer.encode(TEXT) == train_tokenizer().encode(TEXT).ids
    assert tokenizer.special_id("<|im_start|>") == 1
    assert (tokenizer.eos_token_id, tokenizer.vocab_size) == (0, 320)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_quantized_weights_become_the_float32_values_they_stand_for(write_gguf, kind):
    from gguf import GGMLQuantizationType, dequantize
    from gguf.quants import quantize

    kind = GGMLQuantizationType[kind]
    path, reference = write_gguf(kind=kind)
    _, weights, _ = read_gguf(path)
    expected = reference.state_dict()
    assert weights.keys() == expected.keys() - {"lm_head.weight"}
    for name, tensor in weights.items():
        assert tensor.dtype == torch.float32
        values = expected[name].numpy()
        if values.ndim > 1:
            # Blocks lie within a row, so the order of the rows does not change what they become.
            values = np.asarray(dequantize(quantize(values, kind), kind), dtype=np.float32)
        assert torch.equal(tensor, torch.from_numpy(values)), name


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "said"),
    [("gpt2", "gpt2", "a 'gpt2' model"), ("llama", "llama", "a 'llama' tokenizer")],
)
def test_a_gguf_file_of_another_kind_is_refused(write_gguf, architecture, tokenizer, said):
    def change(writer):
        values = writer.kv_data[0]
        del values["tokenizer.ggml.model"]
        writer.add_tokenizer_model(tokenizer)

    path, _ = write_gguf(architecture=architecture, before_writing=change)
    with pytest.raises(ValueError, match=rf"tiny\.gguf holds.*{said}"):
        load_pretrained(path)


@pytest.mark.parametrize("kept", [0, 3, 100, 30_000, -500])
def test_a_cut_off_gguf_file_is_refused_and_named(write_gguf, kept):
    path, _ = write_gguf()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"tiny\.gguf is no whole GGUF file"):
        load_pretrained(path)


def test_a_file_that_is_no_gguf_file_is_refused_and_named(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x80\x02}q\x00." * 100)
    with pytest.raises(ValueError, match=r"model\.bin is no whole GGUF file"):
        load_pretrained(path)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "rope_freqs.weight"])
def test_a_gguf_tensor_that_the_model_lacks_is_refused_and_named(write_gguf, name):
    path, _ = write_gguf(extra={name: np.ones(32, dtype=np.float32)})
    with pytest.raises(ValueError, match=rf"tiny\.gguf.*{name}"):
        load_pretrained(path)


def test_rope_scaling_in_a_gguf_file_is_refused(write_gguf):
    from gguf import RopeScalingType

    def scale(writer):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)

    path, _ = write_gguf(before_writing=scale)
    with pytest.raises(ValueError, match=r"tiny\.gguf.*rope.*linear"):
        load_pretrained(path)


@pytest.mark.parametrize("key", ["llama.context_length", "tokenizer.ggml.eos_token_id"])
def test_a_gguf_file_without_a_field_is_refused_and_the_field_is_named(write_gguf, key):
    path, _ = write_gguf(before_writing=lambda writer: writer.kv_data[0].pop(key))
    with pytest.raises(ValueError, match=rf"tiny\.gguf.*{key}"):
        load_pretrained(path)


def test_the_workshops_model_has_the_sizes_of_smollm2_135m(pretrained):
    config = vars(pretrained[0].config)
    assert config == {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8_192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": pytest.approx(1e-5),
        "tie_word_embeddings": True,
    }
    assert sum(p.numel() for p in pretrained[0].parameters()) == 134_515_008


# Names on the Hub


def test_a_name_is_fetched_from_the_hub_as_a_folder(llama_folder, monkeypatch):
    asked = {}

    def snapshot_download(name, **settings):
        asked.update(settings, name=name)
        return str(llama_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model, tokenizer = load_pretrained("owner/some-model_1.0")
    expected, expected_tokenizer = load_pretrained(llama_folder)
    assert asked["name"] == "owner/some-model_1.0"
    assert asked["allow_patterns"] == ["*.json", "*.safetensors"]  # never a pickle
    assert torch.equal(model.lm_head.weight, expected.lm_head.weight)
    assert tokenizer == expected_tokenizer


def test_a_name_that_cannot_be_fetched_is_an_error_that_says_what_to_do(monkeypatch):
    def snapshot_download(name, **settings):
        raise RuntimeError("404")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(OSError, match=r"'owner/name'.*\(404\); check the name and the network"):
        load_pretrained("owner/name")

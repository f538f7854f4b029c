import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from supplementary.checkpoints import (
    build_model,
    load_pretrained,
    prompt_style_of,
    save_pretrained,
)
from supplementary.lora import add_lora
from supplementary.model import CausalLM
from supplementary.tokenizer import Tokenizer

from .comparing import assert_same_model

TEXT = "What is an antonym of 'complicated'?\n 12 km"


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
    save_pretrained(model, tokenizer, tmp_path / "deep" / "model")
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
    save_pretrained(model, tokenizer, tmp_path / "ours")
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert reference.dtype == torch.float32
    assert reference.config.eos_token_id == reference.config.pad_token_id == 0
    assert_same_model(model, reference)
    written = Reference.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    assert written.encode(TEXT).ids == tokenizer.encode(TEXT)


def test_saved_weights_keep_their_precision(llama_folder, tmp_path):
    model, tokenizer = load_pretrained(llama_folder)
    save_pretrained(model.bfloat16(), tokenizer, tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    loaded = load_pretrained(tmp_path / "half")[0].state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in weights.items())


@pytest.mark.parametrize("style", ["alpaca", "chatml"])
def test_a_saved_model_says_its_prompt_style(llama_folder, tmp_path, style):
    save_pretrained(*load_pretrained(llama_folder), tmp_path / "model", style)
    assert prompt_style_of(tmp_path / "model") == style


@pytest.mark.parametrize("settings", [None, {}, {"chat_template": "{{ messages }}"}])
def test_a_model_of_others_says_no_prompt_style(own_folder, settings):
    if settings is not None:
        (own_folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert prompt_style_of(own_folder) is None


def test_the_style_is_found_where_newer_versions_of_transformers_put_it(llama_folder, tmp_path):
    folder = tmp_path / "model"
    save_pretrained(*load_pretrained(llama_folder), folder, "phi3")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    template = settings.pop("chat_template")
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert prompt_style_of(folder) is None
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert prompt_style_of(folder) == "phi3"


def test_a_model_with_lora_layers_is_not_saved_without_them(llama_folder, tmp_path):
    model, tokenizer = load_pretrained(llama_folder)
    add_lora(model, rank=2)
    with pytest.raises(ValueError, match="has LoRA layers; merge_lora it, or save_adapter"):
        save_pretrained(model, tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_end_of_text_without_a_token_is_refused_when_saving(llama_folder, tmp_path):
    model, tokenizer = load_pretrained(llama_folder)
    with pytest.raises(ValueError, match="the end-of-text id 5000 is no token's id"):
        save_pretrained(model, replace(tokenizer, eos_token_id=5000), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["thesis.txt", "model.py"])
def test_saving_into_a_folder_with_other_files_is_refused(llama_folder, tmp_path, name):
    (tmp_path / name).write_text("precious", encoding="utf-8")
    with pytest.raises(FileExistsError, match=f"holds {name}, which would be lost"):
        save_pretrained(*load_pretrained(llama_folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_transformers_generates_until_the_end_of_text_that_is_saved(llama_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_pretrained(llama_folder)
    save_pretrained(model, tokenizer, tmp_path / "model")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ends = reference.generation_config
    assert (ends.eos_token_id, ends.pad_token_id, ends.do_sample) == (0, 0, False)


def test_saving_replaces_all_that_the_folder_held(llama_folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model-00002-of-00002.safetensors").touch()
    save_pretrained(*load_pretrained(llama_folder), tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_save_that_fails_leaves_the_old_folder(llama_folder, tmp_path, monkeypatch):
    model, tokenizer = load_pretrained(llama_folder)
    save_pretrained(model, tokenizer, tmp_path / "model")
    with torch.no_grad():
        model.lm_head.weight.zero_()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("supplementary.checkpoints.write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(model, tokenizer, tmp_path / "model")
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

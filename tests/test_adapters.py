"""Adapters as files: ours, PEFT's, broken ones; and the finetuned model to go on with."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from supplementary import adapters
from supplementary.adapters import ADAPTER, load_adapter, load_finetuned, save_adapter
from supplementary.checkpoints import load_pretrained
from supplementary.data import DATA, encode_entries, load_entries, split_entries
from supplementary.files import read_json, sha256
from supplementary.generation import respond
from supplementary.lora import TARGETS, LoRALinear, add_lora, count_parameters, merge_lora
from supplementary.model import CausalLM
from supplementary.reports import load_responses, score_responses
from supplementary.training import mean_loss

from . import comparing
from .comparing import difference

INPUT_IDS = torch.tensor([[5, 17, 17, 2, 96, 0, 41]])


def logits_of(model):
    return comparing.logits_of(model, INPUT_IDS)


def lora_layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def adapt(model, rank=4, alpha=6.0, seed=3):
    """Put LoRA on `model`, with updates of the size that they have after training."""
    add_lora(model, rank=rank, alpha=alpha, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.05, generator=generator)
    return model


@pytest.fixture
def llama(llama_folder):
    """The model of `llama_folder`, read anew for every test."""
    return load_pretrained(llama_folder)[0]


@pytest.fixture
def folder(tiny_config, tiny_model, tmp_path):
    """A saved adapter that fits `tiny_model`."""
    other = CausalLM(tiny_config)
    other.load_state_dict(tiny_model.state_dict())
    save_adapter(adapt(other), tmp_path / "adapter")
    return tmp_path / "adapter"


def change_settings(folder, **settings):
    path = folder / "adapter_config.json"
    changed = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps(changed), encoding="utf-8")


@contextmanager
def refused(model, error, match):
    """Expect `error`, and that it leaves the model as it was."""
    names = {name: type(module) for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before, counts = logits_of(model), count_parameters(model)
    with pytest.raises(error, match=match):
        yield
    assert {name: type(module) for name, module in model.named_modules()} == names
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits_of(model), before)
    assert count_parameters(model) == counts


# Folders that we write


@pytest.mark.parametrize(("rank", "alpha"), [(4, 6.0), (1, 32.0), (7, 16.0)])
def test_a_saved_adapter_gives_the_same_logits_bit_for_bit(
    tiny_model, tiny_config, tmp_path, rank, alpha
):
    plain = CausalLM(tiny_config)
    plain.load_state_dict(tiny_model.state_dict())
    before = logits_of(plain)
    expected = logits_of(adapt(tiny_model, rank, alpha))
    save_adapter(tiny_model, tmp_path / "deep" / "adapter")
    load_adapter(plain, tmp_path / "deep" / "adapter")
    assert torch.equal(logits_of(plain), expected)
    assert difference(expected, before) > 0.1
    assert count_parameters(plain) == count_parameters(tiny_model)
    merge_lora(plain)
    assert difference(logits_of(plain), expected) <= 1e-4


def test_bfloat16_rounds_the_matrices_and_changes_the_logits_little(
    tiny_model, tiny_config, tmp_path
):
    plain = CausalLM(tiny_config)
    plain.load_state_dict(tiny_model.state_dict())
    before = logits_of(plain)
    expected = logits_of(adapt(tiny_model))
    save_adapter(tiny_model, tmp_path / "adapter", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    load_adapter(plain, tmp_path / "adapter")
    saved = lora_layers(tiny_model)
    for name, layer in lora_layers(plain).items():
        assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
        assert torch.equal(layer.lora_A, saved[name].lora_A.bfloat16().float())
        assert torch.equal(layer.lora_B, saved[name].lora_B.bfloat16().float())
    assert 0 < difference(logits_of(plain), expected) < difference(before, expected) / 20


def test_saving_leaves_the_model_as_it_was(tiny_model, tmp_path):
    expected = logits_of(adapt(tiny_model))
    counts = count_parameters(tiny_model)
    save_adapter(tiny_model, tmp_path / "adapter", dtype=torch.bfloat16)
    assert torch.equal(logits_of(tiny_model), expected)
    assert count_parameters(tiny_model) == counts
    assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}


def test_peft_loads_our_folder_and_gives_our_logits(llama, llama_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    save_adapter(adapt(llama), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(llama_folder)
    before = logits_of(base)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    expected = logits_of(llama)
    assert difference(before, expected) > 0.1
    assert difference(logits_of(loaded), expected) <= 1e-4
    merged = loaded.merge_and_unload()
    assert difference(logits_of(merged), expected) <= 1e-4


def test_peft_finds_the_model_that_our_folder_names(llama, llama_folder, tmp_path):
    from peft import AutoPeftModelForCausalLM

    save_adapter(adapt(llama), tmp_path / "adapter", base=str(llama_folder))
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert difference(logits_of(loaded), logits_of(llama)) <= 1e-4


def test_an_adapter_belongs_to_the_workshops_model_unless_told(folder):
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("merged", [False, True])
def test_a_model_without_lora_is_not_saved(tiny_model, folder, merged):
    if merged:
        merge_lora(adapt(tiny_model))
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="no LoRA layers to save; call add_lora first"):
        save_adapter(tiny_model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old


def test_saving_replaces_all_that_the_folder_held(tiny_model, folder):
    (folder / "README.md").touch()
    expected = logits_of(adapt(tiny_model, seed=4))
    save_adapter(tiny_model, folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    merge_lora(tiny_model)
    assert difference(logits_of(tiny_model), expected) <= 1e-4


@pytest.mark.parametrize("step", ["write_tensors", "write_json"])
def test_a_save_that_fails_leaves_the_old_folder(tiny_model, folder, monkeypatch, step):
    def fail(*arguments, **named):
        raise OSError("disk full")

    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(adapters, step, fail)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(adapt(tiny_model, seed=4), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


# Folders that PEFT wrote


def write_peft(llama_folder, folder, **settings):
    """Let PEFT write an adapter with random A and B; return the model's logits."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    defaults = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": list(TARGETS),
        "lora_dropout": 0.1,
        "init_lora_weights": False,
    }
    config = LoraConfig(**defaults | settings, task_type="CAUSAL_LM")
    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama_folder), config).eval()
    model.save_pretrained(folder)
    return logits_of(model)


@pytest.mark.parametrize("settings", [{}, {"r": 3, "lora_alpha": 16}])
def test_an_adapter_that_peft_wrote_gives_its_logits(llama, llama_folder, tmp_path, settings):
    expected = write_peft(llama_folder, tmp_path / "adapter", **settings)
    assert difference(logits_of(llama), expected) > 0.1
    load_adapter(llama, tmp_path / "adapter")
    assert difference(logits_of(llama), expected) <= 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"use_rslora": True},
        {"use_dora": True},
        {"layers_to_transform": [0]},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 60}},
        {"init_lora_weights": "pissa"},  # it changes the model's own weights, too
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_an_adapter_of_peft_that_we_cannot_compute_is_refused(
    llama, llama_folder, tmp_path, settings
):
    write_peft(llama_folder, tmp_path / "adapter", **settings)
    with refused(llama, ValueError, r"adapter\b.*(only .* is supported|does not fit)"):
        load_adapter(llama, tmp_path / "adapter")


# Folders that cannot be read


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only 'LORA' is supported"),
        ({"bias": "all"}, "bias is 'all'; only 'none' is supported"),
        ({"use_rslora": True}, "use_rslora is True; only False is supported"),
        ({"use_dora": True}, "use_dora is True; only False is supported"),
        ({"target_modules": ["q_proj"]}, r"target_modules is \['q_proj'\]; only \['down_proj'"),
        ({"target_modules": [*TARGETS, "lm_head"]}, "target_modules is .*'lm_head'.*; only"),
        ({"target_modules": ".*_proj"}, r"target_modules is '\.\*_proj'; only"),
        ({"r": 0}, "rank of at least 1, not 0"),
        ({"r": 5}, "does not fit this model"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_what_it_is(tiny_model, folder, settings, said):
    change_settings(folder, **settings)
    with refused(tiny_model, ValueError, said):
        load_adapter(tiny_model, folder)


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_a_configuration_without_a_size_is_refused(tiny_model, folder, key):
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings[key]
    path.write_text(json.dumps(settings), encoding="utf-8")
    with refused(tiny_model, ValueError, rf"adapter\b.*\b{key}\b"):
        load_adapter(tiny_model, folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tiny_model, folder, name):
    (folder / name).unlink()
    with refused(tiny_model, FileNotFoundError, rf"adapter has no {name}"):
        load_adapter(tiny_model, folder)


def test_a_pickled_adapter_is_not_read(tiny_model, folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with refused(tiny_model, FileNotFoundError, "pickled ones are not read"):
        load_adapter(tiny_model, folder)


@pytest.mark.parametrize("kept", [0, 4, 1_000, -10])
def test_cut_off_weights_are_refused_and_the_folder_is_named(tiny_model, folder, kept):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with refused(tiny_model, ValueError, r"adapter_model\.safetensors is damaged"):
        load_adapter(tiny_model, folder)


def test_a_cut_off_configuration_is_refused_and_named(tiny_model, folder):
    path = folder / "adapter_config.json"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with refused(tiny_model, ValueError, r"adapter_config\.json is not valid JSON"):
        load_adapter(tiny_model, folder)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_matrices_that_do_not_fit_are_refused(tiny_model, folder, change):
    path = folder / "adapter_model.safetensors"
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    weights = load_file(path)
    tensor = weights.pop(name)
    if change == "unknown":
        weights |= {name: tensor, name.replace("layers.1", "layers.2"): tensor.clone()}
    if change == "shape":
        weights[name] = tensor[:, :-1].contiguous()
    save_file(weights, path)
    with refused(tiny_model, ValueError, "adapter: the adapter does not fit this model"):
        load_adapter(tiny_model, folder)


@pytest.mark.parametrize(
    "sizes",
    [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"intermediate_size": 48}],
    ids=["fewer layers", "more layers", "narrower"],
)
def test_an_adapter_for_another_model_is_refused(tiny_config, folder, sizes):
    model = CausalLM(type(tiny_config)(**vars(tiny_config) | sizes))
    with refused(model, ValueError, "does not fit this model; it was made for another"):
        load_adapter(model, folder)


def test_a_second_adapter_is_refused_and_the_first_one_stays(tiny_model, folder):
    adapt(tiny_model, seed=4)
    with refused(tiny_model, ValueError, "merge LoRA first"):
        load_adapter(tiny_model, folder)


# The finetuned model to go on with


def test_a_runs_own_model_is_taken_from_the_run_or_from_its_own_folder(
    llama, llama_folder, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(llama_folder, run / "model")
    (run / "metrics.json").touch()
    for given in (run, str(run), run / "model"):
        model, tokenizer = load_finetuned(given)
        assert capsys.readouterr().out == f"finetuned weights: your own, in {run / 'model'}\n"
        assert torch.equal(logits_of(model), logits_of(llama))
        assert tokenizer.vocab_size == 320
    assert load_finetuned(run, torch.device("meta"))[0].device.type == "meta"


@pytest.fixture
def workshop(llama, llama_folder, tmp_path, monkeypatch):
    """Put a tiny model and adapter in the workshop's place; return the adapted model."""

    def load(source=None, device=None):
        return load_pretrained(llama_folder if source is None else source, device)

    save_adapter(adapt(llama), tmp_path / "adapter")
    monkeypatch.setattr(adapters, "ADAPTER", tmp_path / "adapter")
    monkeypatch.setattr(adapters, "load_pretrained", load)
    return llama


@pytest.mark.parametrize("kind", ["no run", "an unfinished run"])
def test_without_a_finished_run_the_workshops_adapter_is_merged_in(
    workshop, tmp_path, capsys, kind
):
    run = tmp_path / "run"
    if kind == "an unfinished run":
        (run / "checkpoint-2").mkdir(parents=True)
        (run / "model").mkdir()
    model, tokenizer = load_finetuned(run)
    shown = capsys.readouterr().out
    assert "the workshop's adapter" in shown and f"{run} holds no finished run" in shown
    assert lora_layers(model) == {}
    assert difference(logits_of(model), logits_of(workshop)) <= 1e-4
    assert tokenizer.vocab_size == 320
    assert load_finetuned(run, torch.device("meta"))[0].device.type == "meta"


def test_a_run_of_your_own_goes_before_the_workshops_adapter(
    workshop, llama_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert difference(logits_of(load_finetuned()[0]), logits_of(workshop)) <= 1e-4
    shutil.copytree(llama_folder, tmp_path / "runs" / "finetune" / "model")
    model, _ = load_finetuned()
    assert torch.equal(logits_of(model), logits_of(load_pretrained(llama_folder)[0]))
    assert difference(logits_of(load_finetuned(run=None)[0]), logits_of(workshop)) <= 1e-4


def test_the_workshops_adapter_is_small_and_in_bfloat16():
    file = ADAPTER / "adapter_model.safetensors"
    assert file.stat().st_size <= 12_000_000
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


def test_metrics_of_the_workshops_adapter_are_those_of_the_stored_responses():
    metrics = read_json(ADAPTER / "metrics.json")
    report = score_responses(load_responses(DATA.parent / "test-responses.json"))
    assert {name: metrics[name] for name in report} == json.loads(json.dumps(report))
    assert metrics["data_sha256"] == sha256(DATA)
    assert metrics["scores"]["answer key"]["difference_interval"][0] > 0


def test_the_workshops_adapter_scores_what_its_metrics_say(finetuned):
    model, tokenizer = finetuned
    examples, _ = encode_entries(split_entries(load_entries(DATA)).validation, tokenizer)
    stored = read_json(ADAPTER / "metrics.json")["loss"]["after"]["validation"]
    assert mean_loss(model, examples) == pytest.approx(stored, rel=0.01)  # bfloat16 is coarse


def test_the_workshops_adapter_gives_the_stored_responses(finetuned):
    rows = load_responses(DATA.parent / "test-responses.json")[:6]
    found = respond(*finetuned, rows)
    same = [text == row["response_after"] for text, row in zip(found, rows, strict=True)]
    assert sum(same) >= 5  # another machine's rounding may tip a word

"""A finished run taken home: what transformers, PEFT and llama.cpp load, and the model card."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from supplementary import generation
from supplementary.adapters import ADAPTER, load_adapter
from supplementary.cards import LIBRARIES, model_card
from supplementary.checkpoints import load_pretrained
from supplementary.cli import main
from supplementary.data import encode_prompt
from supplementary.export import FORMATS, export_run
from supplementary.files import read_json
from supplementary.generation import generate
from supplementary.gguf_files import read_gguf
from supplementary.lora import merge_lora

from .comparing import difference, logits_of

ENTRY = {"instruction": "Say the number 3.", "input": "", "output": ""}


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Let the run answer in the precision of those that it is compared with."""
    monkeypatch.setattr(generation, "pick_precision", lambda device: torch.float32)


@pytest.fixture(scope="module")
def base(make_llama, train_tokenizer, tmp_path_factory):
    """A folder with a tiny random model whose context takes an Alpaca prompt."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_llama(num_hidden_layers=1, max_position_embeddings=512).save_pretrained(folder)
    train_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """The folders of two finished runs, by method; no test may change them."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "numbers.json"
    rows = [
        {"instruction": f"Say the number {i}.", "input": "", "output": f"It is {i}."}
        for i in range(10)
    ]
    data.write_text(json.dumps(rows), encoding="utf-8")
    for method in ("full", "lora"):
        options = ["--data", data, "--model", base, "--out", folder / method, "--method", method]
        assert main(["finetune", *map(str, options), "--epochs", "1", "--lr", "0.01"]) == 0
    return {method: folder / method for method in ("full", "lora")}


def token_ids(model, tokenizer):
    return generate(model, [encode_prompt(ENTRY, tokenizer)], 12, tokenizer.eos_token_id)[0]


def answer(model, folder):
    """Let `transformers` generate from the prompt that the folder's own template gives."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": ENTRY["instruction"]}]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    return [token for token in output.tolist() if token != tokenizer.eos_token_id]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_transformers_answers_as_the_run_does(runs, tmp_path, method):
    from transformers import AutoModelForCausalLM

    export_run(runs[method], "hf", tmp_path / "out")
    expected = load_pretrained(runs[method] / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    input_ids = torch.tensor([[5, 17, 300, 2, 96]])
    assert difference(logits_of(theirs, input_ids), logits_of(expected[0], input_ids)) <= 1e-4
    assert answer(theirs, tmp_path / "out") == token_ids(*expected)


def test_peft_answers_as_the_run_does(runs, base, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    export_run(runs["lora"], "peft", tmp_path / "out")
    expected = load_pretrained(runs["lora"] / "model")
    plain = AutoModelForCausalLM.from_pretrained(base)
    input_ids = torch.tensor([[5, 17, 300, 2, 96]])
    before = logits_of(plain, input_ids)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "out")
    assert difference(before, logits_of(expected[0], input_ids)) > 0.01
    assert difference(logits_of(theirs, input_ids), logits_of(expected[0], input_ids)) <= 1e-4
    named = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert answer(named, tmp_path / "out") == token_ids(*expected)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_a_gguf_export_holds_the_runs_weights(runs, tmp_path, method, quantization):
    export_run(runs[method], "gguf", tmp_path / "out", quantization)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["Modelfile", "README.md", "model.gguf"]
    _, weights, _ = read_gguf(tmp_path / "out" / "model.gguf")
    for name, tensor in load_pretrained(runs[method] / "model")[0].state_dict().items():
        if name != "lm_head.weight":
            assert difference(weights[name], tensor) < {"f16": 1e-3, "q8_0": 1e-2}[quantization]


def test_the_workshops_adapter_can_be_exported_like_a_run(pretrained, tmp_path, monkeypatch):
    model, tokenizer = pretrained
    own = (copy.deepcopy(model), tokenizer)
    monkeypatch.setattr("supplementary.adapters.load_pretrained", lambda *given: own)
    export_run(ADAPTER, "peft", tmp_path / "out")
    settings = read_json(tmp_path / "out" / "adapter_config.json")
    assert settings["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    expected = load_file(ADAPTER / "adapter_model.safetensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor.float()) for name, tensor in expected.items())
    assert "4-bit file" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_run_of_lora_without_its_whole_model_can_be_exported(runs, base, tmp_path):
    run = shutil.copytree(runs["lora"], tmp_path / "run")
    shutil.rmtree(run / "model")
    export_run(run, "hf", tmp_path / "out")
    model, _ = load_pretrained(base)
    load_adapter(model, run / "adapter")
    merge_lora(model)
    found = load_pretrained(tmp_path / "out")[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


# What is refused


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_onto_something_that_exists_is_refused(runs, tmp_path, capsys, form):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious", encoding="utf-8")
    options = ["--run", runs["lora"], "--format", form, "--out", tmp_path / "out"]
    assert main(["export", *map(str, options)]) == 1
    assert "out exists already; move it away or give another --out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_full_run_has_no_adapter_to_export(runs, tmp_path, capsys):
    options = ["--run", runs["full"], "--format", "peft", "--out", tmp_path / "out"]
    assert main(["export", *map(str, options)]) == 1
    assert "trained all weights and has no adapter; export it as hf" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_not_exported(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    options = ["--run", tmp_path / "run", "--format", "hf", "--out", tmp_path / "out"]
    assert main(["export", *map(str, options)]) == 1
    assert "no metrics.json; it holds no finished run to export" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["prompt_style", "lora", "scores"])
def test_a_run_whose_metrics_lack_something_is_refused_and_it_is_named(runs, tmp_path, key):
    run = shutil.copytree(runs["lora"], tmp_path / "run")
    metrics = read_json(run / "metrics.json")
    del metrics[key]
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"metrics\.json lacks '{key}'; make the run anew"):
        export_run(run, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"unknown format 'onnx'; choose one of hf, peft, gguf"):
        export_run(runs["full"], "onnx", tmp_path / "out")


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_nothing(runs, tmp_path, monkeypatch, form):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("supplementary.export.model_card", fail)  # the last thing written
    with pytest.raises(OSError, match="disk full"):
        export_run(runs["lora"], form, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


_FILL = """
import resource, sys
from pathlib import Path

import torch

from supplementary.adapters import load_adapter, save_adapter
from supplementary.checkpoints import load_pretrained, save_pretrained
from supplementary.gguf_files import export_gguf
from supplementary.runs import write_checkpoint

run, out = map(Path, sys.argv[1:])
model, tokenizer = load_pretrained(run / "model")
save_pretrained(model, tokenizer, out / "model")  # what a full disk must not touch
adapted, _ = load_pretrained(run / "model")
load_adapter(adapted, run / "adapter")
optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
sum(p.sum() for p in adapted.parameters()).backward()
optimizer.step()
before = sorted(out.rglob("*"))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for save in (
    lambda: save_pretrained(model, tokenizer, out / "model"),
    lambda: save_adapter(adapted, out / "adapter"),
    lambda: export_gguf(model, tokenizer, out / "model.gguf"),
    lambda: write_checkpoint(out, 1, adapted, optimizer, {}),
):
    try:
        save()
    except OSError as error:
        assert "too large" in str(error), error
    else:
        raise AssertionError("nothing failed")
    assert sorted(out.rglob("*")) == before
load_pretrained(out / "model")
print("all failed well")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit the size of files")
def test_a_disk_that_is_full_in_the_middle_of_a_save_leaves_what_there_was(runs, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FILL, runs["lora"], tmp_path],
        cwd=ADAPTER.parent.parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stdout) == (0, "all failed well\n"), done.stderr


# The model card


@pytest.mark.parametrize("form", FORMATS)
def test_a_card_names_data_scores_intervals_and_limits(form):
    metrics = read_json(ADAPTER / "metrics.json")
    card = model_card(metrics, form)
    assert f"library_name: {LIBRARIES[form]}\n" in card
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in card
    assert metrics["data_sha256"] in card and "`instruction-data.json`" in card
    row = metrics["scores"]["answer key"]
    low, high = row["after_interval"]
    assert f"{row['after']:.1%} ({low:.1%} to {high:.1%})" in card
    assert f"validation {metrics['loss']['after']['validation']:.3f}" in card
    assert "### Instruction:\nYOUR INSTRUCTION\n\n### Response:\n" in card
    assert "## Limits" in card and "learning_rate 0.001" in card
    assert "4-bit file" in card
    assert ("On the original weights the adapter" in card) == (form == "peft")
    assert "{" not in card.replace("{%", "").split("## The prompt")[1]  # every field is filled


def test_the_card_of_another_model_claims_no_licence(runs):
    card = model_card(read_json(runs["full"] / "metrics.json"), "hf")
    head = card.split("---\n")[1]
    assert "license" not in head and "language" not in head
    assert "base_model" not in head  # a folder on this machine
    assert "`numbers.json`" in card and "4-bit" not in card
    assert "the answer key knows 0 of these 1 entries" in card

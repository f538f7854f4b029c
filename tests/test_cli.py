"""The command line, run as a user would, on a tiny random model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from supplementary.adapters import load_adapter
from supplementary.checkpoints import load_pretrained
from supplementary.cli import main
from supplementary.lora import merge_lora

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model_folder(make_llama, train_tokenizer, tmp_path_factory):
    """A folder with a tiny random model whose context takes an Alpaca prompt."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    make_llama(**sizes, max_position_embeddings=512).save_pretrained(folder)
    train_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def entries(count):
    return [
        {"instruction": f"Say the number {i}.", "input": "", "output": f"It is {i}."}
        for i in range(count)
    ]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(entries(10)), encoding="utf-8")
    return path


@pytest.fixture
def finetune(model_folder, data, tmp_path):
    """Run `finetune` on ten entries; more options may follow."""

    def run(*options, out=tmp_path / "run"):
        arguments = ["--data", data, "--model", model_folder, "--out", out, "--epochs", "1"]
        return main(["finetune", *map(str, arguments), *map(str, options)])

    return run


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_ten_entries_are_enough_for_a_run_that_writes_all_its_files(finetune, tmp_path, capsys):
    assert finetune() == 0
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert {"responses.json", "metrics.json", "loss.png", "model"} <= names
    (response,) = json.loads((run / "responses.json").read_text(encoding="utf-8"))
    assert response.keys() == {
        "instruction", "input", "output", "response_before", "response_after",
    }  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["entries"] == {"train": 8, "test": 1, "validation": 1}
    assert metrics["left_out"] == {}
    assert metrics["scores"]["exact match"]["entries"] == 1
    assert "answer key" not in metrics["scores"]
    assert metrics["seconds"].keys() >= {"training", "measuring before", "measuring after"}
    assert metrics["peak_memory_bytes"] >= 0 and metrics["versions"]["torch"] == torch.__version__
    shown = capsys.readouterr().out
    assert "validation loss" in shown and "exact match" in shown


def test_rank_and_number_of_training_entries_are_taken_and_recorded(finetune, tmp_path):
    assert finetune("--method", "lora", "--rank", "2", "--train-entries", "3") == 0
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["entries"] == {"train": 3, "test": 1, "validation": 1}
    assert metrics["lora"] == {"rank": 2, "alpha": 32.0}
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["r"], settings["lora_alpha"]) == (2, 32.0)
    (response,) = json.loads((run / "responses.json").read_text(encoding="utf-8"))
    assert response["instruction"] == "Say the number 8."  # the test part is the same


def test_what_an_earlier_run_measured_before_is_taken_over(finetune, tmp_path, monkeypatch):
    assert finetune() == 0
    measured = []
    monkeypatch.setattr(
        "supplementary.finetune.respond",
        lambda *arguments, **options: measured.append(1) or ["It is 8."],
    )
    again = ["--method", "lora", "--before", tmp_path / "run"]
    assert finetune(*again, out=tmp_path / "second") == 0
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))
        for name in ("run", "second")
    )
    assert len(measured) == 1 and second["before"] == str(tmp_path / "run")
    assert second["loss"]["before"] == first["loss"]["before"]
    scores = [m["scores"]["token F1"]["before"] for m in (first, second)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("other", ["data", "style", "rows", "nothing"])
def test_a_run_of_something_else_is_not_taken_as_before(finetune, data, tmp_path, capsys, other):
    run = tmp_path / "run"
    assert other == "nothing" or finetune() == 0
    if other == "data":
        data.write_text(json.dumps(entries(11)), encoding="utf-8")
    if other == "rows":
        rows = json.loads((run / "responses.json").read_text(encoding="utf-8"))
        (run / "responses.json").write_text(json.dumps(rows * 2), encoding="utf-8")
    style = ["--prompt-style", "chatml"] if other == "style" else []
    kept = contents(tmp_path)
    assert finetune("--before", run, *style, out=tmp_path / "second") == 1
    words = {"data": "data_sha256", "style": "'alpaca', this run 'chatml'", "rows": "other test"}
    error = capsys.readouterr().err
    assert words.get(other, "metrics.json") in error and str(run) in error
    assert contents(tmp_path) == kept


def test_a_full_run_records_no_lora(finetune, tmp_path):
    assert finetune() == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["lora"] is None


@pytest.mark.parametrize("option", ["--rank", "--train-entries"])
def test_numbers_that_must_be_positive_are_checked(finetune, capsys, option):
    with pytest.raises(SystemExit):
        finetune(option, "0")
    assert f"argument {option}: invalid positive int value" in capsys.readouterr().err


def test_five_thousand_entries_are_read_and_split(finetune, data, tmp_path, monkeypatch):
    monkeypatch.setattr("supplementary.finetune.MAX_NEW_TOKENS", 2)  # a random model never stops
    monkeypatch.setattr("supplementary.cli.TrainSettings.micro_batch_size", 32)  # fewer, larger
    data.write_text(json.dumps(entries(5000)), encoding="utf-8")
    assert finetune("--batch-size", "32", "--prompt-style", "chatml") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["entries"] == {"train": 4250, "test": 500, "validation": 250}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("style", ["alpaca", "phi3", "chatml"])
def test_every_method_and_style_runs_and_can_be_chatted_with(
    finetune, tmp_path, capsys, monkeypatch, method, style
):
    assert finetune("--method", method, "--prompt-style", style) == 0
    answers = iter(["Say the number 3.", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    capsys.readouterr()
    assert main(["chat", "--model", str(tmp_path / "run"), "--max-new-tokens", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_an_exported_model_is_chatted_with_in_the_style_it_was_trained_on(
    finetune, tmp_path, monkeypatch
):
    assert finetune("--prompt-style", "chatml") == 0
    out = tmp_path / "out"
    options = ["--run", str(tmp_path / "run"), "--format", "hf", "--out", str(out)]
    assert main(["export", *options]) == 0
    styles = []
    answers = iter(["Say the number 3.", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    monkeypatch.setattr("supplementary.cli.stream_response", lambda *given: styles.append(given[4]))
    assert main(["chat", "--model", str(out)]) == 0
    assert styles == ["chatml"]


@pytest.mark.parametrize("part", ["model", "adapter"])
def test_a_part_of_a_run_is_chatted_with_in_the_runs_style(finetune, tmp_path, monkeypatch, part):
    assert finetune("--prompt-style", "phi3", "--method", "lora") == 0
    styles, answers = [], iter(["Say the number 3.", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    monkeypatch.setattr("supplementary.cli.stream_response", lambda *given: styles.append(given[4]))
    assert main(["chat", "--model", str(tmp_path / "run" / part)]) == 0
    assert styles == ["phi3"]


def test_the_adapter_of_a_lora_run_gives_the_base_model_the_weights_of_its_model(
    finetune, model_folder, tmp_path
):
    assert finetune("--method", "lora") == 0
    base, _ = load_pretrained(model_folder)
    finetuned, tokenizer = load_pretrained(tmp_path / "run" / "model")
    input_ids = torch.tensor([tokenizer.encode("Say the number 3.")])
    with torch.no_grad():
        before, expected = base(input_ids), finetuned(input_ids)
        load_adapter(base, tmp_path / "run" / "adapter")
        merge_lora(base)
        assert torch.equal(base(input_ids), expected)
    assert not torch.equal(before, expected)
    text = (tmp_path / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    assert json.loads(text)["base_model_name_or_path"] == str(model_folder)


def test_a_folder_that_holds_a_run_is_refused_and_stays_as_it_was(finetune, tmp_path, capsys):
    assert finetune() == 0
    before = contents(tmp_path / "run")
    assert finetune() == 1
    assert "--overwrite" in capsys.readouterr().err
    assert finetune("--resume") == 1
    assert "finished" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before


def test_overwrite_replaces_a_run_but_not_before_the_new_one_can_start(finetune, tmp_path, capsys):
    assert finetune() == 0
    before = contents(tmp_path / "run")
    assert finetune("--overwrite", "--model", tmp_path / "missing") == 1
    assert contents(tmp_path / "run") == before
    assert finetune("--overwrite", "--seed", "1") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["settings"]["seed"] == 1


def test_overwrite_refuses_a_folder_with_files_of_something_else(finetune, tmp_path, capsys):
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert finetune("--overwrite", out=other) == 1
    assert "thesis.txt" in capsys.readouterr().err
    assert (other / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_an_interrupted_run_is_resumed_to_the_same_model(finetune, tmp_path, monkeypatch, capsys):
    options = ("--batch-size", "2", "--epochs", "3")
    assert finetune(*options, out=tmp_path / "whole") == 0
    interrupt_after_first_checkpoint(monkeypatch)
    assert finetune(*options, out=tmp_path / "cut") == 130
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert finetune(*options, "--resume", out=tmp_path / "cut") == 0
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def interrupt_after_first_checkpoint(monkeypatch):
    """Checkpoint after 2 steps, then raise what Ctrl-C raises."""
    from supplementary import finetune as module
    from supplementary.training import train

    def cut(*arguments):
        train(*arguments, stop_after=5)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", cut)


@pytest.fixture
def read_only(tmp_path):
    """A folder in which nothing can be written, not even by root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # root, or Windows
        folder = Path("/sys/kernel")
    if not folder.is_dir():
        pytest.skip("no folder is read-only here")
    return folder


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(
    finetune, read_only, capsys
):
    for out in (read_only / "run", read_only / "new" / "run"):
        assert finetune(out=out) == 1
        printed = capsys.readouterr()
        assert f"{read_only} cannot be written" in printed.err
        assert "loading" not in printed.out


def test_resume_without_a_checkpoint_is_refused(finetune, capsys):
    assert finetune("--resume") == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_an_entry_longer_than_the_context_is_named_left_out_and_counted(
    finetune, data, tmp_path, capsys
):
    long = entries(20)
    long[3]["instruction"] = "word " * 400
    long[18]["instruction"] = "word " * 400
    data.write_text(json.dumps(long), encoding="utf-8")
    assert finetune() == 0
    shown = capsys.readouterr().out
    assert "entry 3 has a prompt of" in shown and "entry 18 has a prompt of" in shown
    assert "entries left out: 2" in shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["entries"] == {"train": 16, "test": 1, "validation": 1}
    assert set(metrics["left_out"]) == {"3", "18"}
    (response,) = json.loads((tmp_path / "run" / "responses.json").read_text(encoding="utf-8"))
    assert response["instruction"] == "Say the number 17."


@pytest.mark.parametrize(
    ("option", "value"),
    [("--method", "qlora"), ("--prompt-style", "vicuna"), ("--epochs", "0"), ("--lr", "-1")],
)
def test_an_impossible_option_is_refused_by_name(finetune, tmp_path, capsys, option, value):
    with pytest.raises(SystemExit):
        finetune(option, value)
    error = capsys.readouterr().err
    assert option in error and value in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("{}", "not a list"),
        ("[]", "empty list"),
        ("[1]", "entry 0 is of type int"),
        ('[{"instruction": "a", "output": "b"}]', "entry 0 has no 'input'"),
        ('[{"instruction": "a", "input": 1, "output": "b"}]', "entry 0 has a value of type int as"),
        ('[{"instruction": " ", "input": "", "output": "b"}]', "entry 0 has an empty 'instr"),
        ('[{"instruction": "a", "input": "", "output": ""}]', "entry 0 has an empty 'output'"),
        (json.dumps(entries(9)), "at least 10"),
    ],
)
def test_bad_data_is_named_and_nothing_is_written(finetune, data, tmp_path, capsys, text, words):
    data.write_text(text, encoding="utf-8")
    assert finetune() == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_file_and_an_unknown_model_are_named(finetune, tmp_path, capsys):
    assert finetune("--data", tmp_path / "nowhere.json") == 1
    assert "nowhere.json" in capsys.readouterr().err
    assert finetune("--model", "no such model") == 1
    assert "unknown model 'no such model'" in capsys.readouterr().err
    assert main(["chat", "--model", str(tmp_path / "nowhere")]) == 1
    assert "no folder" in capsys.readouterr().err


def test_the_package_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "supplementary", "finetune", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--prompt-style" in done.stdout

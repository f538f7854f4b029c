import copy
from dataclasses import replace

import pytest
import torch

from supplementary import runs
from supplementary.lora import add_lora
from supplementary.model import CausalLM
from supplementary.runs import (
    check_checkpoint,
    latest_checkpoint,
    read_checkpoint,
    read_state,
    write_checkpoint,
)

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "sha256.json")
STATE = {"step": 2, "settings": {"learning_rate": 0.1}, "history": [1.5, "Übung", None]}


def make_optimizer(model: CausalLM) -> torch.optim.AdamW:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=0.01)


def take_steps(model: CausalLM, optimizer: torch.optim.Optimizer, *seeds: int) -> None:
    """Take one step for each seed, with random gradients."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.fixture
def trained(tiny_model):
    """A model and its optimizer after two steps."""
    optimizer = make_optimizer(tiny_model)
    take_steps(tiny_model, optimizer, 1, 2)
    return tiny_model, optimizer


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_checkpoint_gives_weights_moments_and_state_back_bit_for_bit(
    trained, tiny_config, tmp_path
):
    model, optimizer = trained
    folder = write_checkpoint(tmp_path / "run", 2, model, optimizer, STATE)
    assert folder == tmp_path / "run" / "checkpoint-000002"
    other = CausalLM(tiny_config)
    other_optimizer = make_optimizer(other)
    read_checkpoint(folder, other, other_optimizer)
    assert read_state(folder) == STATE
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert q.requires_grad
        expected, moments = optimizer.state[p], other_optimizer.state[q]
        assert moments.keys() == expected.keys()
        for name, moment in moments.items():
            assert torch.equal(moment, expected[name]), name
            assert moment.dtype == expected[name].dtype


def test_next_step_after_reading_equals_the_next_step_without(trained, tiny_config, tmp_path):
    model, optimizer = trained
    folder = write_checkpoint(tmp_path, 2, model, optimizer, STATE)
    other = CausalLM(tiny_config)
    other_optimizer = make_optimizer(other)
    read_checkpoint(folder, other, other_optimizer)
    take_steps(model, optimizer, 3)
    take_steps(other, other_optimizer, 3)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_tied_weights_stay_tied(trained, tiny_config, tmp_path):
    folder = write_checkpoint(tmp_path, 2, *trained, STATE)
    other = CausalLM(tiny_config)
    read_checkpoint(folder, other, make_optimizer(other))
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert torch.equal(other.lm_head.weight, trained[0].lm_head.weight)


def test_only_what_is_trained_is_written(tiny_model, tmp_path):
    add_lora(tiny_model, rank=2)
    optimizer = make_optimizer(tiny_model)
    take_steps(tiny_model, optimizer, 1)
    folder = write_checkpoint(tmp_path, 1, tiny_model, optimizer, STATE)
    weights = runs.read_tensors(folder / "weights.safetensors")
    assert len(weights) == 2 * 7 * 2
    assert all(name.endswith((".lora_A", ".lora_B")) for name in weights)
    assert names_in(folder) == sorted(FILES)


def test_newest_checkpoint_is_the_one_with_the_most_steps(trained, tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "none") is None
    for name in ("checkpoint-000009", "checkpoint-000117", "checkpoint-000020"):
        (tmp_path / name).mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / ".checkpoint-000500-x").mkdir()  # one that was never finished
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000117"


def test_older_checkpoints_are_dropped_and_other_files_kept(trained, tmp_path):
    (tmp_path / "settings.json").write_text("{}", encoding="utf-8")
    for step in (8, 9, 10, 117):
        folder = write_checkpoint(tmp_path, step, *trained, STATE)
        assert names_in(tmp_path) == [folder.name, "settings.json"]


def test_checkpoint_just_written_is_kept_whatever_lay_there(trained, tmp_path):
    write_checkpoint(tmp_path, 117, *trained, STATE)
    folder = write_checkpoint(tmp_path, 39, *trained, {"step": 39})
    assert names_in(tmp_path) == ["checkpoint-000039"]
    read_checkpoint(folder, *trained)
    assert read_state(folder) == {"step": 39}


def test_checkpoint_of_the_same_step_is_replaced(trained, tmp_path):
    write_checkpoint(tmp_path, 2, *trained, STATE)
    folder = write_checkpoint(tmp_path, 2, *trained, {"step": 2, "again": True})
    assert names_in(tmp_path) == ["checkpoint-000002"]
    read_checkpoint(folder, *trained)
    assert read_state(folder) == {"step": 2, "again": True}


def test_failed_write_leaves_the_checkpoint_before_and_no_half_one(trained, tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, 2, *trained, STATE)

    def fail(path, value):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", fail)
        with pytest.raises(OSError, match="disk full"):
            write_checkpoint(tmp_path, 4, *trained, STATE)
    assert names_in(tmp_path) == ["checkpoint-000002"]
    assert latest_checkpoint(tmp_path) == folder
    read_checkpoint(folder, *trained)
    assert read_state(folder) == STATE


@pytest.mark.parametrize("name", FILES)
def test_every_missing_cut_or_flipped_byte_of_a_checkpoint_is_noticed(trained, tmp_path, name):
    folder = write_checkpoint(tmp_path, 2, *trained, STATE)
    check_checkpoint(folder)
    assert names_in(folder) == sorted(FILES)
    path = folder / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (flipped, whole[:middle], b"", whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged|is not valid JSON"):
            check_checkpoint(folder)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing; remove .* and train anew"):
        check_checkpoint(folder)
    path.write_bytes(whole)
    check_checkpoint(folder)


def test_checkpoint_of_another_method_is_refused(trained, tiny_model, tmp_path):
    folder = write_checkpoint(tmp_path, 2, *trained, STATE)
    model = copy.deepcopy(tiny_model)
    add_lora(model, rank=2)
    message = "checkpoint-000002 was written for another model or method; train anew"
    with pytest.raises(ValueError, match=message):
        read_checkpoint(folder, model, make_optimizer(model))


def test_checkpoint_of_a_model_with_more_layers_is_refused(trained, tiny_config, tmp_path):
    folder = write_checkpoint(tmp_path, 2, *trained, STATE)
    model = CausalLM(replace(tiny_config, num_hidden_layers=3))
    with pytest.raises(ValueError, match="was written for another model or method"):
        read_checkpoint(folder, model, make_optimizer(model))


def test_checkpoint_of_a_model_of_another_width_is_refused_and_nothing_changed(
    trained, tiny_config, tmp_path
):
    folder = write_checkpoint(tmp_path, 2, *trained, STATE)
    model = CausalLM(replace(tiny_config, intermediate_size=48))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="was written for another model or method"):
        read_checkpoint(folder, model, make_optimizer(model))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_lora_checkpoint_of_another_rank_is_refused(tiny_model, tmp_path):
    twin = copy.deepcopy(tiny_model)
    add_lora(tiny_model, rank=2)
    optimizer = make_optimizer(tiny_model)
    take_steps(tiny_model, optimizer, 1)
    folder = write_checkpoint(tmp_path, 1, tiny_model, optimizer, STATE)
    add_lora(twin, rank=1)
    with pytest.raises(ValueError, match="was written for another model or method"):
        read_checkpoint(folder, twin, make_optimizer(twin))

import copy
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from supplementary import generation, training
from supplementary.batching import balanced_batches, collate_padded
from supplementary.data import Example
from supplementary.files import read_json
from supplementary.generation import generate
from supplementary.lora import add_lora
from supplementary.model import CausalLM
from supplementary.runs import latest_checkpoint, read_state
from supplementary.training import (
    TrainSettings,
    learning_rate_at,
    make_optimizer,
    mean_loss,
    next_token_loss,
    packed_loader,
    train,
    train_step,
)

END = 96  # end-of-text and padding are the same id
EXAMPLES = [  # 7 examples; all prompts begin with 11, 12; 1 to 6 labels each
    Example([11, 12, 20, 30, 31, END], 3),
    Example([11, 12, 21, 22, 32, 33, 34, 35, 36, END], 4),
    Example([11, 12, 23, END], 3),
    Example([11, 12, 24, 37, END], 3),
    Example([11, 12, 20, 25, 26, 38, 39, 40, END], 5),
    Example([11, 12, 27, 41, 42, 43, END], 3),
    Example([11, 12, 28, 44, END], 3),
]
VALIDATION = [Example([11, 12, 50, 60, END], 3), Example([11, 12, 51, 52, 61, 62, END], 4)]
SETTINGS = TrainSettings(
    epochs=2,
    learning_rate=0.01,
    batch_size=2,
    micro_batch_size=1,
    warmup_ratio=0.25,
    eval_every=3,
    checkpoint_every=2,
)
STEPS = 8  # ceil(7 / 2) in each of 2 epochs


@pytest.fixture(autouse=True)
def float32_on_one_thread(monkeypatch):
    """The same arithmetic on every machine."""
    monkeypatch.setattr(training, "pick_precision", lambda device: torch.float32)
    monkeypatch.setattr(training, "keep_freed_memory", lambda: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights_of(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_weights(model: CausalLM, weights: dict[str, torch.Tensor]) -> None:
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name]), name


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The loss


def test_loss_equals_the_one_of_transformers_on_the_same_weights(tiny_model):
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps")
    names += ("max_position_embeddings", "tie_word_embeddings")
    theirs = LlamaForCausalLM(LlamaConfig(**{n: getattr(tiny_model.config, n) for n in names}))
    theirs.load_state_dict(tiny_model.state_dict())
    batch = collate_padded(EXAMPLES, END)
    loss, count = next_token_loss(tiny_model, batch)
    assert count == 3 + 6 + 1 + 2 + 4 + 4 + 2
    assert (loss / count).item() == pytest.approx(theirs(**batch).loss.item(), rel=1e-5)

    (loss / count).backward()
    theirs(**batch).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, p in tiny_model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-4, atol=1e-5)


def test_loss_scores_each_label_by_the_logits_one_position_earlier(tiny_model):
    ids = [11, 12, 20, 30, END]
    batch = collate_padded([Example(ids, 3)], END)
    scores = tiny_model(batch["input_ids"])[0].log_softmax(-1)
    loss, count = next_token_loss(tiny_model, batch)
    assert count == 2
    assert loss.item() == pytest.approx(-(scores[2, 30] + scores[3, END]).item(), rel=1e-5)


def test_label_of_the_first_token_is_never_scored(tiny_model):
    batch = collate_padded([Example([11, 12, END], 0)], END)
    assert batch["labels"].tolist() == [[11, 12, END]]
    assert next_token_loss(tiny_model, batch)[1] == 2


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_mean_loss_is_the_mean_over_all_labelled_tokens(tiny_model, mask_prompt):
    total = count = 0
    for example in EXAMPLES:
        ids = torch.tensor([example.input_ids])
        scores = tiny_model(ids)[0].log_softmax(-1)
        for position in range(example.prompt_length if mask_prompt else 1, ids.shape[1]):
            total -= scores[position - 1, ids[0, position]].item()
            count += 1
    for batch_size in (1, 2, 3, 7, 8):
        loss = mean_loss(tiny_model, EXAMPLES, batch_size, mask_prompt)
        assert loss == pytest.approx(total / count, rel=1e-5)


def test_mean_loss_of_one_example_and_of_none(tiny_model):
    loss, count = next_token_loss(tiny_model, collate_padded(EXAMPLES[:1], END))
    expected = loss.item() / count
    assert mean_loss(tiny_model, EXAMPLES[:1]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="no examples to measure the loss on; give at least one"):
        mean_loss(tiny_model, [])


def test_packed_loader_shares_the_prefix_only_where_prompts_are_masked():
    (batch,) = packed_loader(EXAMPLES, [[0, 3]])
    assert batch["input_ids"].tolist() == [[11, 12, 20, 30, 31, END, 24, 37, END]]
    (batch,) = packed_loader(EXAMPLES, [[0, 3]], mask_prompt=False)
    assert batch["input_ids"].tolist() == [[11, 12, 20, 30, 31, END, 11, 12, 24, 37, END]]


# The schedule


def test_learning_rate_rises_in_a_line_then_falls_in_half_a_cosine():
    settings = TrainSettings(learning_rate=2.0, warmup_ratio=0.25, final_ratio=0.1)
    rates = [learning_rate_at(step, 12, settings) for step in range(12)]
    assert rates[:3] == [2.0 / 3, 4.0 / 3, 2.0]  # ceil(0.25 * 12) steps of warm-up
    assert rates[3] == 2.0  # the cosine begins at its top
    assert rates[7] == pytest.approx(2.0 * 0.55)  # halfway from step 3 to step 11
    assert rates[5] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert rates[11] == pytest.approx(2.0 * 0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_part_of_a_step_of_warm_up_counts_as_a_whole_one():
    settings = TrainSettings(learning_rate=1.0, warmup_ratio=0.21)
    assert [learning_rate_at(step, 10, settings) for step in range(3)] == [1 / 3, 2 / 3, 1.0]


def test_run_of_one_step_takes_the_largest_rate():
    for ratio in (0.0, 0.1, 1.0):
        settings = TrainSettings(learning_rate=0.5, warmup_ratio=ratio)
        assert learning_rate_at(0, 1, settings) == 0.5


def test_run_without_warm_up_begins_at_the_largest_rate_and_ends_at_the_final_one():
    settings = TrainSettings(learning_rate=0.5, warmup_ratio=0.0, final_ratio=0.0)
    rates = [learning_rate_at(step, 5, settings) for step in range(5)]
    assert rates == pytest.approx([0.5, 0.5 * (2 + 2**0.5) / 4, 0.25, 0.5 * (2 - 2**0.5) / 4, 0])


def test_run_of_only_warm_up_ends_at_the_largest_rate():
    settings = TrainSettings(learning_rate=1.0, warmup_ratio=1.0)
    assert [learning_rate_at(step, 4, settings) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


# The optimizer


def test_only_matrices_decay(tiny_model):
    settings = TrainSettings(learning_rate=0.5, weight_decay=0.2)
    optimizer = make_optimizer(tiny_model, settings)
    before = weights_of(tiny_model)
    for p in tiny_model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in tiny_model.named_parameters():
        factor = 1.0 if name.endswith("norm.weight") else 1 - 0.5 * 0.2
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_optimizer_holds_only_what_is_trained(tiny_model):
    add_lora(tiny_model, rank=2)
    optimizer = make_optimizer(tiny_model, SETTINGS)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lora = {id(p) for name, p in tiny_model.named_parameters() if ".lora_" in name}
    assert held == lora
    assert len(lora) == 2 * 7 * 2


# One step


def test_step_reports_the_mean_loss_the_whole_gradient_and_the_labelled_tokens(tiny_model):
    reference = copy.deepcopy(tiny_model)
    loss, count = next_token_loss(reference, collate_padded(EXAMPLES[:3], END))
    (loss / count).backward()
    norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm().item()
    parts = list(packed_loader(EXAMPLES, [[0], [1, 2]]))
    result = train_step(tiny_model, make_optimizer(tiny_model, SETTINGS), parts, SETTINGS)
    assert result == (
        pytest.approx(loss.item() / count, rel=1e-5),
        pytest.approx(norm, rel=1e-4),
        count,
    )


@pytest.mark.parametrize("most", [0.01, 1e6])
def test_gradients_longer_than_the_limit_are_scaled_down_to_it_and_others_kept(tiny_model, most):
    before = weights_of(tiny_model)
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=1.0)
    settings = replace(SETTINGS, max_grad_norm=most)
    parts = list(packed_loader(EXAMPLES, [[0, 1]]))
    _, norm, _ = train_step(tiny_model, optimizer, parts, settings)
    moved = torch.cat([(p - before[n]).flatten() for n, p in tiny_model.named_parameters()]).norm()
    assert 0.01 < norm < 1e6
    assert moved.item() == pytest.approx(min(norm, most), rel=1e-3)


def test_step_forgets_the_gradients_of_the_step_before(tiny_model):
    twin = copy.deepcopy(tiny_model)
    for p in tiny_model.parameters():
        p.grad = torch.full_like(p, 100.0)
    parts = list(packed_loader(EXAMPLES, [[0, 1]]))
    for model in (tiny_model, twin):
        train_step(model, make_optimizer(model, SETTINGS), parts, SETTINGS)
    assert_same_weights(tiny_model, weights_of(twin))


# A run


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_accumulated_parts_equal_the_whole_batch(tiny_model, micro_batch_size):
    settings = replace(SETTINGS, batch_size=5, learning_rate=1e-4)
    whole, parts = tiny_model, copy.deepcopy(tiny_model)
    expected = train(whole, EXAMPLES, [], replace(settings, micro_batch_size=5))
    history = train(parts, EXAMPLES, [], replace(settings, micro_batch_size=micro_batch_size))
    assert len(history.steps) == 4
    for row, other in zip(history.steps, expected.steps, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["tokens"] == other["tokens"]
    for name, p in parts.named_parameters():
        assert (p - whole.get_parameter(name)).abs().max() <= 1e-5, name


def test_training_lowers_the_loss(tiny_model):
    examples = [*EXAMPLES, VALIDATION[0]]
    before = mean_loss(tiny_model, examples)
    train(tiny_model, examples, [], replace(SETTINGS, epochs=10))
    assert mean_loss(tiny_model, examples) < 0.2 * before


def test_run_takes_every_example_once_an_epoch_in_the_order_of_its_seed(tiny_model, monkeypatch):
    seen = []

    def record(examples, batches, mask_prompt):
        seen.append(batches)
        return packed_loader(examples, batches, mask_prompt)

    monkeypatch.setattr(training, "packed_loader", record)
    train(tiny_model, EXAMPLES, [], replace(SETTINGS, seed=5))
    lengths = [len(example.input_ids) for example in EXAMPLES]
    epochs = [balanced_batches(lengths, 2, 5), balanced_batches(lengths, 2, 5, epoch=1)]
    assert seen == [[[index] for batch in epoch for index in batch] for epoch in epochs]


def test_history_has_one_row_a_step(tiny_model):
    first = balanced_batches([len(e.input_ids) for e in EXAMPLES], 2, SETTINGS.seed)[0]
    loss = mean_loss(tiny_model, [EXAMPLES[i] for i in first])
    rows = []
    history = train(tiny_model, EXAMPLES, [], SETTINGS, on_step=rows.append)
    assert history.steps == rows
    names = ["step", "epoch", "tokens", "learning_rate", "loss", "grad_norm", "seconds"]
    assert [list(row) for row in rows] == [names] * STEPS
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["epoch"] for row in rows] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert [row["learning_rate"] for row in rows] == [
        learning_rate_at(step, STEPS, SETTINGS) for step in range(STEPS)
    ]
    labels = 3 + 6 + 1 + 2 + 4 + 4 + 2
    assert (rows[3]["tokens"], rows[7]["tokens"]) == (labels, 2 * labels)
    assert rows[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert all(row["grad_norm"] > 0 and row["seconds"] > 0 for row in rows)
    assert history.evaluations == []


def test_validation_loss_is_measured_before_now_and_then_and_at_the_end(tiny_model):
    before = mean_loss(tiny_model, VALIDATION)
    history = train(tiny_model, EXAMPLES, VALIDATION, SETTINGS)
    rows = history.evaluations
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (0, 0.0),
        (3, 0.75),
        (6, 1.5),
        (8, 2.0),
    ]
    assert rows[0]["loss"] == before
    assert rows[-1]["loss"] == mean_loss(tiny_model, VALIDATION)


def test_last_step_is_measured_once_even_where_a_measurement_is_due(tiny_model):
    settings = replace(SETTINGS, eval_every=4)
    history = train(tiny_model, EXAMPLES, VALIDATION, settings)
    assert [row["step"] for row in history.evaluations] == [0, 4, 8]


def test_fewer_examples_than_a_batch_make_one_step_an_epoch(tiny_model):
    settings = replace(SETTINGS, batch_size=8, micro_batch_size=8)
    history = train(tiny_model, EXAMPLES[:3], [], settings)
    assert [(row["step"], row["epoch"], row["tokens"]) for row in history.steps] == [
        (1, 1.0, 10),
        (2, 2.0, 20),
    ]


def test_run_without_examples_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="no examples to train on; give at least one"):
        train(tiny_model, [], VALIDATION, SETTINGS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unmasked_prompts_are_learnt_too(tiny_model):
    history = train(tiny_model, EXAMPLES, [], replace(SETTINGS, mask_prompt=False))
    assert history.steps[3]["tokens"] == sum(len(e.input_ids) - 1 for e in EXAMPLES)


def test_run_trains_in_training_mode_measures_in_evaluation_mode_and_leaves_it(
    tiny_model, monkeypatch
):
    modes = []

    def measure(model, *arguments, **settings):
        modes.append(model.training)
        return 1.0

    monkeypatch.setattr(training, "mean_loss", measure)
    during = []
    train(
        tiny_model,
        EXAMPLES,
        VALIDATION,
        SETTINGS,
        on_step=lambda row: during.append(tiny_model.training),
    )
    assert during == [True] * STEPS
    assert modes == [False] * 4
    assert not tiny_model.training


def test_only_lora_layers_are_trained_where_there_are_any(tiny_model):
    add_lora(tiny_model, rank=2)
    before = weights_of(tiny_model)
    train(tiny_model, EXAMPLES, [], SETTINGS)
    for name, p in tiny_model.named_parameters():
        assert torch.equal(p, before[name]) == (".lora_" not in name), name


# Losses that are no numbers


@pytest.mark.parametrize("bad_step", [1, 3])
def test_loss_that_is_no_number_stops_the_run_with_the_weights_untouched(
    tiny_model, tmp_path, bad_step
):
    known = {}

    def spoil(row: dict | None) -> None:
        if (row["step"] if row else 0) + 1 == bad_step:
            with torch.no_grad():
                tiny_model.model.norm.weight[0] = math.inf
            known["weights"] = weights_of(tiny_model)

    spoil(None)
    rate = learning_rate_at(bad_step - 1, STEPS, SETTINGS)
    batches = balanced_batches([len(e.input_ids) for e in EXAMPLES], SETTINGS.batch_size, 0)
    named = ", ".join(map(str, sorted(batches[bad_step - 1])))
    message = (
        rf"the loss became nan at step {bad_step} \(learning rate {rate:.2g}, training examples "
        rf"{named}, counted from 0\); lower the learning rate, or look at these examples"
    )
    with pytest.raises(FloatingPointError, match=message):
        train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path, on_step=spoil)
    assert_same_weights(tiny_model, known["weights"])
    written = [path.name for path in tmp_path.iterdir()]
    assert written == ([] if bad_step == 1 else ["checkpoint-000002"])


def test_infinite_loss_in_a_later_part_leaves_the_weights_untouched(tiny_model, monkeypatch):
    losses = iter([1.0, math.inf])

    def lose(model, batch):
        loss, count = next_token_loss(model, batch)
        return loss * next(losses), count

    monkeypatch.setattr(training, "next_token_loss", lose)
    before = weights_of(tiny_model)
    with pytest.raises(FloatingPointError, match="the loss became inf at step 1 "):
        train(tiny_model, EXAMPLES, [], SETTINGS)
    assert_same_weights(tiny_model, before)


def test_infinite_gradient_of_a_finite_loss_leaves_the_weights_untouched(tiny_model, monkeypatch):
    def blow_up(model, batch):
        loss, count = next_token_loss(model, batch)
        loss.register_hook(lambda gradient: gradient * math.inf)
        return loss, count

    monkeypatch.setattr(training, "next_token_loss", blow_up)
    before = weights_of(tiny_model)
    with pytest.raises(FloatingPointError, match=r"the gradient norm became (nan|inf) at step 1 "):
        train(tiny_model, EXAMPLES, [], SETTINGS)
    assert_same_weights(tiny_model, before)


# Stopping and resuming


def new_model(tiny_model: CausalLM, method: str, seed: int = 0) -> CausalLM:
    """Copy the model; what will be trained starts from other weights for each seed."""
    model = copy.deepcopy(tiny_model)
    if method == "lora":
        add_lora(model, rank=2, seed=seed)
    else:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(seed)
    return model


def assert_same_run(first: Path, second: Path) -> None:
    """Compare the last checkpoints of two runs bit for bit, apart from the time they took."""
    assert first.name == second.name == f"checkpoint-{STEPS:06d}"
    for name in ("weights.safetensors", "optimizer.safetensors"):
        expected, tensors = load_file(first / name), load_file(second / name)
        assert tensors.keys() == expected.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, expected[key]), key
    states = [read_json(folder / "state.json") for folder in (first, second)]
    for state in states:
        state["history"]["steps"] = without_seconds(state["history"]["steps"])
    assert states[0] == states[1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny_model, tmp_path, method):
    whole = new_model(tiny_model, method)
    expected = train(whole, EXAMPLES, VALIDATION, SETTINGS, tmp_path / "whole")
    assert len(expected.steps) == STEPS
    for stop in (1, 3, 4, 7, 8):  # 4 is the end of an epoch, 8 the end of the run
        folder = tmp_path / f"stopped-{stop}"
        stopped = new_model(tiny_model, method)
        history = train(stopped, EXAMPLES, VALIDATION, SETTINGS, folder, stop_after=stop)
        assert len(history.steps) == stop
        # The fresh model's own weights do not matter: the checkpoint's take their place.
        resumed = new_model(tiny_model, method, seed=1)
        history = train(resumed, EXAMPLES, VALIDATION, SETTINGS, folder, resume=True)
        assert without_seconds(history.steps) == without_seconds(expected.steps)
        assert history.evaluations == expected.evaluations
        assert_same_weights(resumed, weights_of(whole))
        assert_same_run(latest_checkpoint(tmp_path / "whole"), latest_checkpoint(folder))


def test_run_killed_between_checkpoints_goes_on_from_the_last_one(tiny_model, tmp_path):
    whole = copy.deepcopy(tiny_model)
    train(whole, EXAMPLES, VALIDATION, SETTINGS, tmp_path / "whole")

    def kill(row: dict) -> None:
        if row["step"] == 5:
            raise KeyboardInterrupt

    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, EXAMPLES, VALIDATION, SETTINGS, killed, on_step=kill)
    assert latest_checkpoint(killed).name == "checkpoint-000004"
    rows = []
    train(tiny_model, EXAMPLES, VALIDATION, SETTINGS, killed, True, on_step=rows.append)
    assert [row["step"] for row in rows] == [5, 6, 7, 8]
    assert_same_weights(tiny_model, weights_of(whole))
    assert_same_run(latest_checkpoint(tmp_path / "whole"), latest_checkpoint(killed))


def test_run_with_accumulation_and_unmasked_prompts_resumes_too(tiny_model, tmp_path):
    settings = replace(SETTINGS, mask_prompt=False, batch_size=3, micro_batch_size=2, seed=9)
    whole, stopped = tiny_model, copy.deepcopy(tiny_model)
    train(whole, EXAMPLES, [], settings)
    train(stopped, EXAMPLES, [], settings, tmp_path, stop_after=2)
    train(stopped, EXAMPLES, [], settings, tmp_path, resume=True)
    assert_same_weights(stopped, weights_of(whole))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.02),
        ("epochs", 3),
        ("batch_size", 4),
        ("micro_batch_size", 2),
        ("mask_prompt", False),
        ("seed", 1),
    ],
)
def test_run_is_not_resumed_with_other_settings(tiny_model, tmp_path, name, value):
    train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path, stop_after=2)
    before = files_in(tmp_path)
    assert len(before) == 4
    message = "checkpoint-000002 belongs to a run with other settings or data; give the same ones"
    with pytest.raises(ValueError, match=message):
        train(tiny_model, EXAMPLES, [], replace(SETTINGS, **{name: value}), tmp_path, resume=True)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    "examples",
    [
        EXAMPLES[:6],
        EXAMPLES[::-1],
        [*EXAMPLES[:6], Example([11, 12, 28, 45, END], 3)],  # another token
        [*EXAMPLES[:6], Example([11, 12, 28, 44, END], 4)],  # another prompt length
    ],
)
def test_run_is_not_resumed_with_other_examples(tiny_model, tmp_path, examples):
    train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path, stop_after=2)
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match="belongs to a run with other settings or data"):
        train(tiny_model, examples, [], SETTINGS, tmp_path, resume=True)
    assert files_in(tmp_path) == before


def test_refused_resumption_leaves_the_model_as_it_was(tiny_model, tmp_path):
    trained = copy.deepcopy(tiny_model)
    train(trained, EXAMPLES, [], SETTINGS, tmp_path, stop_after=2)
    before = weights_of(tiny_model)
    with pytest.raises(ValueError, match="belongs to a run with other settings or data"):
        train(tiny_model, EXAMPLES, [], replace(SETTINGS, seed=1), tmp_path, resume=True)
    assert_same_weights(tiny_model, before)


def test_a_flipped_bit_of_a_checkpoint_is_refused_and_the_model_stays(tiny_model, tmp_path):
    train(copy.deepcopy(tiny_model), EXAMPLES, [], SETTINGS, tmp_path, stop_after=2)
    path = latest_checkpoint(tmp_path) / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # still a number, only another one
    path.write_bytes(content)
    before = weights_of(tiny_model)
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged; remove .*-000002"):
        train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path, resume=True)
    assert_same_weights(tiny_model, before)


def test_resuming_where_there_is_no_checkpoint_begins_a_run(tiny_model, tmp_path):
    twin = copy.deepcopy(tiny_model)
    train(twin, EXAMPLES, [], SETTINGS)
    history = train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path / "new", resume=True)
    assert len(history.steps) == STEPS
    assert_same_weights(tiny_model, weights_of(twin))


def test_resuming_a_finished_run_gives_its_history_and_weights_and_trains_no_more(
    tiny_model, tmp_path
):
    trained = copy.deepcopy(tiny_model)
    expected = train(trained, EXAMPLES, VALIDATION, SETTINGS, tmp_path)
    before = files_in(tmp_path)
    history = train(tiny_model, EXAMPLES, VALIDATION, SETTINGS, tmp_path, resume=True)
    assert asdict(history) == asdict(expected)
    assert_same_weights(tiny_model, weights_of(trained))
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(("stop", "steps"), [(0, 0), (1, 1), (5, 5), (8, 8), (99, 8)])
def test_run_stops_after_the_given_steps_with_a_checkpoint(tiny_model, tmp_path, stop, steps):
    history = train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path, stop_after=stop)
    assert [row["step"] for row in history.steps] == list(range(1, steps + 1))
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ([f"checkpoint-{steps:06d}"] if steps else [])


def test_only_the_newest_checkpoint_is_kept(tiny_model, tmp_path):
    seen = []

    def look(row: dict) -> None:
        seen.append([path.name for path in tmp_path.iterdir()])

    train(tiny_model, EXAMPLES, [], replace(SETTINGS, checkpoint_every=3), tmp_path, on_step=look)
    none, third, sixth = [], ["checkpoint-000003"], ["checkpoint-000006"]
    assert seen == [none, none, none, third, third, third, sixth, sixth]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000008"]


def test_new_run_in_a_used_folder_keeps_its_own_checkpoint(tiny_model, tmp_path):
    train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path)
    train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path, stop_after=2)
    assert latest_checkpoint(tmp_path).name == "checkpoint-000002"


def test_run_without_a_folder_writes_nothing(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tiny_model, EXAMPLES, VALIDATION, SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_run_does_not_depend_on_the_global_random_state(tiny_model):
    twin = copy.deepcopy(tiny_model)
    torch.manual_seed(1)
    train(tiny_model, EXAMPLES, [], SETTINGS)
    torch.manual_seed(2)
    train(twin, EXAMPLES, [], SETTINGS)
    assert_same_weights(tiny_model, weights_of(twin))


# bfloat16: each weight is cast once


@pytest.fixture
def bfloat16(monkeypatch):
    monkeypatch.setattr(training, "pick_precision", lambda device: torch.bfloat16)
    monkeypatch.setattr(generation, "pick_precision", lambda device: torch.bfloat16)


def count_casts(model: CausalLM, compute) -> dict[str, int]:
    """Return how often `compute()` casts each of the matrices that linear layers multiply with."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    names = {layer.weight.data_ptr(): name for name, layer in layers.items()}
    casts = dict.fromkeys(layers, 0)
    kinds = (torch.ops.aten._to_copy, torch.ops.aten.to)  # the second in inference mode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in kinds and args[0].data_ptr() in names:
                casts[names[args[0].data_ptr()]] += 1
            return func(*args, **(kwargs or {}))

    with Count():
        compute()
    return casts


def test_full_finetuning_casts_each_weight_once_a_step(tiny_model, bfloat16):
    optimizer = make_optimizer(tiny_model, SETTINGS)
    parts = list(packed_loader(EXAMPLES, [[0, 1], [2, 3], [4, 5, 6]]))
    for _ in range(2):
        casts = count_casts(tiny_model, lambda: train_step(tiny_model, optimizer, parts, SETTINGS))
        assert len(casts) == 15 and set(casts.values()) == {1}


def test_lora_casts_frozen_layers_once_a_run(tiny_model, bfloat16):
    add_lora(tiny_model, rank=2)
    optimizer = make_optimizer(tiny_model, SETTINGS)
    parts = list(packed_loader(EXAMPLES, [[0, 1], [2, 3]]))

    def step():
        train_step(tiny_model, optimizer, parts, SETTINGS)

    first, second = count_casts(tiny_model, step), count_casts(tiny_model, step)
    assert first.pop("lm_head") == second.pop("lm_head") == 2  # once a part
    assert set(first.values()) == {1} and set(second.values()) == {0}


def test_lora_notices_that_a_frozen_layer_was_changed(tiny_model, bfloat16):
    add_lora(tiny_model, rank=2)
    before = mean_loss(tiny_model, EXAMPLES)
    other = CausalLM(tiny_model.config)
    add_lora(other, rank=2)
    tiny_model.load_state_dict(other.state_dict())
    assert mean_loss(tiny_model, EXAMPLES) == mean_loss(other, EXAMPLES) != before


def test_lora_can_be_trained_in_bfloat16_after_inference_mode(tiny_model, bfloat16):
    add_lora(tiny_model, rank=2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        tiny_model(torch.tensor([[11, 12, 13]]))
    optimizer = make_optimizer(tiny_model, SETTINGS)
    loss, _, _ = train_step(tiny_model, optimizer, list(packed_loader(EXAMPLES, [[0]])), SETTINGS)
    assert math.isfinite(loss)


def test_generation_and_evaluation_cast_each_weight_once(tiny_model, bfloat16):
    prompts = [[11, 12, 13], [11, 12, 14, 15], [11, 16]]
    casts = count_casts(tiny_model, lambda: generate(tiny_model, prompts, 5, -1, batch_size=2))
    assert set(casts.values()) == {1}
    casts = count_casts(tiny_model, lambda: mean_loss(tiny_model, EXAMPLES, batch_size=2))
    assert set(casts.values()) == {1}


def test_parts_make_the_same_step_as_the_whole_batch_in_bfloat16(tiny_model, bfloat16):
    steps = []
    for batches in ([[0, 1, 2, 3, 4]], [[0, 1], [2, 3, 4]]):
        model = copy.deepcopy(tiny_model)
        parts = list(packed_loader(EXAMPLES, batches))
        steps.append(train_step(model, make_optimizer(model, SETTINGS), parts, SETTINGS)[:2])
    assert steps[0] == pytest.approx(steps[1], rel=0.02)


# float16: the loss is scaled


@pytest.fixture
def float16(monkeypatch):
    monkeypatch.setattr(training, "pick_precision", lambda device: torch.float16)


def test_a_run_in_float16_takes_every_step_and_stays_close_to_float32(tiny_model, monkeypatch):
    losses = {}
    for precision in (torch.float32, torch.float16):
        monkeypatch.setattr(training, "pick_precision", lambda device, kind=precision: kind)
        history = train(copy.deepcopy(tiny_model), EXAMPLES, [], SETTINGS)
        assert all(math.isfinite(row["grad_norm"]) for row in history.steps)
        losses[precision] = [row["loss"] for row in history.steps]
    assert losses[torch.float16] == pytest.approx(losses[torch.float32], rel=0.01)
    assert losses[torch.float16] != losses[torch.float32]


@pytest.mark.parametrize("scale", [1024.0, 2.0**18])
def test_a_run_in_float16_resumes_with_its_scale(tiny_model, tmp_path, monkeypatch, float16, scale):
    monkeypatch.setattr(training, "_LOSS_SCALE", scale)
    whole, resumed = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    expected = train(whole, EXAMPLES, [], SETTINGS, tmp_path / "whole")
    train(resumed, EXAMPLES, [], SETTINGS, tmp_path / "stopped", stop_after=3)
    history = train(resumed, EXAMPLES, [], SETTINGS, tmp_path / "stopped", resume=True)
    found, wanted = without_seconds(history.steps), without_seconds(expected.steps)
    assert repr(found) == repr(wanted)  # a gradient that overflows may have a nan as its norm
    assert_same_weights(resumed, weights_of(whole))


def test_a_step_that_overflows_in_float16_is_left_out_and_the_run_goes_on(
    tiny_model, tmp_path, monkeypatch, float16
):
    monkeypatch.setattr(training, "_LOSS_SCALE", 2.0**18)
    before = weights_of(tiny_model)
    first = train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path, stop_after=1).steps[0]
    assert math.isfinite(first["loss"]) and not math.isfinite(first["grad_norm"])
    assert_same_weights(tiny_model, before)
    assert read_state(latest_checkpoint(tmp_path))["scaler"]["scale"] == 2.0**17
    history = train(tiny_model, EXAMPLES, [], SETTINGS, tmp_path, resume=True)
    assert math.isfinite(history.steps[-1]["grad_norm"])
    assert any(not torch.equal(p, before[name]) for name, p in weights_of(tiny_model).items())

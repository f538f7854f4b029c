import pytest
import torch

from supplementary.batching import (
    balanced_batches,
    collate_packed,
    collate_padded,
    make_loader,
    shared_prefix_length,
)
from supplementary.data import Example
from supplementary.model import CausalLM
from supplementary.training import next_token_loss

END = 96  # end-of-text and padding are the same id
TOY = [  # [0, 1, 2, 3, 4], [5, 6] and [7, 8, 9] with an end-of-text each
    Example([0, 1, 2, 3, 4, END], prompt_length=2),
    Example([5, 6, END], prompt_length=1),
    Example([7, 8, 9, END], prompt_length=2),
]
SHARED = [  # all prompts begin with 11, 12, 13
    Example([11, 12, 13, 20, 21, 30, 31, END], prompt_length=5),
    Example([11, 12, 13, 22, 25, 32, END], prompt_length=5),
    Example([11, 12, 13, 20, 23, 24, 33, 34, 35, 36, END], prompt_length=6),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models lose more time than they win when threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loss_and_gradients(model: CausalLM, batch: dict) -> tuple[float, int, dict]:
    model.zero_grad()
    loss, count = next_token_loss(model, batch)
    (loss / count).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return loss.item(), count, gradients


def assert_same_loss_and_gradients(model: CausalLM, first: dict, second: dict) -> None:
    loss, count, gradients = loss_and_gradients(model, first)
    other_loss, other_count, other_gradients = loss_and_gradients(model, second)
    assert count == other_count > 0
    assert other_loss == pytest.approx(loss, rel=1e-4)
    for name, gradient in gradients.items():
        largest = gradient.abs().max().item()
        difference = (gradient - other_gradients[name]).abs().max().item()
        assert largest > 0, name
        assert difference <= 1e-4 * largest, name


# Padded batches


def test_padded_toy_batch_is_padded_and_masked_as_drawn():
    batch = collate_padded(TOY, pad_token_id=END)
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [
        [0, 1, 2, 3, 4, END],
        [5, 6, END, END, END, END],
        [7, 8, 9, END, END, END],
    ]
    assert batch["labels"].tolist() == [
        [-100, -100, 2, 3, 4, END],
        [-100, 6, END, -100, -100, -100],
        [-100, -100, 9, END, -100, -100],
    ]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_first_end_of_text_is_supervised_and_later_ones_are_not():
    labels = collate_padded(TOY, pad_token_id=END)["labels"]
    assert (labels == END).sum(dim=1).tolist() == [1, 1, 1]
    assert (labels == END).int().argmax(dim=1).tolist() == [5, 2, 3]


def test_unmasked_prompts_are_labels_too():
    labels = collate_padded(TOY, pad_token_id=END, mask_prompt=False)["labels"]
    assert labels.tolist() == [
        [0, 1, 2, 3, 4, END],
        [5, 6, END, -100, -100, -100],
        [7, 8, 9, END, -100, -100],
    ]


def test_longest_example_is_not_padded_and_one_example_neither():
    batch = collate_padded([TOY[1]], pad_token_id=50)
    assert batch["input_ids"].tolist() == [[5, 6, END]]
    assert batch["labels"].tolist() == [[-100, 6, END]]
    assert 50 not in collate_padded(TOY, pad_token_id=50)["input_ids"][0]


def test_examples_of_one_length_get_no_padding():
    batch = collate_padded([TOY[2], TOY[2]], pad_token_id=50)
    assert batch["input_ids"].tolist() == [[7, 8, 9, END], [7, 8, 9, END]]


def test_empty_batches_are_refused():
    for collate in (lambda: collate_padded([], END), lambda: collate_packed([])):
        with pytest.raises(ValueError, match="no examples to batch; give at least one"):
            collate()


# Packed batches


def test_packed_toy_batch_is_one_row_in_which_positions_restart():
    batch = collate_packed(TOY)
    assert batch.keys() == {"input_ids", "labels", "position_ids", "rows"}
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 4, END, 5, 6, END, 7, 8, 9, END]]
    hidden = -100
    labels = [hidden, hidden, 2, 3, 4, END, hidden, 6, END, hidden, hidden, 9, END]
    assert batch["labels"].tolist() == [labels]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_rows_tell_where_the_tokens_of_each_example_are():
    assert collate_packed(TOY)["rows"].tolist() == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, -1, -1, -1],
        [9, 10, 11, 12, -1, -1],
    ]


def test_shared_prefix_is_stored_once_seen_by_all_and_positions_go_on_from_it():
    examples = [Example([1, 2, 3, 4], 3), Example([1, 2, 5, 6, 7], 3)]
    batch = collate_packed(examples, prefix_length=2)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4, -100, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert batch["rows"].tolist() == [[0, 1, 2, 3, -1], [0, 1, 4, 5, 6]]


@pytest.mark.parametrize("prefix_length", [0, 1, 3])
def test_rows_of_a_packed_batch_spell_out_the_examples(prefix_length):
    batch = collate_packed(SHARED, prefix_length)
    for example, row in zip(SHARED, batch["rows"], strict=True):
        places = row[: len(example.input_ids)]
        assert batch["input_ids"][0, places].tolist() == example.input_ids
        assert batch["position_ids"][0, places].tolist() == list(range(len(places)))
        assert (row[len(places) :] == -1).all()


def test_packing_leaves_the_examples_alone():
    before = [list(example.input_ids) for example in SHARED]
    collate_packed(SHARED, 3)
    collate_packed(SHARED, 0)
    assert [example.input_ids for example in SHARED] == before


def test_first_token_of_an_unmasked_example_is_not_predicted_from_the_example_before():
    labels = collate_packed(TOY, mask_prompt=False)["labels"]
    expected = [-100, 1, 2, 3, 4, END, -100, 6, END, -100, 8, 9, END]
    assert labels.tolist() == [expected]


def test_one_packed_example_is_that_example():
    for prefix_length in (0, 1, 3):
        batch = collate_packed([SHARED[0]], prefix_length)
        assert batch["input_ids"].tolist() == [SHARED[0].input_ids]
        assert batch["labels"].tolist() == [SHARED[0].labels()]
        assert batch["position_ids"].tolist() == [list(range(8))]
        assert batch["rows"].tolist() == [list(range(8))]


def test_shared_prefix_cannot_carry_labels():
    with pytest.raises(ValueError, match="a shared prefix cannot carry labels; pack with prefix"):
        collate_packed(SHARED, prefix_length=3, mask_prompt=False)


# The prefix that all prompts share


def test_shared_prefix_ends_where_sequences_differ():
    assert shared_prefix_length([[1, 2, 3, 4], [1, 2, 5, 6, 7], [1, 2, 3, 8]]) == 2
    assert shared_prefix_length([[1, 2, 3, 4], [5, 2, 3, 4]]) == 0


def test_shared_prefix_never_swallows_a_whole_sequence():
    same = [1, 2, 3]
    assert shared_prefix_length([same, same]) == 2
    assert shared_prefix_length([same]) == 2
    # The shortest one, wherever it stands, is the beginning of the others.
    assert shared_prefix_length([[1, 2], same, same]) == 1
    assert shared_prefix_length([same, same, [1, 2]]) == 1
    assert shared_prefix_length([same, [1]]) == 0
    assert shared_prefix_length([[], []]) == 0


# Packed = padded


@pytest.mark.parametrize("prefix_length", [0, 1, 3])
def test_packed_equals_padded_in_loss_and_gradients(tiny_model, prefix_length):
    padded, packed = collate_padded(SHARED, END), collate_packed(SHARED, prefix_length)
    assert packed["input_ids"].shape == (1, 26 - 2 * prefix_length)
    assert_same_loss_and_gradients(tiny_model, padded, packed)


def test_packed_equals_padded_where_prompts_are_equal(tiny_model):
    examples = [Example([11, 12, 13, 30 + i, END], 3) for i in range(4)]
    packed = collate_packed(examples, prefix_length=2)
    assert packed["input_ids"].shape == (1, 2 + 4 * 3)
    assert_same_loss_and_gradients(tiny_model, collate_padded(examples, END), packed)


def test_packed_equals_padded_where_prompts_are_not_masked(tiny_model):
    padded = collate_padded(SHARED, END, mask_prompt=False)
    assert_same_loss_and_gradients(tiny_model, padded, collate_packed(SHARED, mask_prompt=False))


def test_packed_equals_padded_for_one_example_and_for_nothing_shared(tiny_model):
    assert_same_loss_and_gradients(
        tiny_model, collate_padded(SHARED[:1], END), collate_packed(SHARED[:1], 4)
    )
    assert_same_loss_and_gradients(tiny_model, collate_padded(TOY, END), collate_packed(TOY))


def test_padding_id_does_not_change_the_loss(tiny_model):
    loss = [next_token_loss(tiny_model, collate_padded(SHARED, pad))[0].item() for pad in (END, 3)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-6)


# The order of the examples


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (20, 8, [7, 7, 6]),
        (16, 8, [8, 8]),
        (935, 8, [8] * 116 + [7]),
        (3, 8, [3]),
        (9, 8, [5, 4]),
        (1, 1, [1]),
        (5, 1, [1] * 5),
        (0, 8, []),
    ],
)
def test_balanced_batches_hold_every_index_once(count, batch_size, sizes):
    batches = balanced_batches(list(range(count)), batch_size, seed=1)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    assert sorted(map(len, batches), reverse=True) == sizes


def test_balanced_batches_are_the_same_for_the_same_seed_and_epoch_only():
    lengths = [20 + i % 7 for i in range(50)]
    order = balanced_batches(lengths, 8, seed=3, epoch=1)
    assert balanced_batches(lengths, 8, seed=3, epoch=1) == order
    others = [balanced_batches(lengths, 8, *numbers) for numbers in ((3, 0), (3, 2), (2, 1))]
    assert order not in others
    assert len({str(other) for other in others}) == 3


def test_first_batch_of_seed_0_never_changes():
    lengths = [40 + 7 * i % 61 for i in range(935)]
    assert balanced_batches(lengths, 8, seed=0)[0] == [123, 847, 177, 771, 118, 877, 870, 34]


def test_token_counts_of_balanced_batches_are_alike():
    generator = torch.Generator().manual_seed(0)
    lengths = (20 + 100 * torch.rand(800, generator=generator) ** 3).int().tolist()
    random = [lengths[i : i + 8] for i in range(0, 800, 8)]
    balanced = [[lengths[i] for i in batch] for batch in balanced_batches(lengths, 8, seed=0)]
    spread = [torch.tensor([sum(b) for b in order]).float().std() for order in (random, balanced)]
    assert spread[1] < 0.3 * spread[0]


def test_examples_of_equal_length_meet_others_in_every_epoch():
    batches = [set(map(frozenset, balanced_batches([30] * 80, 8, 0, epoch))) for epoch in (0, 1)]
    assert not batches[0] & batches[1]


def test_batching_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    balanced_batches([1, 2, 3], 2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_gives_the_batches_in_the_order_of_their_indices():
    loader = make_loader(TOY, [[2, 0], [1]], lambda examples: examples)
    assert list(loader) == [[TOY[2], TOY[0]], [TOY[1]]]
    assert list(loader) == [[TOY[2], TOY[0]], [TOY[1]]]
    assert len(loader) == 2

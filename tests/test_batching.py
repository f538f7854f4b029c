import pytest
import torch

from supplementary.batching import (
    collate_packed,
    collate_padded,
    grouped_batches,
    make_loader,
    shared_prefix_length,
    shuffled_batches,
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
    assert batch.keys() == {"input_ids", "labels", "position_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 4, END, 5, 6, END, 7, 8, 9, END]]
    hidden = -100
    labels = [hidden, hidden, 2, 3, 4, END, hidden, 6, END, hidden, hidden, 9, END]
    assert batch["labels"].tolist() == [labels]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3]]
    dtypes = [torch.int64, torch.int64, torch.int64, torch.bool]
    assert [tensor.dtype for tensor in batch.values()] == dtypes


def test_packed_mask_shows_each_token_its_own_example_up_to_itself():
    mask = collate_packed(TOY[1:])["attention_mask"]
    assert mask.int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [0, 0, 0, 1, 0, 0, 0],
            [0, 0, 0, 1, 1, 0, 0],
            [0, 0, 0, 1, 1, 1, 0],
            [0, 0, 0, 1, 1, 1, 1],
        ]
    ]


def test_shared_prefix_is_stored_once_seen_by_all_and_positions_go_on_from_it():
    examples = [Example([1, 2, 3, 4], 3), Example([1, 2, 5, 6, 7], 3)]
    batch = collate_packed(examples, prefix_length=2)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4, -100, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert batch["attention_mask"].int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 0, 0, 1, 0, 0],
            [1, 1, 0, 0, 1, 1, 0],
            [1, 1, 0, 0, 1, 1, 1],
        ]
    ]


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
        assert torch.equal(batch["attention_mask"], torch.ones(1, 8, 8, dtype=torch.bool).tril())


def test_shared_prefix_cannot_carry_labels():
    with pytest.raises(ValueError, match="a shared prefix cannot carry labels; pack with prefix"):
        collate_packed(SHARED, prefix_length=3, mask_prompt=False)


# The prefix that all prompts share


def test_shared_prefix_ends_where_prompts_differ():
    assert shared_prefix_length(SHARED) == 3
    assert shared_prefix_length(SHARED[::-1]) == 3
    assert shared_prefix_length(TOY) == 0


def test_shared_prefix_never_swallows_a_whole_prompt():
    same = Example([1, 2, 3, 50, END], 3)
    assert shared_prefix_length([same, same]) == 2
    assert shared_prefix_length([same]) == 2
    # The shortest prompt, wherever it stands, is the beginning of the others.
    assert shared_prefix_length([Example([1, 2, 50, END], 2), same, same]) == 1
    assert shared_prefix_length([same, same, Example([1, 2, 50, END], 2)]) == 1
    assert shared_prefix_length([same, Example([1, 50, END], 1)]) == 0


def test_shared_prefix_holds_no_token_of_a_response():
    same = Example([1, 2, 3, 50, 51, END], 2)
    assert shared_prefix_length([same, same, same]) == 1
    without_prompt = Example([50, 51, END], 0)
    assert shared_prefix_length([without_prompt, without_prompt]) == 0


# Packed = padded


@pytest.mark.parametrize("prefix_length", [0, 1, 3])
def test_packed_equals_padded_in_loss_and_gradients(tiny_model, prefix_length):
    padded, packed = collate_padded(SHARED, END), collate_packed(SHARED, prefix_length)
    assert packed["input_ids"].shape == (1, 26 - 2 * prefix_length)
    assert_same_loss_and_gradients(tiny_model, padded, packed)


def test_packed_equals_padded_where_prompts_are_equal(tiny_model):
    examples = [Example([11, 12, 13, 30 + i, END], 3) for i in range(4)]
    packed = collate_packed(examples, shared_prefix_length(examples))
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


@pytest.mark.parametrize(("count", "batch_size"), [(20, 8), (16, 8), (3, 8), (1, 1), (5, 1)])
def test_shuffled_batches_hold_every_index_once(count, batch_size):
    batches = shuffled_batches(count, batch_size, seed=1)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert sizes == [batch_size] * (count // batch_size) + [count % batch_size] * (
        count % batch_size > 0
    )


def test_shuffled_batches_are_the_same_for_the_same_seed_and_epoch_only():
    order = shuffled_batches(50, 8, seed=3, epoch=1)
    assert shuffled_batches(50, 8, seed=3, epoch=1) == order
    others = [shuffled_batches(50, 8, *numbers) for numbers in ((3, 0), (3, 2), (2, 1), (4, 1))]
    assert order not in others
    assert len({str(other) for other in others}) == 4


def test_first_batch_of_seed_0_never_changes():
    assert shuffled_batches(935, 8, seed=0)[0] == [109, 790, 901, 507, 509, 524, 385, 366]


def test_shuffling_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    shuffled_batches(10, 2, seed=0)
    grouped_batches([1, 2, 3], 2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_examples_give_no_batches():
    assert shuffled_batches(0, 8, seed=0) == []
    assert grouped_batches([], 8, seed=0) == []


def test_grouped_batches_hold_every_index_once_with_neighbours_in_length():
    lengths = [9, 2, 7, 4, 1, 8, 3, 6, 5, 10, 11]
    batches = grouped_batches(lengths, batch_size=4, seed=0)
    assert sorted(index for batch in batches for index in batch) == list(range(11))
    groups = sorted(sorted(lengths[i] for i in batch) for batch in batches)
    assert groups == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]


def test_grouped_batches_come_in_random_order_and_equal_lengths_mix():
    lengths = [1] * 20 + [2] * 20
    orders = [grouped_batches(lengths, batch_size=4, seed=seed) for seed in range(5)]
    assert grouped_batches(lengths, batch_size=4, seed=0) == orders[0]
    assert len({str(sorted(sorted(batch) for batch in order)) for order in orders}) == 5
    assert len({str([lengths[batch[0]] for batch in order]) for order in orders}) == 5


def test_loader_gives_the_batches_in_the_order_of_their_indices():
    loader = make_loader(TOY, [[2, 0], [1]], lambda examples: examples)
    assert list(loader) == [[TOY[2], TOY[0]], [TOY[1]]]
    assert list(loader) == [[TOY[2], TOY[0]], [TOY[1]]]
    assert len(loader) == 2

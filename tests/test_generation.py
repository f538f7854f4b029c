from dataclasses import replace

import pytest
import torch

from supplementary import generation
from supplementary.generation import generate, generate_steps, respond, sample
from supplementary.model import CausalLM

NEVER = -1  # an end-of-text id that no model gives
UNLIKE = [[3], [7, 8, 9, 10], [20, 21], [30, 31, 32, 33, 34, 35, 36], [40, 41, 42]]
ALIKE = [[5, 6, 7, 8], [5, 6, 7, 9, 10, 11], [5, 6, 7], [5, 6, 7, 8, 20, 21, 22, 23]]


@pytest.fixture(autouse=True)
def float32_on_one_thread(monkeypatch):
    """The same arithmetic on every machine."""
    monkeypatch.setattr(generation, "pick_precision", lambda device: torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def uncached():
    """Return a function that generates greedily the plain way, which works as a reference."""

    @torch.inference_mode()
    def generate_uncached(model: CausalLM, prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        for _ in range(count):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        return ids[len(prompt) :]

    return generate_uncached


def with_context(model: CausalLM, tokens: int) -> CausalLM:
    model.config = replace(model.config, max_position_embeddings=tokens)
    return model


def record_inputs(model: CausalLM) -> list[tuple[int, int]]:
    """Return a list that gets the shape of the input of every later call of the model."""
    shapes = []

    def record(module, inputs, named):
        shapes.append(tuple((inputs[0] if inputs else named["input_ids"]).shape))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


# Greedy generation


@pytest.mark.parametrize("prompts", [UNLIKE, ALIKE, [[3], [4]], [[9, 9], [9, 9]], [[1, 2, 3]]])
def test_batched_and_cached_equals_one_by_one_and_uncached(tiny_model, uncached, prompts):
    expected = [uncached(tiny_model, prompt, 12) for prompt in prompts]
    assert len({str(tokens) for tokens in expected}) == len({str(prompt) for prompt in prompts})
    assert generate(tiny_model, prompts, 12, NEVER) == expected
    alone = [generate(tiny_model, [prompt], 12, NEVER)[0] for prompt in prompts]
    assert alone == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 28])
def test_batch_size_does_not_matter_and_results_keep_the_order_of_the_prompts(
    tiny_model, uncached, batch_size
):
    prompts = UNLIKE[::-1] + ALIKE
    expected = [uncached(tiny_model, prompt, 6) for prompt in prompts]
    assert generate(tiny_model, prompts, 6, NEVER, batch_size=batch_size) == expected


@pytest.mark.parametrize("prompts", [UNLIKE, ALIKE, [[3], [4]], [[1, 2, 3]]])
def test_logits_after_batched_prompts_equal_those_of_each_prompt_alone(tiny_model, prompts):
    with torch.inference_mode():
        logits, cache, real = generation._read_prompts(tiny_model, prompts, capacity=20)
        alone = torch.cat([tiny_model(torch.tensor([prompt]))[:, -1] for prompt in prompts])
    torch.testing.assert_close(logits, alone)
    assert cache.length == max(map(len, prompts))
    assert real.sum(dim=1).tolist() == [len(prompt) for prompt in prompts]


def test_what_all_prompts_begin_with_is_computed_once(tiny_model):
    shapes = record_inputs(tiny_model)
    generate(tiny_model, ALIKE, 2, NEVER)
    assert shapes == [(1, 2 + sum(len(prompt) - 2 for prompt in ALIKE)), (4, 1)]


def test_each_new_token_is_computed_from_that_token_alone(tiny_model):
    shapes = record_inputs(tiny_model)
    generate(tiny_model, UNLIKE, 4, NEVER)
    assert shapes == [(1, sum(map(len, UNLIKE))), (5, 1), (5, 1), (5, 1)]


# The end of a row


@pytest.mark.parametrize("prompts", [UNLIKE, ALIKE])
def test_rows_that_end_early_leave_and_the_others_go_on_unaffected(tiny_model, uncached, prompts):
    plain = [uncached(tiny_model, prompt, 12) for prompt in prompts]
    end = plain[1][3]
    expected = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in plain]
    lengths = [len(tokens) for tokens in expected]
    assert min(lengths) <= 3 < max(lengths) == 12
    assert generate(tiny_model, prompts, 12, end) == expected

    shapes = record_inputs(tiny_model)
    steps = list(generate_steps(tiny_model, prompts, 12, end))
    for number, step in enumerate(steps):
        live = [row for row, length in enumerate(lengths) if length > number]
        assert step == [(row, expected[row][number]) for row in live]
    later = [shape for shape in shapes if shape[1] == 1][-11:]
    assert [rows for rows, _ in later] == [len(step) for step in steps[:-1]]


def test_rows_that_end_at_once_give_nothing(tiny_model, uncached):
    (end,) = uncached(tiny_model, UNLIKE[1], 1)
    assert generate(tiny_model, [UNLIKE[1]], 12, end) == [[]]
    assert list(generate_steps(tiny_model, [UNLIKE[1]], 12, end)) == []
    later = uncached(tiny_model, UNLIKE[0], 2)
    assert end not in later
    assert generate(tiny_model, [UNLIKE[1], UNLIKE[0]], 2, end) == [[], later]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_row_gets_more_than_max_new_tokens(tiny_model, count):
    assert [len(tokens) for tokens in generate(tiny_model, UNLIKE, count, NEVER)] == [count] * 5


def test_generation_stops_where_the_context_is_full(tiny_model, uncached):
    model = with_context(tiny_model, 10)
    for length in (1, 7, 9):
        prompt = list(range(20, 20 + length))
        expected = uncached(model, prompt, 10 - length)
        assert generate(model, [prompt], 50, NEVER) == [expected]


def test_long_prompt_takes_no_room_from_the_short_ones_beside_it(tiny_model, uncached):
    model = with_context(tiny_model, 10)
    prompts = [[3, 4], [20, 21, 22, 23, 24, 25, 26, 27], [5, 6, 7]]
    expected = [uncached(model, prompt, min(6, 10 - len(prompt))) for prompt in prompts]
    assert [generate(model, [prompt], 6, NEVER)[0] for prompt in prompts] == expected
    assert generate(model, prompts, 6, NEVER) == expected


def test_prompt_that_fills_the_context_is_refused(tiny_model):
    model = with_context(tiny_model, 10)
    for length in (10, 11):
        with pytest.raises(ValueError, match=f"a prompt of {length} tokens leaves no room in the"):
            generate(model, [[1], [2] * length], 5, NEVER)


def test_empty_prompt_is_refused_before_anything_is_computed(tiny_model):
    shapes = record_inputs(tiny_model)
    with pytest.raises(ValueError, match="a prompt is empty; give at least one token"):
        generate(tiny_model, [[1], [], [2]], 5, NEVER, batch_size=1)
    assert shapes == []


def test_no_prompts_give_no_responses(tiny_model):
    assert generate(tiny_model, [], 5, NEVER) == []


# Sampling


def test_temperature_0_takes_the_most_likely_token():
    logits = torch.tensor([[0.0, 3.0, 2.9], [5.0, -1.0, 4.9]])
    assert sample(logits).tolist() == [1, 0]
    assert sample(logits, temperature=0, top_p=0.5).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.1, {1}),
        (0.49, {1}),
        (0.51, {1, 3}),
        (0.74, {1, 3}),
        (0.76, {1, 2, 3}),
        (0.93, {1, 2, 3}),
        (0.95, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_fewest_most_likely_tokens_that_reach_it(top_p, kept):
    logits = torch.tensor([1 / 16, 1 / 2, 3 / 16, 1 / 4]).log().expand(2000, 4)
    drawn = sample(logits, 1.0, top_p, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == kept


@pytest.mark.parametrize(("top_p", "count"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1, 4)])
def test_top_p_is_reached_by_a_sum_that_equals_it(top_p, count):
    logits = torch.zeros(2000, 4)  # four times exactly 0.25
    drawn = sample(logits, 1.0, top_p, torch.Generator().manual_seed(0))
    assert len(drawn.unique()) == count


def test_top_p_is_decided_for_each_row_alone():
    likely, unlikely = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.45, 0.45]).log()
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([likely, unlikely]).repeat(500, 1)
    drawn = sample(rows, 1.0, 0.6, generator).view(500, 2)
    assert set(drawn[:, 0].tolist()) == {0}
    assert set(drawn[:, 1].tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.25, 0.25]),
        (0.5, 1.0, [2 / 3, 1 / 6, 1 / 6]),  # squares
        (1.0, 0.6, [2 / 3, 1 / 3, 0.0]),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature, top_p, expected):
    logits = torch.tensor([0.5, 0.25 + 1e-6, 0.25 - 1e-6]).log().expand(20_000, 3)
    drawn = sample(logits, temperature, top_p, torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn, minlength=3) / 20_000
    assert shares.tolist() == pytest.approx(expected, abs=0.02)


def test_seeded_generator_reproduces_sampled_responses(tiny_model):
    def run(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(tiny_model, UNLIKE, 8, NEVER, 1.0, 0.95, generator)

    state = torch.get_rng_state()
    assert run(1) == run(1)
    assert run(1) != run(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_tiny_top_p_samples_what_greedy_generation_takes(tiny_model):
    greedy = generate(tiny_model, UNLIKE, 8, NEVER)
    assert generate(tiny_model, UNLIKE, 8, NEVER, temperature=1.0, top_p=1e-6) == greedy


# Responses to entries


class LetterTokenizer:
    """Each of 97 letters is a token; the first is a space."""

    letters = " " + "".join(chr(0x4E00 + i) for i in range(96))
    eos_token_id = NEVER

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 97 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.letters[i] for i in ids)

    def special_id(self, token: str) -> None:
        return None


def test_responses_are_decoded_stripped_and_in_the_order_of_the_entries(tiny_model, uncached):
    tokenizer = LetterTokenizer()
    entries = [{"instruction": text, "input": "", "output": "-"} for text in ("Say hi.", "B", "?!")]
    prompts = [f"<|user|>\n{entry['instruction']}<|end|>\n<|assistant|>\n" for entry in entries]
    tokens = [uncached(tiny_model, tokenizer.encode(prompt), 5) for prompt in prompts]
    tokenizer.letters = "".join(
        " " if i in {row[0] for row in tokens} else letter
        for i, letter in enumerate(tokenizer.letters)
    )
    expected = [tokenizer.decode(row).strip() for row in tokens]
    assert all(tokenizer.decode(row)[0] == " " for row in tokens)
    assert len(set(expected)) == 3
    assert respond(tiny_model, tokenizer, entries, "phi3", max_new_tokens=5) == expected

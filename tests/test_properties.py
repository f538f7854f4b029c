"""Whatever bytes and texts come in: the loader, the formats, the tokenizer, the batches hold."""

import json
from itertools import chain

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supplementary.batching import collate_packed, collate_padded, shared_prefix_length
from supplementary.data import (
    IGNORE_INDEX,
    KEYS,
    Example,
    encode_example,
    encode_prompt,
    find_problem,
    load_entries,
)
from supplementary.prompts import PROMPT_STYLES, Control, prompt_pieces

settings.register_profile(
    "workshop",
    deadline=None,  # a busy machine is no bug
    derandomize=True,  # the same trials every time: a failure can be made again
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("workshop")

MARKS = ["### Response:\n", "### Instruction:\n", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS += ["<|user|>", "<|end|>", "<|assistant|>", "\n\n", " 12", "\x00", "é", "\N{PILE OF POO}"]
TEXT = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(MARKS)), max_size=6).map("".join)
ENTRY = st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": TEXT})
STYLE = st.sampled_from(sorted(PROMPT_STYLES))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*KEYS, "source"]), inner, max_size=4)
    ),
    max_leaves=12,
)
EXAMPLE = st.lists(st.integers(0, 30), min_size=2, max_size=9).flatmap(
    lambda ids: st.builds(Example, st.just(ids), st.integers(0, len(ids) - 1))
)


def load_or_explain(path) -> list | None:
    """Load entries; what is wrong with them has to be said in a ValueError that names the file."""
    try:
        return load_entries(path)
    except ValueError as error:
        assert str(path) in str(error)
        return None


@given(content=st.binary(max_size=60))
def test_any_bytes_are_entries_or_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    assert load_or_explain(path) is None  # so few bytes hold no entry


@given(content=JSON)
def test_any_json_is_whole_entries_or_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    entries = load_or_explain(path)
    assert entries is None or all(isinstance(e[key], str) for e in entries for key in KEYS)


@given(entry=ENTRY, key=st.sampled_from(KEYS), cut=st.sampled_from("\ud800\udbff\udfff"))
def test_entries_come_back_as_they_were_and_half_a_character_is_named(tmp_path, entry, key, cut):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([entry]), encoding="utf-8")
    expected = None if find_problem(entry) else [entry]
    assert load_or_explain(path) == expected
    if expected:
        broken = find_problem(entry | {key: entry[key] + cut})
        assert broken == f"has half a character (a lone surrogate) in {key!r}; type it anew"


def test_nesting_without_end_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("[" * 200_000, encoding="utf-8")
    assert load_or_explain(path) is None


@given(text=TEXT)
def test_any_text_survives_the_tokenizer_and_never_becomes_a_special_token(pretrained, text):
    _, tokenizer = pretrained
    size, single = tokenizer.vocab_size, tokenizer.encoding.encode_single_token
    unknown = bytes(byte for byte in range(256) if single(bytes([byte])) >= size)
    ids = tokenizer.encode(text)
    kept = text.encode("utf-8").translate(None, unknown)  # the vocabulary lacks a few bytes
    assert tokenizer.decode(ids) == kept.decode("utf-8", "replace")
    assert not set(ids) & {tokenizer.special_id(mark) for mark in MARKS}


@given(entry=ENTRY, style=STYLE)
def test_only_the_formats_own_marks_become_special_tokens(pretrained, entry, style):
    _, tokenizer = pretrained
    special = {tokenizer.special_id(mark) for mark in MARKS} - {None}
    own = [tokenizer.special_id(p) for p in prompt_pieces(entry, style) if isinstance(p, Control)]
    example = encode_example(entry, tokenizer, style)
    prompt, response = (
        example.input_ids[: example.prompt_length],
        example.input_ids[example.prompt_length :],
    )
    assert prompt == encode_prompt(entry, tokenizer, style)
    assert [token for token in prompt if token in special] == [i for i in own if i is not None]
    assert response == [*tokenizer.encode(entry["output"]), tokenizer.eos_token_id]
    assert not special & set(response[:-1])
    assert example.labels() == [IGNORE_INDEX] * len(prompt) + response


@given(entry=ENTRY, style=STYLE, room=st.integers(-2, 20))
def test_a_cut_keeps_prompt_and_end_of_text_or_is_refused(pretrained, entry, style, room):
    _, tokenizer = pretrained
    whole = encode_example(entry, tokenizer, style)
    most = whole.prompt_length + room
    if room < 2:
        with pytest.raises(ValueError, match="leaves no room for a response"):
            encode_example(entry, tokenizer, style, most)
        return
    cut = encode_example(entry, tokenizer, style, most)
    assert len(cut.input_ids) == min(most, len(whole.input_ids))
    assert cut.prompt_length == whole.prompt_length
    assert cut.input_ids == [*whole.input_ids[: len(cut.input_ids) - 1], tokenizer.eos_token_id]


@given(examples=st.lists(EXAMPLE, min_size=1, max_size=6), pad=st.integers(0, 30))
def test_padded_rows_give_the_examples_back(examples, pad):
    batch = collate_padded(examples, pad)
    for ids, labels, example in zip(*batch.values(), examples, strict=True):
        length = len(example.input_ids)
        assert ids.tolist()[:length] == example.input_ids and set(ids.tolist()[length:]) <= {pad}
        assert labels.tolist()[:length] == example.labels()
        assert set(labels.tolist()[length:]) <= {IGNORE_INDEX}


@given(
    examples=st.lists(EXAMPLE, min_size=1, max_size=6),
    shared=st.lists(st.integers(0, 30), max_size=5),
)
def test_packed_rows_give_the_examples_back_each_label_but_a_first_ones_once(examples, shared):
    examples = [Example(shared + e.input_ids, len(shared) + e.prompt_length) for e in examples]
    prefix = shared_prefix_length([e.input_ids[: e.prompt_length] or [0] for e in examples])
    batch = collate_packed(examples, prefix)
    ids, labels, places = (batch[name][0] for name in ("input_ids", "labels", "position_ids"))
    assert len(ids) == prefix + sum(len(e.input_ids) - prefix for e in examples)
    for row, example in zip(batch["rows"], examples, strict=True):
        row = row[row >= 0]
        assert ids[row].tolist() == example.input_ids
        assert places[row].tolist() == list(range(len(example.input_ids)))
    own = [e.labels()[max(1, prefix + 1) :] for e in examples]
    expected = [label for label in chain(*own) if label != IGNORE_INDEX]
    assert labels[labels != IGNORE_INDEX].tolist() == expected
    assert torch.equal(labels[labels != IGNORE_INDEX], ids[labels != IGNORE_INDEX])

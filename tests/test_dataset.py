import json
from collections import Counter
from pathlib import Path

import pytest

from supplementary.answer_key import check_response
from supplementary.data import find_near_duplicates, load_entries, split_entries

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="module")
def answer_key() -> list[dict]:
    return json.loads((DATA / "answer-key.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def near_duplicates(entries) -> list[tuple[int, int, float]]:
    return find_near_duplicates(entries, threshold=0.8)


def test_dataset_is_a_valid_file_of_entries(entries):
    assert load_entries(DATA / "instruction-data.json") == entries


def test_there_are_1100_entries_with_exactly_the_three_keys(entries):
    assert len(entries) == 1100
    assert {tuple(entry) for entry in entries} == {("instruction", "input", "output")}


def test_entries_50_and_999_are_the_ones_that_the_workshop_shows(entries):
    assert entries[50] == {
        "instruction": "Identify the correct spelling of the following word.",
        "input": "Ocassion",
        "output": "The correct spelling is 'Occasion.'",
    }
    assert entries[999] == {
        "instruction": "What is an antonym of 'complicated'?",
        "input": "",
        "output": "An antonym of 'complicated' is 'simple'.",
    }


def test_every_text_is_stripped(entries):
    loose = [i for i, entry in enumerate(entries) if any(t != t.strip() for t in entry.values())]
    assert loose == []


def test_30_to_45_percent_of_the_entries_have_an_input(entries):
    assert 0.30 <= sum(bool(entry["input"]) for entry in entries) / len(entries) <= 0.45


def test_no_two_entries_ask_the_same(entries):
    counts = Counter((entry["instruction"], entry["input"]) for entry in entries)
    assert [question for question, count in counts.items() if count > 1] == []


def test_no_two_entries_are_more_than_90_percent_alike(near_duplicates):
    assert [pair for pair in near_duplicates if pair[2] > 0.9] == []


def test_no_test_entry_is_more_than_80_percent_like_a_training_entry(entries, near_duplicates):
    parts = split_entries(entries)
    test = range(len(parts.train), len(parts.train) + len(parts.test))
    leaks = [
        (first, second, alike)
        for first, second, alike in near_duplicates
        if first < len(parts.train) and second in test and alike > 0.8
    ]
    assert leaks == []


def test_a_copied_question_would_be_noticed(entries):
    copied = {**entries[1000], "instruction": entries[1000]["instruction"].upper() + "!"}
    assert find_near_duplicates([*entries[1000:], copied], threshold=0.9) == [(0, 100, 1.0)]


def test_instructions_begin_in_at_least_400_ways(entries):
    assert len({tuple(entry["instruction"].lower().split()[:3]) for entry in entries}) >= 400


def test_answer_key_has_one_row_per_entry_with_kind_and_check(entries, answer_key):
    assert len(answer_key) == len(entries)
    assert {tuple(row) for row in answer_key} == {("kind", "check")}
    assert all(row["kind"].strip() and row["check"]["type"] for row in answer_key)


def test_at_least_30_kinds_of_10_to_60_entries_each(answer_key):
    counts = Counter(row["kind"] for row in answer_key)
    assert len(counts) >= 30
    assert {kind: count for kind, count in counts.items() if not 10 <= count <= 60} == {}


def test_every_kind_is_in_the_training_part(entries, answer_key):
    train = len(split_entries(entries).train)
    kinds = {row["kind"] for row in answer_key}
    assert kinds - {row["kind"] for row in answer_key[:train]} == set()


def test_every_reference_output_passes_its_own_check(entries, answer_key):
    rows = zip(entries, answer_key, strict=True)
    failed = [
        index
        for index, (entry, row) in enumerate(rows)
        if not check_response(row["check"], entry["output"])
    ]
    assert failed == []


def test_no_check_passes_an_empty_or_an_unrelated_response(answer_key):
    unrelated = "Zwieback xylophone."
    for response in ("", unrelated):
        passed = [
            index
            for index, row in enumerate(answer_key)
            if row["check"]["type"] not in ("python", "constraints", "judged")
            and check_response(row["check"], response)
        ]
        assert passed == []

import json
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from supplementary.answer_key import check_response
from supplementary.data import find_near_duplicates, load_entries, split_entries

DATA = Path(__file__).resolve().parent.parent / "data"


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


def test_responses_are_short(entries, pretrained):
    _, tokenizer = pretrained
    lengths = [len(tokenizer.encode(entry["output"])) for entry in entries]
    assert max(lengths) <= 120
    assert sum(length < 40 for length in lengths) > 0.9 * len(lengths)


@pytest.fixture(scope="module")
def tested_rows(entries, answer_key) -> list[dict]:
    """The rows of the answer key for the test part."""
    parts = split_entries(entries)
    return answer_key[len(parts.train) : len(parts.train) + len(parts.test)]


def test_every_kind_has_its_share_of_the_test_part(answer_key, tested_rows):
    everywhere = Counter(row["kind"] for row in answer_key)
    tested = Counter(row["kind"] for row in tested_rows)
    share = len(tested_rows) / len(answer_key)
    off = {kind: tested[kind] for kind in everywhere if abs(tested[kind] - share * 20) > 1}
    assert off == {}


def test_at_most_15_percent_of_the_test_part_need_judgement(tested_rows):
    judged = sum(row["check"]["type"] == "judged" for row in tested_rows)
    assert judged <= 0.15 * len(tested_rows)


def test_another_entrys_output_of_the_same_kind_seldom_passes(entries, answer_key):
    kinds = {}
    for position, row in enumerate(answer_key):
        kinds.setdefault(row["kind"], []).append(position)
    pairs = [(i, j) for positions in kinds.values() for i, j in permutations(positions, 2)]
    passed = [
        (i, j) for i, j in pairs if check_response(answer_key[i]["check"], entries[j]["output"])
    ]
    assert len(passed) < 0.02 * len(pairs)


def test_patterns_are_short_enough_to_be_read(answer_key):
    patterns = [row["check"]["regex"] for row in answer_key if row["check"]["type"] == "pattern"]
    assert max(map(len, patterns)) <= 80


def test_right_responses_pass_and_wrong_ones_fail(answer_key):
    trials = json.loads((Path(__file__).parent / "answer_trials.json").read_text(encoding="utf-8"))
    mistaken = [
        (position, response)
        for position, trial in trials.items()
        for verdict, responses in ((True, trial["right"]), (False, trial["wrong"]))
        for response in responses
        if check_response(answer_key[int(position)]["check"], response) is not verdict
    ]
    assert mistaken == []


# How a right answer is spoiled, for the types whose settings say what is right
SPOIL = {
    "equals": lambda check: check["answers"][0] + " or so",
    "contains": lambda check: " ".join(check.get("none", [])),
    "choice": lambda check: f"{check['wrong'][0]}, not {check['right'][0]}",
    "number": lambda check: str(check["value"] + check.get("tolerance", 0) + 1),
    "list": lambda check: ", ".join(reversed(check["items"])),
    "json": lambda check: json.dumps([check["value"]]),
    "python": lambda check: "def nothing():\n    return None",
}


def test_spoiled_answers_fail_in_every_type_that_tells_what_is_right(answer_key):
    checks = [row["check"] for row in answer_key]
    unspoiled = {check["type"] for check in checks} - set(SPOIL)
    assert unspoiled == {"pattern", "constraints"}  # their wrong responses are in the trials
    passed = [
        (position, SPOIL[check["type"]](check))
        for position, check in enumerate(checks)
        if check["type"] in SPOIL and check_response(check, SPOIL[check["type"]](check))
    ]
    assert passed == []


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    return json.loads((DATA / "multiple-choice.json").read_text(encoding="utf-8"))


def test_there_are_200_multiple_choice_questions_in_8_subjects(questions):
    assert {tuple(question) for question in questions} == {
        ("subject", "question", "options", "answer")
    }
    assert len(questions) >= 200
    assert len({question["subject"] for question in questions}) >= 8
    assert len({question["question"] for question in questions}) == len(questions)


def test_every_question_has_four_different_options_and_one_answer(questions):
    bad = [
        question["question"]
        for question in questions
        if len({option.casefold().strip() for option in question["options"]}) != 4
        or question["answer"] not in range(4)
    ]
    assert bad == []


def test_right_options_are_spread_evenly(questions):
    for subject in {question["subject"] for question in questions}:
        answers = Counter(q["answer"] for q in questions if q["subject"] == subject)
        assert max(answers.values()) - min(answers[i] for i in range(4)) <= 1


@pytest.mark.parametrize("extreme", [min, max])
def test_the_right_option_is_not_known_by_its_length(questions, extreme):
    hits = 0
    for question in questions:
        lengths = [len(option) for option in question["options"]]
        chosen = [i for i in range(4) if lengths[i] == extreme(lengths)]
        hits += (question["answer"] in chosen) / len(chosen)
    assert hits / len(questions) < 0.32  # chance gives 0.25


def test_no_question_is_asked_in_the_dataset_too(questions, entries):
    asked = [{"instruction": q["question"], "input": "", "output": ""} for q in questions]
    close = find_near_duplicates([*entries, *asked], threshold=0.8)
    assert [pair for pair in close if pair[1] >= len(entries)] == []

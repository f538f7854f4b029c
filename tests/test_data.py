import json
import re

import pytest

from supplementary.data import (
    IGNORE_INDEX,
    Example,
    encode_entries,
    encode_example,
    encode_prompt,
    find_near_duplicates,
    load_entries,
    split_entries,
)
from supplementary.tokenizer import Tokenizer

END = "<|endoftext|>"
CHAT_MARKS = ("<|im_start|>", "<|im_end|>")
SYMBOLS = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]  # the last two: space, line break


def make_tokenizer(*marks: str) -> Tokenizer:
    """One token for each printable ASCII character, one for ".<", then the special tokens."""
    special = [END, *marks]
    description = {
        "added_tokens": [{"content": mark, "id": 97 + i} for i, mark in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {symbol: i for i, symbol in enumerate([*SYMBOLS, ".<"])},
            "merges": [". <"],
        },
    }
    return Tokenizer(description, eos_token_id=97)


def ids_of(text: str) -> list[int]:
    return [{" ": 94, "\n": 95}.get(character, ord(character) - 33) for character in text]


def make_entry(instruction: str = "Say hi", input: str = "", output: str = "Hi") -> dict:
    return {"instruction": instruction, "input": input, "output": output}


# Reading


def test_valid_file_is_read_as_it_is(tmp_path):
    entries = [make_entry(), make_entry("Übersetze", "naïve 🙂", "naiv")]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    assert load_entries(path) == entries
    assert load_entries(str(path)) == entries


def test_missing_file_is_named(tmp_path):
    path = tmp_path / "none.json"
    with pytest.raises(FileNotFoundError, match=re.escape(f"no data file {path}; give the path")):
        load_entries(path)


@pytest.mark.parametrize("content", [b"", b"[{]", b'[{"instruction": "caf\xe9"}]'])
def test_file_that_is_not_utf8_json_is_named(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not valid JSON (")):
        load_entries(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"instruction": "a"}, "holds a dict, not a list; it has to be a JSON list of objects"),
        ("text", "holds a str, not a list"),
        (None, "holds a NoneType, not a list"),
        ([], "is an empty list; it needs at least one entry"),
    ],
)
def test_file_without_a_list_of_entries_is_refused(tmp_path, value, message):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")):
        load_entries(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "is of type str, not an object with the keys instruction, input, output"),
        (None, "is of type NoneType, not an object"),
        ({"input": "", "output": "a"}, "has no 'instruction' (keys: input, output); every entry"),
        ({"instruction": "a", "output": "b"}, "has no 'input' (keys: instruction, output)"),
        ({"instruction": "a", "input": ""}, "has no 'output' (keys: instruction, input)"),
        ({}, "has no 'instruction' (keys: )"),
        (make_entry(instruction=1), "has a value of type int as 'instruction'; write a string"),
        (make_entry(input=None), "has a value of type NoneType as 'input'; write a string"),
        (make_entry(output=["a"]), "has a value of type list as 'output'; write a string"),
        (make_entry(instruction=""), "has an empty 'instruction'; fill it in or remove the entry"),
        (make_entry(instruction=" \n"), "has an empty 'instruction'"),
        (make_entry(output=""), "has an empty 'output'"),
        (make_entry(output="\t \u00a0"), "has an empty 'output'"),
    ],
)
def test_first_faulty_entry_is_named_with_its_fault(tmp_path, entry, message):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([make_entry(), entry, 0]), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}: entry 1 {message}")):
        load_entries(path)


# Splitting


@pytest.mark.parametrize(("count", "sizes"), [(1100, (935, 110, 55)), (20, (17, 2, 1))])
def test_split_is_85_percent_train_then_10_percent_test_then_validation(count, sizes):
    entries = [make_entry(str(i)) for i in range(count)]
    parts = split_entries(entries)
    assert (len(parts.train), len(parts.test), len(parts.validation)) == sizes
    assert parts.train + parts.test + parts.validation == entries


def test_ten_entries_are_enough_to_split_and_nine_are_not():
    entries = [make_entry(str(i)) for i in range(10)]
    assert [len(part) for part in split_entries(entries)] == [8, 1, 1]
    with pytest.raises(ValueError, match="9 entries are too few to split; give at least 10"):
        split_entries(entries[:9])
    with pytest.raises(ValueError, match="0 entries are too few"):
        split_entries([])


# Near duplicates


def test_near_duplicates_are_found_with_their_similarity_most_similar_first():
    entries = [
        make_entry("Name the capital city of France."),
        make_entry("Correct the spelling.", "recieve"),
        make_entry("Name the capital of France."),
        make_entry("Correct the spelling: RECIEVE!"),
    ]
    # Without punctuation 26 letters and spaces of 26 and 31 are the same.
    assert find_near_duplicates(entries) == [(1, 3, 1.0), (0, 2, 2 * 26 / (26 + 31))]
    assert find_near_duplicates(entries, threshold=0.95) == [(1, 3, 1.0)]
    assert find_near_duplicates(entries, threshold=1.0) == [(1, 3, 1.0)]


def test_questions_that_differ_are_no_near_duplicates():
    entries = [
        make_entry("Name the capital of France.", output="Paris"),
        make_entry("Spell this backwards.", "a grand piano", output="Paris"),
        make_entry("Spell this backwards.", "my thumb", output="Paris"),
    ]
    assert find_near_duplicates(entries) == []


@pytest.mark.parametrize("instruction", ["Hi", "A", "你好"])
def test_equal_questions_are_near_duplicates_however_short(instruction):
    entries = [make_entry(instruction), make_entry("Name a fruit"), make_entry(instruction)]
    assert find_near_duplicates(entries) == [(0, 2, 1.0)]


def test_no_entries_have_no_near_duplicates():
    assert find_near_duplicates([]) == []


# Encoding prompts


def test_alpaca_prompt_is_plain_text_up_to_the_response():
    head = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
    )
    entry = make_entry("Say hi", "in French")
    text = f"{head}\n\n### Instruction:\nSay hi\n\n### Input:\nin French\n\n### Response:\n"
    assert encode_prompt(entry, make_tokenizer(*CHAT_MARKS)) == ids_of(text)
    text = f"{head}\n\n### Instruction:\nSay hi\n\n### Response:\n"
    assert encode_prompt(make_entry("Say hi", ""), make_tokenizer(), "alpaca") == ids_of(text)


def test_chatml_marks_become_special_tokens():
    tokenizer = make_tokenizer(*CHAT_MARKS)
    start, end = 98, 99
    expected = [start, *ids_of("user\nSay hi."), end, *ids_of("\n"), start, *ids_of("assistant\n")]
    assert encode_prompt(make_entry("Say hi."), tokenizer, "chatml") == expected
    expected[1:13] = ids_of("user\nSay hi.\nnow")
    assert encode_prompt(make_entry("Say hi.", "now"), tokenizer, "chatml") == expected


def test_phi3_marks_become_special_tokens():
    tokenizer = make_tokenizer("<|assistant|>", "<|user|>", "<|end|>")
    assistant, user, end = 98, 99, 100
    expected = [user, *ids_of("\nSay hi."), end, *ids_of("\n"), assistant, *ids_of("\n")]
    assert encode_prompt(make_entry("Say hi."), tokenizer, "phi3") == expected


def test_marks_that_the_tokenizer_lacks_are_encoded_in_one_text_with_what_surrounds_them():
    text = "<|im_start|>user\nSay hi{}|im_end|>\n<|im_start|>assistant\n"
    before, after = text.split("{}")
    expected = [*ids_of(before), 96, *ids_of(after)]  # 96 is the token ".<"
    assert encode_prompt(make_entry("Say hi."), make_tokenizer(), "chatml") == expected


def test_only_the_marks_that_the_tokenizer_has_become_special_tokens():
    tokenizer = make_tokenizer("<|end|>")
    text = ids_of("<|user|>\nSay hi"), ids_of("\n<|assistant|>\n")
    assert encode_prompt(make_entry("Say hi"), tokenizer, "phi3") == [*text[0], 98, *text[1]]


@pytest.mark.parametrize("style", ["alpaca", "phi3", "chatml"])
def test_marks_in_the_users_text_stay_ordinary_text(style):
    tokenizer = make_tokenizer(*CHAT_MARKS, "<|user|>", "<|end|>", "<|assistant|>")
    plain = encode_prompt(make_entry("A", "B"), tokenizer, style)
    entry = make_entry("A<|im_end|><|end|>", "B<|im_start|><|endoftext|>", "<|im_end|>")
    marked = encode_prompt(entry, tokenizer, style)
    assert [i for i in marked if i >= 97] == [i for i in plain if i >= 97]
    assert tokenizer.decode(marked).count("A<|im_end|><|end|>") == 1
    example = encode_example(entry, tokenizer, style)
    assert example.input_ids[example.prompt_length :] == [*ids_of("<|im_end|>"), 97]


def test_unknown_style_is_refused():
    with pytest.raises(ValueError, match="unknown prompt style 'vicuna'; choose one of alpaca"):
        encode_prompt(make_entry(), make_tokenizer(), "vicuna")


# Encoding examples


def test_example_is_prompt_response_and_one_end_of_text():
    tokenizer = make_tokenizer()
    prompt = encode_prompt(make_entry(), tokenizer)
    example = encode_example(make_entry(), tokenizer)
    assert example == Example([*prompt, *ids_of("Hi"), 97], len(prompt))


def test_labels_are_unshifted_and_hide_exactly_the_prompt():
    example = Example([5, 6, 7, 8, 97], prompt_length=3)
    assert IGNORE_INDEX == -100
    assert example.labels() == [-100, -100, -100, 8, 97]
    assert example.labels(mask_prompt=False) == [5, 6, 7, 8, 97]


@pytest.mark.parametrize("room", [1, 2, 3, 4, 9])
def test_too_long_response_is_cut_and_its_end_of_text_kept(room):
    tokenizer = make_tokenizer()
    entry = make_entry(output="abc")
    prompt = encode_prompt(entry, tokenizer)
    example = encode_example(entry, tokenizer, max_length=len(prompt) + room + 1)
    assert example == Example([*prompt, *ids_of("abc"[:room]), 97], len(prompt))


def test_prompt_that_leaves_no_room_for_a_response_is_refused():
    tokenizer = make_tokenizer()
    length = len(encode_prompt(make_entry(), tokenizer))
    for most in (1, length, length + 1):
        message = f"has a prompt of {length} tokens, which leaves no room for a response within"
        with pytest.raises(ValueError, match=f"{message} {most}; shorten it or allow"):
            encode_example(make_entry(), tokenizer, max_length=most)


def test_entries_that_do_not_fit_are_left_out_and_named():
    tokenizer = make_tokenizer()
    entries = [make_entry("a" * 9), make_entry("a"), make_entry("a" * 8), make_entry("b")]
    most = len(encode_prompt(make_entry("a"), tokenizer)) + 3
    examples, left_out = encode_entries(entries, tokenizer, max_length=most)
    assert examples == [
        encode_example(entries[1], tokenizer),
        encode_example(entries[3], tokenizer),
    ]
    assert list(left_out) == [0, 2]
    assert left_out[0].startswith(f"has a prompt of {most + 5} tokens")
    assert left_out[2].startswith(f"has a prompt of {most + 4} tokens")


def test_no_length_ever_gives_an_example_without_a_label_to_learn():
    tokenizer = make_tokenizer()
    entries = [make_entry("a" * i, output="b" * (i + 1)) for i in range(1, 6)]
    longest = len(encode_example(entries[-1], tokenizer).input_ids)
    for most in range(1, longest + 2):
        examples, left_out = encode_entries(entries, tokenizer, max_length=most)
        assert len(examples) + len(left_out) == len(entries)
        for example in examples:
            assert len(example.input_ids) <= most
            assert example.input_ids[-1] == 97
            assert sum(label != IGNORE_INDEX for label in example.labels()) >= 2
    assert not left_out


def test_longest_entry_is_whole_where_no_length_is_given():
    entry = make_entry(output="a" * 3000)
    (example,), left_out = encode_entries([entry], make_tokenizer())
    assert len(example.input_ids) - example.prompt_length == 3001
    assert left_out == {}


def test_other_errors_are_not_taken_for_entries_that_do_not_fit():
    with pytest.raises(ValueError, match="unknown prompt style"):
        encode_entries([make_entry()], make_tokenizer(), "vicuna", max_length=500)

"""Talking to a model: streaming, stopping, the widget."""

import json
from itertools import pairwise

import pytest

from supplementary import chat
from supplementary.chat import stream_response
from supplementary.chat_box import ChatBox
from supplementary.generation import respond
from supplementary.tokenizer import Tokenizer

ENTRY = {"instruction": "Say é.", "input": "", "output": ""}


@pytest.fixture
def tokenizer(train_tokenizer):
    return Tokenizer(json.loads(train_tokenizer().to_str()), eos_token_id=0)


@pytest.fixture
def says(monkeypatch):
    """Return a function that makes the model say given tokens; gives what it was asked."""
    asked = {}

    def say(tokens):
        def steps(model, prompts, max_new_tokens, eos_token_id, temperature):
            asked.update(prompts=prompts, eos=eos_token_id, temperature=temperature)
            yield from ([(0, token)] for token in tokens[:max_new_tokens])

        monkeypatch.setattr(chat, "generate_steps", steps)
        return asked

    return say


def test_a_streamed_response_is_the_one_that_generation_gives(finetuned, entries):
    for entry in (entries[999], entries[50]):
        pieces = []
        text = stream_response(*finetuned, entry, pieces.append, max_new_tokens=30)
        assert "".join(pieces) == text
        assert len(pieces) > 3  # not all at once
        assert [text.strip()] == respond(*finetuned, [entry], max_new_tokens=30)


def test_characters_are_shown_whole(says, tiny_model, tokenizer):
    text = "né 你好 ok"
    tokens = tokenizer.encode(text)
    assert len(tokens) > len(text)  # the tiny vocabulary has no tokens for these characters
    says(tokens)
    pieces = []
    assert stream_response(tiny_model, tokenizer, ENTRY, pieces.append) == text
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_shown_as_such(says, tiny_model, tokenizer):
    says(tokenizer.encode("ok 你")[:-1])
    pieces = []
    text = stream_response(tiny_model, tokenizer, ENTRY, pieces.append)
    assert text == "".join(pieces) == "ok \ufffd"


@pytest.mark.parametrize("style", ["alpaca", "chatml"])
def test_the_model_is_asked_in_the_style_it_was_trained_on(says, tiny_model, tokenizer, style):
    from supplementary.data import encode_prompt

    asked = says([5])
    stream_response(tiny_model, tokenizer, ENTRY, str, style, temperature=0.5)
    assert asked == {
        "prompts": [encode_prompt(ENTRY, tokenizer, style)],
        "eos": 0,
        "temperature": 0.5,
    }


def test_a_click_answers_and_clears_the_fields(says, tiny_model, tokenizer):
    says(tokenizer.encode("<b>simple</b>"))
    box = ChatBox(tiny_model, tokenizer)
    box.instruction.value, box.input.value = " Is 1 < 2? ", "one\ntwo"
    box.button.click()
    entry = {"instruction": "Is 1 < 2?", "input": "one\ntwo", "output": ""}
    assert box.turns == [(entry, "<b>simple</b>")]
    assert box.shown.value == (
        "<p><b>Is 1 &lt; 2?<br>one<br>two</b><br>&lt;b&gt;simple&lt;/b&gt;</p>"
    )
    assert (box.instruction.value, box.input.value, box.button.disabled) == ("", "", False)
    box.instruction.value = "Again."
    box.button.click()
    assert len(box.turns) == 2
    assert box.shown.value.count("simple") == 2


def test_the_answer_grows_on_the_screen(says, tiny_model, tokenizer):
    says(tokenizer.encode("one two"))
    box, seen = ChatBox(tiny_model, tokenizer), []
    box.shown.observe(lambda change: seen.append(change["new"]), "value")
    box.instruction.value = "Count."
    box.button.click()
    assert len(seen) > 3
    for earlier, later in pairwise(seen):
        assert later.startswith(earlier.removesuffix("</p>"))


def test_nothing_is_asked_without_an_instruction(says, tiny_model, tokenizer):
    asked = says([5])
    box = ChatBox(tiny_model, tokenizer)
    box.input.value = "only an input"
    box.button.click()
    assert (asked, box.turns, box.shown.value) == ({}, [], "")
    assert box.input.value == "only an input"


def test_an_instruction_that_is_too_long_is_an_error_in_the_widget(tiny_model, tokenizer):
    box = ChatBox(tiny_model, tokenizer)
    box.instruction.value = "x" * 300
    box.button.click()
    assert "leaves no room in the model&#x27;s context of 256" in box.shown.value
    assert (box.turns, box.button.disabled) == ([], False)

"""Chat templates: other programs write the prompt that the model was trained on."""

import pytest

from supplementary.checkpoints import save_tokenizer
from supplementary.data import encode_prompt
from supplementary.prompts import PROMPT_STYLES, prompt_pieces
from supplementary.templates import (
    around_message,
    chat_template,
    modelfile,
    style_of_template,
    user_message,
)

STYLES = list(PROMPT_STYLES)
STRANGE = "Say \"{{ eos_token }}\" or '{% raw %}',\n\tor é 你好 \\n.\n\n### Response:\n"


@pytest.fixture(scope="module")
def load_tokenizer(pretrained, tmp_path_factory):
    """Return a function that lets `transformers` load the workshop's tokenizer for a style."""
    from transformers import AutoTokenizer

    def load(style):
        folder = tmp_path_factory.mktemp("tokenizer")
        save_tokenizer(pretrained[1], folder, style, 8192)
        return AutoTokenizer.from_pretrained(folder)

    return load


def ask(entry, style):
    return [{"role": "user", "content": user_message(entry, style)}]


@pytest.mark.parametrize("style", STYLES)
def test_transformers_gives_the_token_ids_of_the_training_prompt(
    load_tokenizer, pretrained, entries, style
):
    theirs = load_tokenizer(style)
    for entry in entries[::5]:
        found = theirs.apply_chat_template(
            ask(entry, style), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert found == encode_prompt(entry, pretrained[1], style)


@pytest.mark.parametrize("style", STYLES)
def test_a_whole_turn_is_the_training_example_and_turns_follow_each_other(
    load_tokenizer, entries, style
):
    theirs = load_tokenizer(style)
    turns, text = [], ""
    for entry in entries[48:51]:
        turns += [*ask(entry, style), {"role": "assistant", "content": entry["output"]}]
        text += "".join(prompt_pieces(entry, style)) + entry["output"] + "<|im_end|>"
    assert theirs.apply_chat_template(turns, tokenize=False) == text


@pytest.mark.parametrize("style", STYLES)
def test_what_a_user_says_stands_in_the_prompt_as_it_is(load_tokenizer, style):
    entry = {"instruction": STRANGE, "input": "", "output": ""}
    found = load_tokenizer(style).apply_chat_template(
        ask(entry, style), add_generation_prompt=True, tokenize=False
    )
    assert found == "".join(prompt_pieces(entry, style))


@pytest.mark.parametrize("style", STYLES)
def test_a_system_message_is_left_out(load_tokenizer, entries, style):
    theirs, asked = load_tokenizer(style), ask(entries[0], style)
    system = {"role": "system", "content": "Be rude."}
    alone, led = (
        theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        for turns in (asked, [system, *asked])
    )
    assert alone == led


def test_the_response_is_asked_for_only_if_wanted(load_tokenizer, entries):
    text = load_tokenizer("alpaca").apply_chat_template(ask(entries[999], "alpaca"), tokenize=False)
    assert text.endswith("### Instruction:\nWhat is an antonym of 'complicated'?")


def test_the_saved_tokenizer_gives_the_ids_and_ends_of_ours(load_tokenizer, pretrained):
    theirs, ours = load_tokenizer("alpaca"), pretrained[1]
    assert theirs.eos_token_id == theirs.pad_token_id == ours.eos_token_id
    text = "12 km,  naïve\n\n 7"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert set(theirs(text)) == {"input_ids", "attention_mask"}  # what the model takes
    assert theirs.decode(ours.encode(text)) == text


@pytest.mark.parametrize("style", STYLES)
def test_the_users_message_lies_between_the_formats_own_words(entries, style):
    before, after = around_message(style)
    for entry in (entries[50], entries[999]):
        whole = "".join(prompt_pieces(entry, style))
        assert before + user_message(entry, style) + after == whole


def test_a_template_is_recognized_by_its_style():
    assert [style_of_template(chat_template(style)) for style in STYLES] == STYLES
    assert style_of_template("{{ messages }}") is None


def test_an_unknown_style_has_no_template():
    with pytest.raises(ValueError, match="unknown prompt style 'vicuna'"):
        chat_template("vicuna")


def test_a_modelfile_holds_the_prompt_word_for_word():
    assert modelfile("my.gguf", "alpaca", "<|im_end|>") == (
        "FROM ./my.gguf\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "user" }}'
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{{ .Content }}\n\n### Response:\n"
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>{{ end }}{{ end }}"""\n'
        "PARAMETER stop <|im_end|>\n"
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1\n"
        "PARAMETER num_predict 200\n"
    )

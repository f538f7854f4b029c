"""Multiple-choice questions: files of them, prompts, likelihoods and the options chosen."""

import json
import math
from dataclasses import replace

import pytest
import torch

from supplementary import training
from supplementary.checkpoints import load_pretrained
from supplementary.data import ROOT
from supplementary.model import CausalLM
from supplementary.multiple_choice import (
    join_packed,
    letter_prompt,
    load_questions,
    log_likelihoods,
    pack_continuations,
    right_choices,
    score_options,
    text_prompt,
)

QUESTION = {
    "subject": "words",
    "question": "What is an antonym of 'complicated'?",
    "options": ["simple", "12 km", "the following word", "?"],
    "answer": 0,
}
PROMPT = "Question: What is an antonym of 'complicated'?\nAnswer:"
CONTINUATIONS = [" simple", " 12 kilometers to meters.", ".", " an antonym of Occasion"]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Compare in float32, also where the CPU computes in bfloat16."""
    monkeypatch.setattr(training, "pick_precision", lambda device: torch.float32)


@pytest.fixture(scope="module")
def tiny(llama_folder):
    """A tiny model and its tokenizer; no test may change them."""
    return load_pretrained(llama_folder)


def favour(tiny, tiny_config, text, by=3.0):
    """Make a model that gives the last token of `text` the logit `by` everywhere, all others 0."""
    _, tokenizer = tiny
    model = CausalLM(replace(tiny_config, vocab_size=320, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1 if "embed" in name or "norm" in name else 0)
        model.lm_head.weight[tokenizer.encode(text)[-1]] = by / tiny_config.hidden_size
    return model


@torch.no_grad()
def alone(model, tokenizer, prompt, continuation):
    """Compute one log-likelihood without packing, token by token."""
    context, ending = tokenizer.encode(prompt), tokenizer.encode(continuation)
    output = model(torch.tensor([context + ending]))
    logits = getattr(output, "logits", output)[0]
    log_probabilities = logits.double().log_softmax(-1)
    return sum(
        log_probabilities[len(context) + i - 1, token].item() for i, token in enumerate(ending)
    )


# Files


def test_the_workshops_questions_are_read_as_they_stand():
    path = ROOT / "data" / "multiple-choice.json"
    questions = load_questions(path)
    assert questions == json.loads(path.read_text(encoding="utf-8"))
    assert len(questions) >= 200
    assert load_questions(str(path)) == questions


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_questions(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [("[", "not valid JSON"), ("{}", "no list of questions"), ("[]", "no list of questions")],
)
def test_a_file_that_is_no_list_of_questions_is_refused_and_named(tmp_path, text, said):
    path = tmp_path / "questions.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"questions\.json .*{said}"):
        load_questions(path)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("2 + 2?", "needs exactly the keys subject, question, options, answer"),
        ({k: v for k, v in QUESTION.items() if k != "answer"}, "needs exactly the keys"),
        (QUESTION | {"source": "a book"}, "needs exactly the keys"),
        (QUESTION | {"options": list("abc")}, "has not 4 different options"),
        (QUESTION | {"options": list("abcde")}, "has not 4 different options"),
        (QUESTION | {"options": list("abca")}, "has not 4 different options"),
        (QUESTION | {"options": list("abcda")}, "has not 4 different options"),
        (QUESTION | {"options": "abcd"}, "has options of type str; give a list"),
        (QUESTION | {"answer": 4}, "has the answer 4; give the index"),
        (QUESTION | {"answer": -1}, "has the answer -1"),
        (QUESTION | {"answer": "A"}, "has the answer 'A'"),
        (QUESTION | {"answer": None}, "has the answer None"),
    ],
)
def test_a_bad_question_is_refused_by_its_number(tmp_path, bad, said):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([QUESTION, bad, QUESTION]), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"questions\.json: question 1 {said}"):
        load_questions(path)


@pytest.mark.parametrize("answer", [0, 3])
def test_the_first_and_the_last_option_may_be_right(tmp_path, answer):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([QUESTION | {"answer": answer}]), encoding="utf-8")
    assert load_questions(path)[0]["answer"] == answer


# Prompts


def test_the_text_prompt_ends_where_an_options_text_goes_on():
    prompt, continuations = text_prompt(QUESTION)
    assert prompt == "Question: What is an antonym of 'complicated'?\nAnswer:"
    assert continuations == [" simple", " 12 km", " the following word", " ?"]


def test_the_letter_prompt_names_the_options_and_ends_where_a_letter_goes_on():
    prompt, continuations = letter_prompt(QUESTION)
    assert prompt == (
        "Question: What is an antonym of 'complicated'?\n"
        "A. simple\n"
        "B. 12 km\n"
        "C. the following word\n"
        "D. ?\n"
        "Answer:"
    )
    assert continuations == [" A", " B", " C", " D"]


# Likelihoods


@pytest.mark.parametrize("prompt", ["A", "AA", PROMPT], ids=["one token", "two tokens", "long"])
def test_packed_log_likelihoods_equal_those_computed_one_by_one(tiny, prompt):
    model, tokenizer = tiny
    lengths = [len(tokenizer.encode(continuation)) for continuation in CONTINUATIONS]
    assert len(set(lengths)) == 4 and min(lengths) == 1
    assert prompt == PROMPT or len(tokenizer.encode(prompt)) == len(prompt)
    got = log_likelihoods(model, tokenizer, prompt, CONTINUATIONS)
    expected = [alone(model, tokenizer, prompt, continuation) for continuation in CONTINUATIONS]
    assert got == pytest.approx(expected, abs=1e-3)
    assert max(got) < -1  # large enough for the comparison to mean something
    single = log_likelihoods(model, tokenizer, prompt, CONTINUATIONS[1:2])
    assert single == pytest.approx(expected[1:2], abs=1e-3)


def test_log_likelihoods_equal_those_of_transformers(tiny, llama_folder):
    from transformers import LlamaForCausalLM

    model, tokenizer = tiny
    reference = LlamaForCausalLM.from_pretrained(llama_folder)
    got = log_likelihoods(model, tokenizer, PROMPT, CONTINUATIONS)
    expected = [alone(reference, tokenizer, PROMPT, text) for text in CONTINUATIONS]
    assert got == pytest.approx(expected, abs=1e-3)


def test_equal_continuations_get_equal_values_wherever_they_stand(tiny):
    got = log_likelihoods(*tiny, PROMPT, [" simple", " meters", " simple", " simple."])
    assert got[0] == pytest.approx(got[2], abs=1e-4)
    assert abs(got[0] - got[1]) > 0.01 and abs(got[0] - got[3]) > 0.01


def test_the_prompt_is_computed_once_for_all_options(tiny):
    model, tokenizer = tiny
    rows = []
    hook = model.model.embed_tokens.register_forward_pre_hook(
        lambda module, inputs: rows.append(tuple(inputs[0].shape))
    )
    log_likelihoods(model, tokenizer, PROMPT, CONTINUATIONS)
    hook.remove()
    own = [
        1 + len(tokenizer.encode(text)) for text in CONTINUATIONS
    ]  # the prompt's last token, too
    assert rows == [(1, len(tokenizer.encode(PROMPT)) - 1 + sum(own))]


def test_log_likelihoods_in_bfloat16_are_close_to_those_in_float32(tiny, monkeypatch):
    expected = log_likelihoods(*tiny, PROMPT, CONTINUATIONS)
    monkeypatch.setattr(training, "pick_precision", lambda device: torch.bfloat16)
    got = log_likelihoods(*tiny, PROMPT, CONTINUATIONS)
    assert got != expected
    assert got == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_known_distribution_gives_the_log_likelihoods_computed_by_hand(
    tiny, tiny_config, monkeypatch, precision
):
    monkeypatch.setattr(training, "pick_precision", lambda device: precision)
    tokenizer = tiny[1]
    model = favour(tiny, tiny_config, "?", by=3.0)
    favoured, other = 3 - math.log(math.exp(3) + 319), -math.log(math.exp(3) + 319)
    got = log_likelihoods(model, tokenizer, "A", ["?", "B", "??", "B?", "BBBB"])
    expected = [favoured, other, 2 * favoured, other + favoured, 4 * other]
    assert got == pytest.approx(expected, rel=1e-5)


# Scores and choices


def test_scores_are_the_log_likelihoods_of_each_questions_own_prompt(tiny, capsys):
    questions = [QUESTION, QUESTION | {"question": "Which word?", "options": list("wxyz")}]
    for make_prompt in (text_prompt, letter_prompt):
        scores = score_options(*tiny, questions, make_prompt)
        alone = [log_likelihoods(*tiny, *make_prompt(question)) for question in questions]
        assert torch.allclose(torch.tensor(scores), torch.tensor(alone), atol=1e-4)
    assert score_options(*tiny, questions) == score_options(*tiny, questions, text_prompt)
    assert score_options(*tiny, []) == []
    assert capsys.readouterr() == ("", "")
    score_options(*tiny, questions, progress=True)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("letter", "ABCD")
def test_a_model_that_likes_a_letter_answers_with_it(tiny, tiny_config, letter):
    model = favour(tiny, tiny_config, letter)
    questions = [QUESTION | {"answer": answer} for answer in range(4)]
    scores = score_options(model, tiny[1], questions, letter_prompt)
    assert right_choices(questions, scores) == [letter == other for other in "ABCD"]


def test_the_option_with_the_highest_score_is_chosen():
    scores = [[-9.0, -2.0, -3.0, -4.0], [-1.0, -2.0, -3.0, -4.0], [-4.0, -3.0, -2.5, -2.0]]
    questions = [QUESTION | {"answer": answer} for answer in (1, 1, 3)]
    assert right_choices(questions, scores) == [True, False, True]
    assert right_choices([], []) == []


def test_per_character_a_long_option_is_not_held_against_its_length():
    options = ["simple", "12 km", "the following word", "?"]  # 6, 5, 18 and 1 characters
    scores = [[-6.0, -10.0, -9.0, -2.0]] * 4  # per character -1, -2, -0.5 and -2
    questions = [QUESTION | {"options": options, "answer": answer} for answer in range(4)]
    assert right_choices(questions, scores) == [False, False, False, True]
    assert right_choices(questions, scores, per_character=True) == [False, False, True, False]


def test_of_equal_scores_the_first_is_chosen():
    questions = [QUESTION | {"answer": answer} for answer in range(4)]
    assert right_choices(questions, [[-5.0, -2.0, -2.0, -2.0]] * 4) == [False, True, False, False]
    scores = [[-6.0, -50.0, -18.0, -1.0]] * 4  # per character -1, -10, -1 and -1
    assert right_choices(questions, scores, per_character=True) == [True, False, False, False]


def test_scores_that_do_not_pair_up_with_questions_or_options_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        right_choices([QUESTION] * 2, [[-1.0, -2.0, -3.0, -4.0]])
    with pytest.raises(ValueError, match="shorter"):
        right_choices([QUESTION], [[-1.0, -2.0, -3.0, -4.0, -5.0]])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_scores_do_not_depend_on_the_batch(tiny, batch_size):
    texts = ["Which?", "Which word is the longest of all these words?", "What?", "Is it so or not?"]
    questions = [
        QUESTION | {"question": text, "options": [text, "a", "bc", "d e f"]} for text in texts
    ]
    alone = [log_likelihoods(*tiny, *text_prompt(question)) for question in questions]
    scores = score_options(*tiny, questions, batch_size=batch_size)
    assert torch.allclose(torch.tensor(scores), torch.tensor(alone), atol=1e-4)


def test_joined_rows_keep_each_prompt_and_its_continuations_together(tiny):
    _, tokenizer = tiny
    texts = ("A?", "A longer one?")
    packed = [pack_continuations(tokenizer, text, [" a", " bcd"])[0] for text in texts]
    joined = join_packed(packed)
    start = packed[0]["input_ids"].shape[1]
    assert joined["input_ids"][0, start:].tolist() == packed[1]["input_ids"][0].tolist()
    assert joined["labels"][0, :start].tolist() == packed[0]["labels"][0].tolist()
    sequences = [row[row >= 0] for row in joined["rows"]]
    assert [tokenizer.decode(joined["input_ids"][0, row].tolist()) for row in sequences] == [
        text + ending for text in texts for ending in (" a", " bcd")
    ]

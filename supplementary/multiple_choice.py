"""Multiple-choice questions, answered by the likelihood that a model gives to each option.

The model writes nothing: whatever option it finds likeliest counts as its answer. So also a model
that does not follow instructions can be tested.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from .batching import Batch, collate_packed
from .data import Example
from .files import read_json
from .model import CausalLM
from .tokenizer import Tokenizer
from .training import measure_losses

LETTERS = "ABCD"


class Question(TypedDict):
    """A question with four options; `answer` is the index of the right one."""

    subject: str
    question: str
    options: list[str]
    answer: int


def load_questions(path: Path | str) -> list[Question]:
    """Read a JSON list of questions.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no list, or a question lacks a key, has not four different
            options or no answer from 0 to 3; it names the question.
    """
    questions = read_json(Path(path))
    if not isinstance(questions, list) or not questions:
        raise ValueError(f"{path} holds no list of questions")
    for number, question in enumerate(questions):
        if problem := _find_problem(question):
            raise ValueError(f"{path}: question {number} {problem}")
    return questions


def _find_problem(question: object) -> str | None:
    if not isinstance(question, dict) or set(question) != set(Question.__annotations__):
        return f"needs exactly the keys {', '.join(Question.__annotations__)}"
    options, answer = question["options"], question["answer"]
    if not isinstance(options, list):
        return f"has options of type {type(options).__name__}; give a list"
    texts = [text for text in options if isinstance(text, str) and text.strip()]
    if not len(options) == len(texts) == len(set(texts)) == len(LETTERS):
        return f"has not {len(LETTERS)} different options; give {len(LETTERS)} texts"
    if type(answer) is not int or answer not in range(len(LETTERS)):
        return f"has the answer {answer!r}; give the index of an option, 0 to 3"
    return None


def text_prompt(question: Question) -> tuple[str, list[str]]:
    """Ask without naming the options; each option's text may follow.

    >>> text_prompt({"question": "2 + 2?", "options": ["3", "4", "5", "6"]})[1]
    [' 3', ' 4', ' 5', ' 6']
    """
    prompt = f"Question: {question['question']}\nAnswer:"
    return prompt, [f" {option}" for option in question["options"]]


def letter_prompt(question: Question) -> tuple[str, list[str]]:
    """Name the options with letters, as MMLU does; a letter may follow.

    Source: Hendrycks et al., 2020, https://arxiv.org/abs/2009.03300, figure 1.
    """
    pairs = zip(LETTERS, question["options"], strict=True)
    lines = "\n".join(f"{letter}. {option}" for letter, option in pairs)
    prompt = f"Question: {question['question']}\n{lines}\nAnswer:"
    return prompt, [f" {letter}" for letter in LETTERS]


def log_likelihoods(
    model: CausalLM, tokenizer: Tokenizer, prompt: str, continuations: list[str]
) -> list[float]:
    """Return for each continuation the log-probability that the model gives it after the prompt.

    All are computed at once: one packed row that holds the prompt once.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompt: the text before.
        continuations: the texts that may follow; each begins with the space that divides them.

    Returns:
        Sums over the tokens of each continuation, in nats.
    """
    batch, lengths = pack_continuations(tokenizer, prompt, continuations)
    losses = measure_losses(model, batch)
    return [-part.sum().item() for part in losses.split(lengths)]


def pack_continuations(
    tokenizer: Tokenizer, prompt: str, continuations: list[str]
) -> tuple[Batch, list[int]]:
    """Pack a prompt, once, and all that may follow it into one row; only the latter has labels.

    Returns:
        The batch (see `collate_packed`), and the tokens of each continuation.
    """
    context = tokenizer.encode(prompt)
    endings = [tokenizer.encode(continuation) for continuation in continuations]
    examples = [Example(context + ending, len(context)) for ending in endings]
    lengths = [len(ending) for ending in endings]
    return collate_packed(examples, prefix_length=len(context) - 1), lengths


def join_packed(batches: list[Batch]) -> Batch:
    """Put several packed rows, each with a prefix of its own, into one."""
    longest = max(batch["rows"].shape[1] for batch in batches)
    rows, start = [], 0
    for batch in batches:
        places = batch["rows"]
        places = places.where(places < 0, places + start)  # -1 stays
        rows.append(F.pad(places, (0, longest - places.shape[1]), value=-1))
        start += batch["input_ids"].shape[1]
    names = ("input_ids", "position_ids", "labels")
    joined = {name: torch.cat([batch[name] for batch in batches], dim=1) for name in names}
    return joined | {"rows": torch.cat(rows)}


def score_options(
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: list[Question],
    make_prompt: Callable[[Question], tuple[str, list[str]]] = text_prompt,
    batch_size: int = 16,
    progress: bool = False,
) -> list[list[float]]:
    """Return the log-likelihood of every option of every question, in nats.

    The numbers are those of `log_likelihoods`, computed for several questions at once.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        questions: N questions.
        make_prompt: `text_prompt` or `letter_prompt`.
        batch_size: questions computed at once, those of similar length together.
        progress: whether to show a bar.
    """
    packed = [pack_continuations(tokenizer, *make_prompt(question)) for question in questions]
    order = sorted(range(len(packed)), key=lambda i: packed[i][0]["input_ids"].shape[1])
    scores: list[list[float]] = [[] for _ in questions]
    bar = tqdm(total=len(order), desc="questions", disable=not progress)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        lengths = [length for i in indices for length in packed[i][1]]
        losses = measure_losses(model, join_packed([packed[i][0] for i in indices]))
        parts = iter(losses.split(lengths))
        for i in indices:
            scores[i] = [-next(parts).sum().item() for _ in packed[i][1]]
        bar.update(len(indices))
    bar.close()
    return scores


def right_choices(
    questions: list[Question], scores: list[list[float]], per_character: bool = False
) -> list[bool]:
    """Tell for each question whether its right option has the highest score.

    Args:
        questions: N questions.
        scores: what `score_options` returned for them.
        per_character: whether to divide each score by the length of the option's text. A sum of
            log-probabilities falls with every token, so it favours short options.

    Source: the normalization is that of `acc_norm` in EleutherAI's evaluation harness,
        https://github.com/EleutherAI/lm-evaluation-harness.
    """
    right = []
    for question, row in zip(questions, scores, strict=True):
        lengths = [len(option) if per_character else 1 for option in question["options"]]
        values = [score / length for score, length in zip(row, lengths, strict=True)]
        right.append(values.index(max(values)) == question["answer"])
    return right

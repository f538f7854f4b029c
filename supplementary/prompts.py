"""Prompt formats: how an entry becomes the text that the model reads.

A format is a pair of functions: `prompt` gives the pieces before the response, and the response
follows them, closed by the end-of-text token. Pieces of type `Control` are the format's own marks
(`<|im_start|>`); they become single special tokens where the tokenizer has them. Everything else,
above all the user's text, is ordinary text, even if it looks like a special token.
"""

from collections.abc import Callable
from typing import TypedDict


class Entry(TypedDict):
    """One entry of the dataset; `input` may be empty."""

    instruction: str
    input: str
    output: str


class Control(str):
    """A mark of the prompt format itself, such as `<|im_start|>`."""


def format_input(entry: Entry) -> str:
    r"""Format an entry as an Alpaca prompt, up to the response.

    Args:
        entry: a dictionary with `instruction` and `input`; an empty `input` leaves its section out.

    Returns:
        The prompt; the response follows as `"\n\n### Response:\n" + output`.

    Source: https://github.com/tatsu-lab/stanford_alpaca (the prompt templates).
    """
    instruction_text = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


def user_text(entry: Entry) -> str:
    """Join instruction and input, as formats without headings write them."""
    return entry["instruction"] + (f"\n{entry['input']}" if entry["input"] else "")


def alpaca_prompt(entry: Entry) -> list[str]:
    """Give the Alpaca prompt as pieces, the response's heading included."""
    return [format_input(entry) + "\n\n### Response:\n"]


def phi3_prompt(entry: Entry) -> list[str]:
    """Give the Phi-3 prompt as pieces.

    Source: https://huggingface.co/microsoft/Phi-3-mini-4k-instruct (chat format).
    """
    question = "\n" + user_text(entry)
    return [Control("<|user|>"), question, Control("<|end|>"), "\n", Control("<|assistant|>"), "\n"]


def chatml_prompt(entry: Entry) -> list[str]:
    """Give the ChatML prompt as pieces, without a system message.

    Source: https://github.com/openai/openai-python/blob/v0.27.6/chatml.md
    """
    start, end = Control("<|im_start|>"), Control("<|im_end|>")
    return [start, f"user\n{user_text(entry)}", end, "\n", start, "assistant\n"]


PROMPT_STYLES: dict[str, Callable[[Entry], list[str]]] = {
    "alpaca": alpaca_prompt,
    "phi3": phi3_prompt,
    "chatml": chatml_prompt,
}


def prompt_pieces(entry: Entry, style: str = "alpaca") -> list[str]:
    r"""Give the prompt of `entry` in the format named `style`, as pieces.

    Raises:
        ValueError: if there is no such style.

    >>> "".join(prompt_pieces({"instruction": "Say hi.", "input": "", "output": "Hi."}, "chatml"))
    '<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n'
    """
    if style not in PROMPT_STYLES:
        raise ValueError(
            f"unknown prompt style {style!r}; choose one of {', '.join(PROMPT_STYLES)}"
        )
    return PROMPT_STYLES[style](entry)

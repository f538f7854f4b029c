"""Talking to a model, one instruction at a time: responses while they are generated.

Every instruction is a conversation of its own: the model was trained on single questions.
"""

from collections.abc import Callable

from .data import encode_prompt
from .generation import generate_steps
from .hardware import autocast, pick_precision
from .model import CausalLM
from .prompts import Entry
from .tokenizer import Tokenizer


def stream_response(
    model: CausalLM,
    tokenizer: Tokenizer,
    entry: Entry,
    on_text: Callable[[str], None],
    style: str = "alpaca",
    max_new_tokens: int = 200,
    temperature: float = 0.0,
) -> str:
    """Answer an instruction and hand the text over while it is generated, whole characters only.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        entry: its instruction and input are read.
        on_text: called with each new piece of text.
        style: the prompt format that the model was trained on.
        max_new_tokens: most tokens of the response, which otherwise ends at the end-of-text token.
        temperature: 0 takes the most likely token.

    Returns:
        The whole response.

    Raises:
        ValueError: if there is no such style, or the prompt leaves no room in the context.
    """
    prompt = encode_prompt(entry, tokenizer, style)
    tokens, shown, text = [], 0, ""
    with autocast(model.device, pick_precision(model.device)):
        steps = generate_steps(model, [prompt], max_new_tokens, tokenizer.eos_token_id, temperature)
        for ((_, token),) in steps:
            tokens.append(token)
            text = tokenizer.decode(tokens)
            whole = len(text.rstrip("\ufffd"))  # the end may be the first bytes of a character
            if whole > shown:
                on_text(text[shown:whole])
                shown = whole
    if text[shown:]:
        on_text(text[shown:])
    return text

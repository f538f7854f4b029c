"""Chat templates: the prompt formats, written in the languages of the programs that run models.

A model answers well only to the prompt that it was trained on. Other programs know that prompt from
a template that travels with the weights: one in Jinja for `transformers` and llama.cpp, one in Go's
template language for Ollama. Both are derived here from the very functions that made the training
prompts.

Neither knows an `input` field: `user_message` gives the text that a user types instead. Earlier
turns are repeated in the same format, though the model was trained on single ones. System messages
are left out, as the model has never seen one; llama.cpp puts them before the first question.
"""

import json

from .prompts import PROMPT_STYLES, Entry, prompt_pieces

_MARK = "\0"  # stands for what the user says


def around_message(style: str = "alpaca") -> tuple[str, str]:
    r"""Return what stands before and after the user's message in a prompt.

    Raises:
        ValueError: if there is no such style.

    >>> around_message("chatml")
    ('<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n')
    """
    entry: Entry = {"instruction": _MARK, "input": "", "output": ""}
    before, after = "".join(prompt_pieces(entry, style)).split(_MARK)
    return before, after


def user_message(entry: Entry, style: str = "alpaca") -> str:
    r"""Return what a user has to say so that the template gives the entry's training prompt.

    >>> user_message({"instruction": "Correct it.", "input": "teh", "output": "the"})
    'Correct it.\n\n### Input:\nteh'
    """
    before, after = around_message(style)
    return "".join(prompt_pieces(entry, style)).removeprefix(before).removesuffix(after)


def chat_template(style: str = "alpaca") -> str:
    """Return the format as a Jinja template, as `tokenizer_config.json` and GGUF files hold it.

    Source: https://huggingface.co/docs/transformers/chat_templating (what a template is given).
    """
    before, after = map(json.dumps, around_message(style))
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {before} + message['content'] -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- {after} + message['content'] + eos_token -}}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {after} -}}}}{{%- endif -%}}"
    )


def style_of_template(template: str) -> str | None:
    """Return the name of the style whose `chat_template` this is, or None."""
    return next((style for style in PROMPT_STYLES if chat_template(style) == template), None)


def modelfile(weights: str, style: str, eos_token: str, max_new_tokens: int = 200) -> str:
    """Return the contents of a `Modelfile`, from which `ollama create` makes a model.

    Args:
        weights: name of the GGUF file, which stands beside the Modelfile.
        style: the prompt format.
        eos_token: the end-of-text token as text.
        max_new_tokens: most tokens of a response.

    Source: https://github.com/ollama/ollama, docs/modelfile.mdx and docs/template.mdx.
    """
    before, after = around_message(style)
    template = (
        f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{before}{{{{ .Content }}}}{after}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{eos_token}'
        "{{ end }}{{ end }}"
    )
    return (
        f"FROM ./{weights}\n"
        f'TEMPLATE """{template}"""\n'
        f"PARAMETER stop {eos_token}\n"
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1\n"
        f"PARAMETER num_predict {max_new_tokens}\n"
    )

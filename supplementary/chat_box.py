"""A box to talk to a model in a notebook."""

import ipywidgets as widgets

from .chat import stream_response
from .model import CausalLM
from .prompts import Entry, user_text
from .rating import show_text
from .tokenizer import Tokenizer


class ChatBox:
    """A widget to talk to a model in a notebook.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        style: the prompt format that the model was trained on.
        max_new_tokens: most tokens of a response.
        temperature: 0 takes the most likely token.

    Display `widget`; `turns` holds what was said, as (entry, response).
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        style: str = "alpaca",
        max_new_tokens: int = 200,
        temperature: float = 0.0,
    ) -> None:
        self._respond = lambda entry, on_text: stream_response(
            model, tokenizer, entry, on_text, style, max_new_tokens, temperature
        )
        self.turns: list[tuple[Entry, str]] = []
        wide = widgets.Layout(width="40em")
        self.instruction = widgets.Text(placeholder="instruction", layout=wide)
        self.input = widgets.Textarea(placeholder="input (may be empty)", layout=wide)
        self.button = widgets.Button(description="send")
        self.button.on_click(lambda button: self.send())
        self.shown = widgets.HTML()
        self.widget = widgets.VBox([self.shown, self.instruction, self.input, self.button])

    def send(self) -> None:
        """Answer what stands in the fields, as a click does; errors are shown in the widget."""
        entry: Entry = {
            "instruction": self.instruction.value.strip(),
            "input": self.input.value.strip(),
            "output": "",
        }
        if not entry["instruction"]:
            return
        before = self.shown.value
        question = user_text(entry)
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            answer = show_text("".join(pieces))
            self.shown.value = f"{before}<p><b>{show_text(question)}</b><br>{answer}</p>"

        self.button.disabled = True
        try:
            show("")
            self.turns.append((entry, self._respond(entry, show)))
            self.instruction.value = self.input.value = ""
        except (ValueError, RuntimeError) as error:  # a long instruction, a full GPU
            show(f"(error: {error})")
        finally:
            self.button.disabled = False

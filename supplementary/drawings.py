"""Drawings as SVG, for what no plot shows."""

from pathlib import Path
from textwrap import fill
from xml.etree import ElementTree

from .plots import COLOURS

STAGES = {  # what each notebook takes and gives
    "Dataset": "entries to prompts",
    "Batching": "tokens to batches",
    "Model": "tokens to text",
    "Finetuning": "loss to weights",
    "LoRA": "adapter to export",
    "Evaluation": "responses to scores",
    "Clinic": "symptoms to causes",
}


class Drawing:
    """An SVG for a notebook, read as its title and description wherever SVG is not shown.

    That is in JupyterLab in a notebook that came from elsewhere and was not run yet, in a
    terminal, and for those who cannot see it.

    Args:
        svg: the drawing, which has to hold a title and a description.
    """

    def __init__(self, svg: str):
        self.svg = svg
        root = ElementTree.fromstring(svg)
        texts = [root.findtext(f"{{http://www.w3.org/2000/svg}}{tag}") for tag in ("title", "desc")]
        if not all(texts):
            raise ValueError("a drawing needs a <title> and a <desc>, for those who cannot see it")
        self.title, self.description = texts

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return fill(f"[drawing] {self.title}. {self.description}", width=88)


def open_drawing(path: str | Path) -> Drawing:
    """Return the drawing in the SVG file `path`."""
    return Drawing(Path(path).read_text(encoding="utf-8"))


def draw_pipeline(here: int) -> Drawing:
    """Draw the notebooks of the course as boxes in a row, the one that you are in filled.

    Args:
        here: the notebook's number, from 1.

    Returns:
        The drawing, which shows itself when it is a cell's last expression.
    """
    names, width = list(STAGES), 108 * len(STAGES) + 12  # as wide as a notebook beside a sidebar
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 96" width="{width}" '
        'height="96" role="img" aria-labelledby="title desc" font-family="sans-serif" '
        'text-anchor="middle">',
        f'<title id="title">You are in notebook {here}, {names[here - 1]}</title>',
        '<desc id="desc">The way through the course, from left to right: '
        + "; ".join(f"{i} {name}, {text}" for i, (name, text) in enumerate(STAGES.items(), 1))
        + ".</desc>",
        f'<rect width="{width}" height="96" rx="8" fill="white"/>',
    ]
    for i, (name, text) in enumerate(STAGES.items(), 1):
        left, middle = 108 * i - 96, 108 * i - 48
        takes, gives = text.split(" to ")
        fill, ink = (COLOURS["blue"], "white") if i == here else ("white", "#1a1a1a")
        parts += [
            f'<rect x="{left}" y="12" width="96" height="72" rx="6" fill="{fill}" '
            f'stroke="{COLOURS["blue" if i == here else "grey"]}" stroke-width="1.5"/>',
            f'<text x="{middle}" y="36" font-size="13" font-weight="bold" fill="{ink}">'
            f"{i} {name}</text>",
            f'<text x="{middle}" y="56" font-size="12" fill="{ink}">{takes}</text>',
            f'<text x="{middle}" y="72" font-size="12" fill="{ink}">to {gives}</text>',
        ]
        if i > 1:
            parts.append(f'<path d="M{left - 9} 43 l6 5 l-6 5 z" fill="#1a1a1a"/>')
    return Drawing("".join([*parts, "</svg>"]))

"""Slides: which notebook cell begins one. `python -m tests.slides` writes it into the notebooks.

Then `jupyter nbconvert --to slides --SlidesExporter.reveal_scroll=True NOTEBOOK` makes a deck.
"""

from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def slide_types(notebook: NotebookNode) -> list[str]:
    """Return the slide type of each cell.

    A section begins a slide to the right, other prose a slide below, and code follows its prose.
    Set-up, imports and settings, before the first section, are skipped, as are the sources.
    """
    types, begun = [], False
    for number, cell in enumerate(notebook.cells):
        prose = cell.cell_type == "markdown"
        section = prose and cell.source.startswith(("# ", "## "))
        begun = begun or (number > 1 and (section or "draw_pipeline(here=" in cell.source))
        if number < 2 or (section and begun):
            types.append("slide")
        elif not begun:
            types.append("skip")
        else:
            types.append("subslide" if prose else "-")
    return types


def main() -> None:
    """Write the slide types into all notebooks."""
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        for cell, kind in zip(notebook.cells, slide_types(notebook), strict=True):
            cell.metadata["slideshow"] = {"slide_type": kind}
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()

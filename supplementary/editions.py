"""Other editions of the notebooks: code and headings alone, to recall what the prose said.

`nbformat` comes with JupyterLab. It is imported where it is used, so that the command line also
works on a server or in Colab, where nobody installed it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .files import whole_folder

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def strip_prose(notebook: NotebookNode) -> NotebookNode:
    """Return a copy without prose and outputs: the headings and the code are left."""
    import nbformat

    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cells.append(nbformat.v4.new_code_cell(cell.source, id=cell.id))
        else:
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            if headings:
                cells.append(nbformat.v4.new_markdown_cell("\n\n".join(headings), id=cell.id))
    kernel = {"kernelspec": notebook.metadata["kernelspec"]}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def write_recall_edition(out: Path, notebooks: Path = NOTEBOOKS) -> list[Path]:
    """Write all notebooks without prose and outputs to a folder, in place of an earlier edition.

    Args:
        out: the folder; the notebooks find the workshop's if it lies within it.
        notebooks: the folder of the course's notebooks.

    Returns:
        The files written.

    Raises:
        FileExistsError: if `out` holds anything but notebooks.
    """
    import nbformat

    paths = sorted(notebooks.glob("*.ipynb"))
    with whole_folder(out, replaces=("*.ipynb",)) as beside:
        for path in paths:
            nbformat.write(strip_prose(nbformat.read(path, as_version=4)), beside / path.name)
    return [out / path.name for path in paths]

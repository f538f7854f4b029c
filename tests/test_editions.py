"""The edition for recall has the code and the headings, and nothing else."""

import sys

import nbformat

from supplementary.cli import main
from supplementary.editions import NOTEBOOKS, write_recall_edition


def test_code_and_headings_stay_prose_and_outputs_go(tmp_path):
    paths = write_recall_edition(tmp_path / "recall")
    assert [path.name for path in paths] == sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        whole = nbformat.read(NOTEBOOKS / path.name, as_version=4)
        recall = nbformat.read(path, as_version=4)
        nbformat.validate(recall)
        code = [[c for c in n.cells if c.cell_type == "code"] for n in (whole, recall)]
        assert [cell.source for cell in code[0]] == [cell.source for cell in code[1]]
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code[1])
        prose = [cell.source for cell in recall.cells if cell.cell_type == "markdown"]
        lines = [line for text in prose for line in text.splitlines() if line]
        assert lines[0].startswith("# ") and all(line.startswith("#") for line in lines)


def test_an_edition_replaces_an_earlier_one_and_nothing_else(tmp_path, capsys):
    out = tmp_path / "recall"
    assert main(["recall", "--out", str(out)]) == 0 and main(["recall", "--out", str(out)]) == 0
    capsys.readouterr()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert main(["recall", "--out", str(out)]) == 1
    assert "notes.txt" in capsys.readouterr().err
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_without_nbformat_the_error_names_it_and_a_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbformat", None)
    assert main(["recall", "--out", str(tmp_path / "recall")]) == 1
    message = capsys.readouterr().err
    assert "nbformat" in message and "doctor" in message
    assert not (tmp_path / "recall").exists()

"""Drawings: shown as SVG, read as text."""

from pathlib import Path

import pytest

from supplementary.drawings import STAGES, Drawing, draw_pipeline, open_drawing
from supplementary.plots import COLOURS

FIGURES = sorted((Path(__file__).parents[1] / "notebooks" / "figures").glob("*.svg"))


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_figure_shows_its_file_and_reads_as_its_title_and_description(path):
    drawing = open_drawing(path)
    assert drawing._repr_svg_() == path.read_text(encoding="utf-8")
    text = " ".join(repr(drawing).split())
    assert text == " ".join(f"[drawing] {drawing.title}. {drawing.description}".split())
    assert len(drawing.description) > 100
    assert max(map(len, repr(drawing).splitlines())) <= 88


@pytest.mark.parametrize("here", range(1, len(STAGES) + 1))
def test_the_overview_fills_the_box_of_this_notebook_and_names_all(here):
    drawing = draw_pipeline(here)
    svg = drawing._repr_svg_()
    assert svg.count(f'fill="{COLOURS["blue"]}"') == 1
    box = svg.index(f'fill="{COLOURS["blue"]}"')
    assert svg.index(f">{here} ", box) < svg.index("</text>", box)
    assert drawing.title.startswith(f"You are in notebook {here}, ")
    assert all(name in drawing.description for name in STAGES)


@pytest.mark.parametrize(
    "svg", ["<svg/>", '<svg xmlns="http://www.w3.org/2000/svg"><title>t</title></svg>']
)
def test_a_drawing_without_words_is_refused(svg):
    with pytest.raises(ValueError, match="needs a <title> and a <desc>"):
        Drawing(svg)

"""What people read: spelt as words are, and every link inside the repository leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "data").rglob("*.md")),
    *sorted((ROOT / "notebooks").rglob("*.md")),
    *sorted((ROOT / "notebooks").rglob("*.ipynb")),
    *sorted((ROOT / "tests").rglob("*.md")),
]
# Ocassion is entry 50's own mistake; ROUGE is a score.
MEANT = "ocassion,rouge"


def prose(path: Path) -> str:
    """Return a page's text; of a notebook, that of all cells, without outputs."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


@pytest.fixture(params=PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def page(request):
    return request.param


def test_the_pages_are_found():
    names = {path.name for path in PAGES}
    assert {"README.md", "INSTRUCTORS.md", "01_dataset.ipynb"} <= names and len(PAGES) > 15


def misspelt(text: str) -> str:
    command = [sys.executable, "-m", "codespell_lib", "--ignore-words-list", MEANT, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
    return done.stdout + done.stderr


def test_misspelt_words_are_noticed():
    assert "teh ==> the" in misspelt("This is teh text.")


def test_no_word_is_misspelt():
    assert misspelt("\n\n".join(map(prose, PAGES))) == ""


def test_links_inside_the_repository_lead_to_files(page):
    links = re.findall(r"(?<!\\)\]\((?!https?://|#|mailto:)([^)\s]+)\)", prose(page))
    missing = [link for link in links if not (page.parent / link.split("#")[0]).exists()]
    assert missing == []


def test_files_named_in_prose_exist(page):
    """Paths in backticks such as `data/...` or `tests/benchmarks/README.md`."""
    named = re.findall(r"`((?:data|tests|notebooks|supplementary)/[\w./-]+)`", prose(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_cell_ids_are_unique_and_there(page):
    if page.suffix == ".ipynb":
        ids = [cell.get("id") for cell in nbformat.read(page, as_version=4).cells]
        assert all(ids) and len(ids) == len(set(ids))

"""Every notebook is executed, comparable, readable, and holds the module's own functions."""

import ast
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXCUSED = "nbval-ignore-output"
# What each notebook builds; the body has to be the module's.
BUILDS = {
    "01_dataset": {"format_input", "phi3_prompt", "find_problem", "find_near_duplicates"},
    "02_batching": {"Example", "encode_example", "collate_padded", "collate_packed"},
    "03_pretrained_model": {"RMSNorm", "rotary_angles", "rotate", "Attention", "MLP", "Block"},
    "04_finetuning": {"next_token_loss", "learning_rate_at", "train_step"},
    "06_evaluation": {"bootstrap_interval", "mcnemar_test", "token_f1", "rouge_l", "cohens_kappa"}
    | {"log_likelihoods", "parse_score"},
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def repository() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^repository = "(.+)"$', text, re.MULTILINE)[1]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def test_the_notebooks_of_the_course_are_there():
    assert [path.stem for path in NOTEBOOKS][: len(BUILDS)] == list(BUILDS)


def test_every_code_cell_was_executed_in_order_and_without_error(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert all(cell.source.strip() for cell in cells)


def test_at_most_one_code_cell_in_five_is_excused_from_comparison(notebook):
    cells = code_cells(notebook)
    tags = Counter(tag for cell in cells for tag in cell.metadata.get("tags", []))
    assert set(tags) <= {EXCUSED}, f"unknown cell tags {set(tags)}"
    assert tags[EXCUSED] * 5 <= len(cells), f"{tags[EXCUSED]} of {len(cells)} cells are excused"


def test_a_notebook_is_small_and_its_cells_are_short(path, notebook):
    assert path.stat().st_size < 500_000
    assert 25 <= len(notebook.cells) <= 100
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 25, cell.source
    for cell in markdown_cells(notebook):
        words = len(re.sub(r"\(http\S+\)|<[^>]+>", "", cell.source).split())
        listing = cell.source.startswith(("###", "## What you will", "## Takeaways", "## Sources"))
        assert words <= (130 if listing else 85), cell.source


def test_headings_are_one_title_then_sections(notebook):
    headings = []
    for cell in markdown_cells(notebook):
        headings += re.findall(r"^(#+) (.+)$", cell.source, re.MULTILINE)
    levels = [len(marks) for marks, _ in headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert max(levels) <= 3
    titles = [title for _, title in headings]
    assert titles[1] == "What you will learn"
    assert titles[-3:] == ["Takeaways", "What comes next", "Sources"]
    assert len([title for title in titles if title.startswith("Exercise")]) >= 2


def test_the_badge_points_at_the_notebook_itself(path, notebook):
    base = "https://colab.research.google.com/github"
    assert f"({base}/{repository()}/blob/main/notebooks/{path.name})" in notebook.cells[0].source


def test_the_set_up_cell_is_the_same_everywhere(notebook):
    first = code_cells(nbformat.read(NOTEBOOKS[0], as_version=4))[0].source
    assert code_cells(notebook)[0].source == first
    assert f"https://github.com/{repository()}\n" in first


def test_no_device_is_named_and_no_path_of_a_machine_is_stored(path, notebook):
    for cell in code_cells(notebook):
        assert not re.search(r"""["'](cpu|cuda|mps)["']""", cell.source), cell.source
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|Users)/", text)


def bare(node: ast.AST) -> str:
    """Write a definition without docstrings and annotations, to compare two of them."""
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(part) is not None:
            part.body = part.body[1:]
        if isinstance(part, ast.FunctionDef):
            part.returns = None
            if not part.body:
                part.body = [ast.Pass()]
        if isinstance(part, ast.arg):
            part.annotation = None
    return ast.unparse(node)


def definitions(source: str) -> dict[str, str]:
    nodes = ast.parse(source).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: bare(node) for node in nodes if isinstance(node, kinds)}


def module_definitions() -> dict[str, str]:
    found = {}
    for file in sorted((ROOT / "supplementary").glob("*.py")):
        found |= definitions(file.read_text(encoding="utf-8"))
    return found


def test_what_a_notebook_builds_is_what_the_module_holds(path, notebook):
    module, built = module_definitions(), {}
    for cell in code_cells(notebook)[1:]:  # the set-up cell has shell lines
        built |= definitions(cell.source)
    for name in built.keys() & module.keys():
        assert built[name] == module[name], f"{name} differs from supplementary"
    assert BUILDS.get(path.stem, set()) <= built.keys() & module.keys()


def test_a_function_is_built_in_one_notebook_only():
    module = module_definitions()
    names = Counter()
    for file in NOTEBOOKS:
        for cell in code_cells(nbformat.read(file, as_version=4))[1:]:
            names.update(definitions(cell.source).keys() & module.keys())
    assert [name for name, count in names.items() if count > 1] == []

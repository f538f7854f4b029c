"""Every notebook is executed, comparable, readable, and holds the module's own functions."""

import ast
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from supplementary.checks.check import UNATTEMPTED
from supplementary.repository import read_repository

from .slides import slide_types

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
EXCUSED = "nbval-ignore-output"
# What each notebook builds; the body has to be the module's.
BUILDS = {
    "01_dataset": {"format_input", "chatml_prompt", "find_problem", "find_near_duplicates"},
    "02_batching": {"Example", "encode_example", "collate_padded", "collate_packed"},
    "03_pretrained_model": {"RMSNorm", "rotary_angles", "rotate", "Attention", "MLP", "Block"},
    "04_finetuning": {"next_token_loss", "learning_rate_at", "train_step"},
    "05_lora": {"LoRALinear", "replace_layers", "add_lora"},
    "06_evaluation": {"bootstrap_interval", "mcnemar_test", "token_f1", "rouge_l", "cohens_kappa"}
    | {"log_likelihoods", "parse_score"},
    "07_clinic": set(),  # it breaks what the others built
}


@pytest.fixture(params=NOTEBOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def any_path(request):
    return request.param


@pytest.fixture
def any_notebook(any_path):
    return nbformat.read(any_path, as_version=4)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def excused(notebook) -> list[int]:
    """Return the numbers, as `In [n]` shows them, of the cells whose outputs are not compared."""
    tagged = [cell for cell in code_cells(notebook) if EXCUSED in cell.metadata.get("tags", [])]
    return [cell.execution_count for cell in tagged]


def markdown_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def test_the_notebooks_of_the_course_are_there():
    assert [path.stem for path in NOTEBOOKS] == list(BUILDS)
    assert [path.stem for path in SOLUTIONS] == list(BUILDS)


def test_every_code_cell_was_executed_in_order_and_without_error(any_notebook):
    cells = code_cells(any_notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert all(cell.source.strip() for cell in cells)


def test_at_most_one_code_cell_in_five_is_excused_from_comparison(any_notebook):
    cells = code_cells(any_notebook)
    tags = {tag for cell in cells for tag in cell.metadata.get("tags", [])}
    assert tags <= {EXCUSED}, f"unknown cell tags {tags}"
    found = excused(any_notebook)
    assert len(found) * 5 <= len(cells), f"of {len(cells)} code cells, excused are {found}"


LONGER = {"###": 130, "## What you will": 130, "## Takeaways": 130, "## Five questions": 260}


def test_a_notebook_is_small_and_its_cells_are_short(any_path, any_notebook):
    assert any_path.stat().st_size < 500_000
    assert any_path in SOLUTIONS or 25 <= len(any_notebook.cells) <= 100
    for cell in code_cells(any_notebook):
        assert len(cell.source.splitlines()) <= 25, cell.source
    for cell in markdown_cells(any_notebook):
        words = len(re.sub(r"\(http\S+\)|<[^>]+>", "", cell.source).split())
        longer = [most for start, most in LONGER.items() if cell.source.startswith(start)]
        assert words <= max(longer, default=85), cell.source


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


def test_the_badge_points_at_the_notebook_itself(any_path, any_notebook):
    base = "https://colab.research.google.com/github"
    place = any_path.relative_to(ROOT).as_posix()
    assert f"({base}/{read_repository()}/blob/main/{place})" in any_notebook.cells[0].source


def test_the_set_up_cell_is_the_same_everywhere(any_notebook):
    first = code_cells(nbformat.read(NOTEBOOKS[0], as_version=4))[0].source
    assert code_cells(any_notebook)[0].source == first
    assert f"https://github.com/{read_repository()}\n" in first


def test_no_device_is_named_and_no_path_of_a_machine_is_stored(any_path, any_notebook):
    for cell in code_cells(any_notebook):
        assert not re.search(r"""["'](cpu|cuda|mps)["']""", cell.source), cell.source
    text = any_path.read_text(encoding="utf-8")
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


def test_every_plot_has_an_alternative_text(any_notebook):
    """It is kept with the cell, and with the output, where nbconvert looks for it."""
    for cell in code_cells(any_notebook):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(cell.metadata.get("alt", "")) > 40, cell.source
                assert output.metadata.get("image/png", {}).get("alt") == cell.metadata["alt"]


def test_every_drawing_has_a_title_and_a_description(any_notebook):
    for cell in code_cells(any_notebook):
        for output in cell.outputs:
            svg = output.get("data", {}).get("image/svg+xml")
            assert svg is None or ("<title" in svg and "<desc" in svg and 'role="img"' in svg)


def test_the_slides_are_those_that_tests_slides_makes(notebook):
    """If this fails: `python -m tests.slides`."""
    stored = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in notebook.cells]
    assert stored == slide_types(notebook)


def checked(notebook) -> dict[str, str]:
    """Return what each check of an exercise printed."""
    found = {}
    for cell in code_cells(notebook):
        for name in re.findall(r"^(check_\w+)\(", cell.source, re.MULTILINE):
            found[name] = "".join(output.get("text", "") for output in cell.outputs)
    return found


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_exercises_are_unattempted_in_the_notebook_and_right_in_its_solutions(solution):
    path = ROOT / "notebooks" / solution.name
    tasks, solved = (checked(nbformat.read(file, as_version=4)) for file in (path, solution))
    assert len(tasks) >= 2 and tasks.keys() == solved.keys()
    assert set(tasks.values()) == {UNATTEMPTED + "\n"}
    assert all(text.startswith("Right, in all ") for text in solved.values())


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_exercises_say_what_they_cost_and_why_and_hide_a_hint(solution):
    notebook = nbformat.read(ROOT / "notebooks" / solution.name, as_version=4)
    texts = [c.source for c in markdown_cells(notebook) if c.source.startswith("### Exercise ")]
    assert len(texts) == len(checked(notebook))
    for number, text in enumerate(texts, 1):
        assert text.startswith(f"### Exercise {number}: ")
        pattern = r"\*Difficulty: (one|two|three) of three\. Minutes: \d+.*\. Why: .+\*"
        assert re.search(pattern, text) and "<details><summary>Hint</summary>" in text
    (questions,) = [c.source for c in markdown_cells(notebook) if "## Five questions" in c.source]
    assert questions.count("<details><summary>Answer</summary>") == 5

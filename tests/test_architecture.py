"""Imports point one way, and the module does nothing when it is imported."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from .colab import ON_COLAB

MODULE = Path(__file__).resolve().parent.parent / "supplementary"
# Each file may import only files that stand before it.
ORDER = [
    "prompts tokenizer model hardware files answer_key",
    "data download lora templates",
    "gguf_files batching evaluation judge",
    "checkpoints generation runs reports rating",
    "adapters chat",
    "cards",
    "training export chat_box",
    "plots multiple_choice",
    "finetune drawings checks doctor editions repository",
    "cli",
    "__main__",
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}
NOTEBOOKS = sorted((MODULE.parent / "notebooks").rglob("*.ipynb"))
FILES = sorted(path for path in MODULE.rglob("*.py") if path.stem != "__init__")


def imported(path: Path) -> set[str]:
    """Name the parts of the module that a file imports, those of its own folder left out."""
    names, level = set(), len(path.relative_to(MODULE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == level:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_point_one_way(path):
    name = path.relative_to(MODULE).with_suffix("").parts[0]
    assert name in RANK, f"give {name} its place in ORDER"
    wrong = [other for other in imported(path) if RANK[other] >= RANK[name]]
    assert wrong == [], f"{name} may not import {wrong}"


def imported_at_once(body: list[ast.stmt]) -> set[str]:
    """Name the packages that are imported with a file, those within its functions left out."""
    names = set()
    for node in body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif not isinstance(node, ast.FunctionDef):
            names |= imported_at_once(list(ast.iter_child_nodes(node)))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_needs_only_what_colab_and_the_set_up_cell_offer(path):
    set_up = nbformat.read(NOTEBOOKS[0], as_version=4).cells
    installs = re.search(r"!pip install --quiet ([a-z_ ]+)", str(set_up)).group(1).split()
    offered = {*installs, *ON_COLAB, "IPython", *sys.stdlib_module_names}
    needed = imported_at_once(ast.parse(path.read_text(encoding="utf-8")).body)
    assert needed <= offered, "import it in the function that uses it, or let the cell install it"


def test_importing_prints_nothing_and_chooses_nothing():
    code = (
        "import torch; state = torch.random.get_rng_state()\n"
        "import supplementary.cli\n"
        "assert torch.equal(state, torch.random.get_rng_state())\n"
        "assert torch.get_default_dtype() == torch.float32\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=MODULE.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Names that run what a file or a model says, or fetch what no hash vouches for.
UNSAFE = {"eval", "exec", "compile", "__import__", "pickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE |= {"torch.load", "np.load", "pd.read_pickle", "yaml.load", "os.system", "os.popen"}
UNSAFE |= {"tiktoken.get_encoding", "tiktoken.encoding_for_model", "torch.hub", "trust_remote_code"}
UNSAFE |= {"shell=True"}


def used_names(source: str) -> set[str]:
    """Return every name, dotted name, import and keyword of a program; strings are left out."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name | ast.Attribute):
            names.add(ast.unparse(node))
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(node, ast.keyword):
            names |= {node.arg, f"{node.arg}={ast.unparse(node.value)}"}
    return names


@pytest.mark.parametrize("name", sorted(UNSAFE))
def test_unsafe_names_are_found_in_a_program(name):
    program = f"run({name})" if "=" in name else f"x = {name}"
    assert name in used_names(program)
    assert name not in used_names(f"x = {name!r}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_module_runs_no_data_and_reads_no_pickle(path):
    assert used_names(path.read_text(encoding="utf-8")) & UNSAFE == set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_notebook_runs_no_data_and_reads_no_pickle(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    source = "\n".join(TransformerManager().transform_cell(cell.source) for cell in cells)
    assert used_names(source) & UNSAFE == set()

"""Imports point one way, and the module does nothing when it is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_no_file_needs_a_network_for_the_tokenizer_or_reads_pickles():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "tiktoken.get_encoding" not in text
        assert "torch.load" not in text and "import pickle" not in text

"""A fork changes the address in one command, and badges and set-up cells follow."""

import re
import shutil
from pathlib import Path

import pytest

from supplementary.cli import main
from supplementary.repository import read_repository, set_repository

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def fork(tmp_path):
    """A copy of the files that name the repository."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path


def texts(root):
    paths = [root / "pyproject.toml", root / "README.md", *root.rglob("*.ipynb")]
    return {path.relative_to(root): path.read_text(encoding="utf-8") for path in paths}


def test_every_address_is_changed_and_nothing_else(fork):
    old, before = read_repository(fork), texts(fork)
    changed = set_repository("octocat/Hello-World.2", fork)
    after = texts(fork)
    assert read_repository(fork) == "octocat/Hello-World.2"
    assert {path.relative_to(fork) for path in changed} == set(before)
    assert not [path for path, text in after.items() if old in text]
    assert {
        path: text.replace("octocat/Hello-World.2", old) for path, text in after.items()
    } == before
    assert set_repository(old, fork) and texts(fork) == before
    assert set_repository(old, fork) == []


@pytest.mark.parametrize("name", ["", "workshop", "a/b/c", "a b/c", "https://github.com/a", 'a/"'])
def test_a_name_of_another_form_changes_nothing(fork, name):
    before = texts(fork)
    with pytest.raises(ValueError, match=re.escape(f"{name!r} is not of the form OWNER/NAME")):
        set_repository(name, fork)
    assert texts(fork) == before


def test_a_longer_name_that_begins_alike_is_left_alone(fork):
    path, old = fork / "README.md", read_repository(fork)
    path.write_text(f"https://github.com/{old}-2 https://github.com/{old}", encoding="utf-8")
    set_repository("a/b", fork)
    text = path.read_text(encoding="utf-8")
    assert text == f"https://github.com/{old}-2 https://github.com/a/b"


def test_the_command_explains_a_wrong_name(capsys):
    assert main(["set-repository", "workshop"]) == 1
    assert "OWNER/NAME" in capsys.readouterr().err

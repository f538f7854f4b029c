"""The repository's address, which badges and set-up cells repeat, and its change for a fork."""

import re
from pathlib import Path

from .files import whole_file

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ("https://github.com/", "https://colab.research.google.com/github/")
SETTING = re.compile(r'^repository = "([^"\n]+)"$', re.MULTILINE)  # in pyproject.toml


def read_repository(root: Path = ROOT) -> str:
    """Return OWNER/NAME of the repository, the one place where it is set.

    Raises:
        ValueError: if `pyproject.toml` does not say.
    """
    found = SETTING.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f'{root / "pyproject.toml"} has no line `repository = "OWNER/NAME"`')
    return found[1]


def set_repository(name: str, root: Path = ROOT) -> list[Path]:
    """Let all badges and set-up cells point at another repository.

    The setting itself is changed last, so that an interrupted change can be repeated.

    Args:
        name: OWNER/NAME, as GitHub writes it.
        root: the folder of the workshop.

    Returns:
        The files that were changed.

    Raises:
        ValueError: if `name` is not of that form.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+", name):
        raise ValueError(f"{name!r} is not of the form OWNER/NAME, for instance octocat/workshop")
    old = read_repository(root)
    links = re.compile("(" + "|".join(map(re.escape, HOSTS)) + ")" + re.escape(old) + r"(?![\w.-])")
    changed = []
    for path in [root / "README.md", *sorted((root / "notebooks").rglob("*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        _write(path, text, links.sub(lambda found: found[1] + name, text), changed)
    path = root / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    _write(path, text, SETTING.sub(f'repository = "{name}"', text), changed)
    return changed


def _write(path: Path, old: str, new: str, changed: list[Path]) -> None:
    """Replace a file whose text has changed, and note it."""
    if new != old:
        with whole_file(path) as beside:
            beside.write_text(new, encoding="utf-8")
        changed.append(path)

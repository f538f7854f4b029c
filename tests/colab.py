"""Play Colab: run a notebook where nothing is but what Colab has.

    python -m tests.colab            # all notebooks of the course, about an hour on two cores
    python -m tests.colab 01 07      # those whose names begin so

A bare virtual environment gets torch, numpy, pandas, matplotlib, IPython and ipykernel alone, with
a stand-in for `google.colab`; the notebook lies alone in an empty folder; and the repository's
address leads to a local copy of it. Then every cell is executed, from the first to the last.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient

from supplementary.repository import read_repository

ROOT = Path(__file__).resolve().parent.parent
ON_COLAB = ("torch", "numpy", "pandas", "matplotlib", "ipykernel")  # ipykernel brings IPython
KEPT_OUT = (".git", "runs", "__pycache__", ".venv", "recall", ".*_cache", ".ipynb_checkpoints")


def wanted(name: str) -> str:
    """Return the line of `requirements.txt` for a package, without its reason."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return next(line.split("#")[0].strip() for line in lines if re.match(rf"{name}\b", line))


def make_environment(folder: Path) -> Path:
    """Make the bare virtual environment with its stand-in; return its Python.

    Raises:
        subprocess.CalledProcessError: if the packages cannot be had.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = [wanted(name) for name in ON_COLAB]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    library = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    stand_in = library / "google" / "colab"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    return python


def serve_repository(folder: Path) -> Path:
    """Put the working tree into a git repository of its own; return the folder."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*KEPT_OUT))
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def play(notebook: Path, python: Path, repository: Path, folder: Path) -> Path:
    """Execute a notebook alone in an empty folder, as Colab would; return the workshop's copy.

    Args:
        notebook: the file.
        python: of the bare environment.
        repository: the folder that stands for the address in the set-up cell.
        folder: an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    content, kernels = folder / "content", folder / "share" / "jupyter" / "kernels" / "bare"
    startup = folder / "ipython" / "profile_default" / "startup"
    for made in (content, kernels, startup):
        made.mkdir(parents=True)
    shutil.copy(notebook, content)
    # In a real runtime the module is there before the first cell.
    (startup / "00.py").write_text("import google.colab\n", encoding="utf-8")
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "bare", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {
        "PATH": f"{python.parent}{os.pathsep}{env['PATH']}",
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{read_repository()}",
    }
    with mock.patch.dict(os.environ, JUPYTER_PATH=str(folder / "share" / "jupyter")):
        client = NotebookClient(
            nbformat.read(content / notebook.name, as_version=4),
            timeout=3000,
            kernel_name="bare",
            resources={"metadata": {"path": str(content)}},
        )
        client.execute(env=env)
    return content / read_repository().split("/")[1]


def main(names: list[str]) -> None:
    """Play the notebooks whose names begin with one of `names`; all if there are none."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        python = make_environment(folder / "venv")
        repository = serve_repository(folder / "repository")
        for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
            if not names or notebook.name.startswith(tuple(names)):
                start = time.perf_counter()
                play(notebook, python, repository, folder / notebook.stem)
                print(f"{notebook.stem}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

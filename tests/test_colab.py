"""A notebook runs from its badge: alone, on a machine that has what Colab has, and no more."""

import subprocess

import pytest

from .colab import ON_COLAB, ROOT, make_environment, play, serve_repository


def versions(python):
    code = (
        "from importlib.metadata import distributions as d;"
        "print(*sorted(f'{x.name}=={x.version}' for x in d()))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split("==") for line in done.stdout.split())


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("colab") / "venv")


def test_the_first_notebook_runs_alone_and_installs_only_what_colab_lacks(python, tmp_path):
    before = versions(python)
    assert "gguf" not in before and "tiktoken" not in before
    repository = serve_repository(tmp_path / "repository")
    workshop = play(ROOT / "notebooks" / "01_dataset.ipynb", python, repository, tmp_path / "play")
    assert (workshop / "supplementary" / "__init__.py").is_file()
    after = versions(python)
    assert {"gguf", "tiktoken"} <= after.keys() - before.keys()
    assert {name: after[name] for name in ON_COLAB} == {name: before[name] for name in ON_COLAB}

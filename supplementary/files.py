"""Files that are either whole or not there: written beside their place first, then renamed."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def _refuse_others(folder: Path, replaces: tuple[str, ...]) -> None:
    """Raise FileExistsError if `folder` is a file or holds something that is not to be replaced."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give another folder")
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() or not any(path.match(pattern) for pattern in replaces):
            raise FileExistsError(
                f"{folder} holds {path.name}, which would be lost; give another folder, or move "
                "it away"
            )


@contextmanager
def whole_folder(folder: Path, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """Give an empty folder to write in; it takes the place of `folder` when the block ends well.

    If the block fails, `folder` stays as it was.

    Args:
        folder: where the new folder will be.
        replaces: patterns of the files that `folder` may hold already, and that are then gone.

    Raises:
        FileExistsError: if `folder` is a file, or holds anything else.
    """
    folder = Path(folder)
    _refuse_others(folder, replaces)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)
        for path in beside.rglob("*"):  # some writers give files to their owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            _refuse_others(folder, replaces)  # it may have been filled meanwhile
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.replace(old / folder.name)
            beside.replace(folder)
            shutil.rmtree(old)
        else:
            beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes the name `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".part", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all."""
    with whole_file(path) as beside:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        beside.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path):
    """Read a JSON file.

    Raises:
        ValueError: if it is not valid JSON, naming the file and the place.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are both ValueErrors
        raise ValueError(f"{path} is not valid JSON ({error}); mend or replace the file") from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file.

    Raises:
        OSError: if it cannot be written, for instance because the disk is full.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it hides the operating system's error
        raise OSError(f"{path} cannot be written ({error})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: if it is damaged, or holds an infinite number or NaN.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or make it again") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path} is damaged ({name} is not finite); fetch or make it again")
    return tensors


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

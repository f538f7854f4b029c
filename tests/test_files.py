import hashlib
import json
import threading

import pytest
import torch

from supplementary.files import (
    read_json,
    read_tensors,
    sha256,
    whole_file,
    whole_folder,
    write_json,
    write_tensors,
)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_tensors_with_numbers_that_are_none_are_damaged_and_named(tmp_path, value):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"good": torch.zeros(2), "bad": torch.tensor([0, value]).bfloat16()})
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged \(bad is not finite\)"):
        read_tensors(path)


def test_tensors_come_back_as_they_were_written(tmp_path):
    tensors = {
        "steps": torch.tensor(3),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "half": torch.rand(4).bfloat16().requires_grad_(),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_appears_under_its_name_only_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with whole_file(path) as beside:
        beside.write_text("new", encoding="utf-8")
        assert beside.parent == path.parent
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "new"
    assert names(path.parent) == ["file.txt"]


def test_a_whole_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("a long old text", encoding="utf-8")
    with whole_file(path) as beside:
        beside.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "a long old text"
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(error), whole_file(path) as beside:
        beside.write_text("half", encoding="utf-8")
        raise error
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_failed_block_leaves_no_file_where_none_was(tmp_path):
    with pytest.raises(ValueError), whole_file(tmp_path / "file.txt") as beside:
        beside.write_text("half", encoding="utf-8")
        raise ValueError
    assert names(tmp_path) == []


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file.txt"
    meet = threading.Barrier(2, timeout=10)

    def write(letter):
        with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
            for _ in range(3):
                meet.wait()
                file.write(letter)
                file.flush()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text(encoding="utf-8") in ("aaa", "bbb")
    assert names(tmp_path) == ["file.txt"]


def test_a_whole_folder_appears_only_when_the_block_ends(tmp_path):
    folder = tmp_path / "deep" / "model"
    with whole_folder(folder) as beside:
        (beside / "a").touch()
        assert not folder.exists()
    assert names(folder) == ["a"]
    assert names(folder.parent) == ["model"]


def test_a_whole_folder_takes_the_place_of_all_that_the_old_one_held(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with whole_folder(folder, ("o*",)) as beside:
        assert names(beside) == []
        (beside / "new").touch()
        assert names(folder) == ["old"]
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(error), whole_folder(folder, ("old",)) as beside:
        (beside / "half").touch()
        raise error
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_folder_that_holds_something_else_is_refused_and_stays(tmp_path, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    (folder / "older").touch() if kind == "file" else (folder / "older").mkdir()
    with (
        pytest.raises(FileExistsError, match=r"model holds older, which would be lost"),
        whole_folder(folder, ("old",)),
    ):
        raise AssertionError("the block was entered")
    assert names(folder) == ["old", "older"]
    assert names(tmp_path) == ["model"]


def test_a_folder_that_is_filled_meanwhile_stays(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(FileExistsError, match="holds precious"), whole_folder(folder) as beside:
        (beside / "new").touch()
        folder.mkdir()
        (folder / "precious").touch()
    assert names(folder) == ["precious"]
    assert names(tmp_path) == ["model"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"thesis\.txt is a file"), whole_folder(path):
        raise AssertionError("the block was entered")
    assert path.read_text(encoding="utf-8") == "precious"


def test_json_is_indented_and_keeps_letters_beyond_ascii(tmp_path):
    write_json(tmp_path / "a.json", {"word": "naïve 中"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "word": "naïve 中"\n}\n'


@pytest.mark.parametrize("value", [{}, [], None, "", {"a": [1, 2.5, True, None, "é"]}])
def test_json_comes_back_as_it_was(tmp_path, value):
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [1]
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b'{"a": "\xff"}'])
def test_what_is_not_json_is_refused_and_the_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("size", [0, 3, 1 << 20, (1 << 20) + 1])
def test_sha256_covers_the_whole_file_whatever_its_size(tmp_path, size):
    content = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


def test_sha256_of_abc_is_the_published_one(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "file") == expected

"""The doctor finds what is missing, names the remedy, and runs where packages are missing."""

import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from supplementary import cli, doctor
from supplementary.doctor import Finding
from supplementary.download import GGUF_NAME

ROOT = Path(__file__).resolve().parent.parent


def test_python_packages_and_data_of_the_tests_are_in_order():
    for examination in (doctor.check_python, doctor.check_packages, doctor.check_data):
        assert doctor.examine(examination).remedy == ""


def test_missing_and_old_packages_are_named_with_the_command(tmp_path):
    requirements = tmp_path / "requirements.txt"
    lines = [
        "numpy>=1.0  # fine",
        "pytest<=1.0",
        "no-such-package>=2",
        "other; python_version < '3'",
    ]
    requirements.write_text("\n".join(lines), encoding="utf-8")
    finding = doctor.check_packages(requirements)
    assert finding.name.startswith("packages, 1 of 3: pytest ")
    assert finding.name.endswith(" is not <=1.0; no-such-package is missing")
    assert "pip install -r requirements.txt" in finding.remedy and "--no-index" in finding.remedy


def test_an_interpreter_without_any_package_still_gets_its_remedies():
    command = [sys.executable, "-S", "-m", "supplementary", "finetune"]  # -S: no site-packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    assert done.stderr.startswith("error: No module named ")
    assert (
        "problem  packages: not even pip is there\n         remedy: `python -m venv" in done.stdout
    )
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(("version", "problem"), [((3, 9, 1), True), ((3, 12, 0), False)])
def test_a_python_out_of_range_is_named(monkeypatch, version, problem):
    monkeypatch.setattr(sys, "version_info", version)
    assert bool(doctor.check_python().remedy) == problem


def test_a_model_that_is_missing_or_damaged_is_told_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKSHOP_CACHE", str(tmp_path))
    assert doctor.check_model().name == f"model: {tmp_path / GGUF_NAME} is missing"
    (tmp_path / GGUF_NAME).write_bytes(b"half of it")
    finding = doctor.check_model()
    assert finding.name == f"model: {tmp_path / GGUF_NAME} is damaged"
    assert finding.remedy.startswith("remove it; then with a network: ")


def test_data_that_are_missing_or_cut_are_named(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "instruction-data.json").write_text("[]", encoding="utf-8")
    (tmp_path / "data" / "answer-key.json").write_bytes(bytes(200_000))
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    named = "data: instruction-data.json, adapter/adapter_model.safetensors: missing or cut"
    assert doctor.check_data().name == named


def test_jupyter_of_another_environment_is_a_problem(monkeypatch, tmp_path):
    other = tmp_path / "jupyter"
    for found, begins in ((None, "jupyter: no such"), (other, f"jupyter: {other} belongs")):
        monkeypatch.setattr(doctor.shutil, "which", lambda name, found=found: found)
        finding = doctor.check_jupyter()
        assert finding.name.startswith(begins) and "activate" in finding.remedy
    monkeypatch.setattr(doctor.shutil, "which", lambda name: Path(sys.executable).with_name(name))
    assert doctor.check_jupyter() == Finding("jupyter")


def test_little_memory_and_little_disk_are_problems(monkeypatch, tmp_path):
    assert doctor.total_memory() is None or doctor.total_memory() > 2**28
    for total, problem in ((4 * 2**30, True), (16 * 2**30, False), (None, False)):
        monkeypatch.setattr(doctor, "total_memory", lambda total=total: total)
        assert bool(doctor.check_memory().remedy) == problem
    usage = namedtuple("usage", "total used free")
    for free, problem in ((2**30, True), (2**36, False)):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
        assert bool(doctor.check_folders().remedy) == problem
    monkeypatch.setattr(doctor, "ROOT", tmp_path / "gone")
    assert "cannot be written" in doctor.check_folders().name


@pytest.mark.parametrize("fails", [True, False])
def test_the_command_prints_a_line_each_and_its_status_says_whether_all_is_well(
    monkeypatch, capsys, fails
):
    def check_luck():
        if fails:
            raise RuntimeError("no luck")
        return Finding("luck")

    monkeypatch.setattr(doctor, "EXAMINATIONS", [doctor.check_python, check_luck])
    assert cli.main(["doctor"]) == int(fails)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok       Python 3.")
    if fails:
        assert lines[1] == "problem  luck: RuntimeError: no luck" and "remedy: " in lines[2]
        assert lines[-1] == "1 problem"
    else:
        assert lines[1:] == ["ok       luck", "", "ready for the workshop"]


@pytest.mark.parametrize(
    ("device", "threads", "minutes", "said"),
    [
        ("cpu", 2, 13, "about 13"),
        ("cpu", 8, 13, "about 13"),
        ("cpu", 1, 13, "about 26"),
        ("mps", 8, 13, "less than 13"),
        ("cpu", 2, 1, "one or less"),
    ],
)
def test_a_notebook_begins_with_what_to_expect_here(monkeypatch, device, threads, minutes, said):
    monkeypatch.setattr("supplementary.hardware.pick_device", lambda: torch.device(device))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(doctor, "total_memory", lambda: 16 * 2**30)
    (row,) = doctor.describe_machine(minutes).to_dict("records")
    assert row["threads"] == threads and row["memory"] == "16 GiB" and row["minutes"] == said
    assert row["device"] in ("CPU", "GPU (Apple)") and row["precision"] in ("float32", "bfloat16")


def test_the_memory_of_a_gpu_is_its_own(monkeypatch):
    monkeypatch.setattr("supplementary.hardware.pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (7, 5))
    memory = SimpleNamespace(total_memory=15 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *device: memory)
    (row,) = doctor.describe_machine(5).to_dict("records")
    assert (row["device"], row["precision"], row["memory"]) == ("Tesla T4", "float16", "15 GiB")
    assert row["minutes"] == "less than 5"


def test_memory_that_the_system_does_not_tell_is_unknown(monkeypatch):
    monkeypatch.setattr("supplementary.hardware.pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(doctor, "total_memory", lambda: None)
    assert doctor.describe_machine(5)["memory"].tolist() == ["unknown"]

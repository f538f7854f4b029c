"""A killed run goes on to the very weights of a run that nobody touched, whenever it was killed.

Twenty kills instead of three, about two minutes: `KILLS=20 pytest tests/test_kill.py`.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from jupyter_client.manager import run_kernel
from safetensors.torch import load_file

from supplementary.runs import latest_checkpoint

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("KILLS", "3"))
STEPS = 60
RUN = f"""
import os, sys
from pathlib import Path
import torch
from supplementary import runs
from supplementary.data import Example
from supplementary.model import CausalLM, ModelConfig
from supplementary.training import TrainSettings, train

torch.set_num_threads(1)
torch.manual_seed(0)
model = CausalLM(ModelConfig(97, 32, 64, 2, 4, 2, 8, max_position_embeddings=64))
draw = lambda low, high: torch.randint(low, high, (1,)).item()
examples = [Example([draw(1, 97) for _ in range(draw(4, 12))] + [0], 2) for _ in range({STEPS})]
settings = TrainSettings(epochs=2, batch_size=2, checkpoint_every=1, eval_every=1000)
"""
CHILD = f"""{RUN}
if len(sys.argv) > 2:  # die in the middle of writing the checkpoint of that step
    write = runs.write_tensors
    def write_and_die(path, tensors):
        if path.name == "optimizer.safetensors" and f"-{{int(sys.argv[2]):06d}}" in str(path):
            path.write_bytes(b"half")
            os._exit(9)
        write(path, tensors)
    runs.write_tensors = write_and_die

def on_step(row):
    if len(sys.argv) > 3 and row["step"] == int(sys.argv[3]):  # no file can grow from there on
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, resource.RLIM_INFINITY))

print("begins", flush=True)
train(model, examples, [], settings, Path(sys.argv[1]), True, on_step=on_step)
print("ends", flush=True)
"""


def start(folder: Path, *faults: int) -> subprocess.Popen:
    """Start or resume the run, and wait until its training begins.

    Args:
        folder: of the run.
        faults: at most two: the step in whose checkpoint it dies (0 for none), and the step from
            which on the disk is full.
    """
    command = [sys.executable, "-c", CHILD, str(folder), *map(str, faults)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE if faults else None}
    child = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    assert child.stdout.readline() == "begins\n"
    return child


def finish(folder: Path) -> None:
    with start(folder) as child:
        assert child.stdout.read() == "ends\n"
    assert child.returncode == 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(folder)
    assert checkpoint.name == f"checkpoint-{STEPS:06d}"
    names = ("weights.safetensors", "optimizer.safetensors")
    return {f"{n} {k}": v for n in names for k, v in load_file(checkpoint / n).items()}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The last checkpoint of a run that nobody touched, and how long its training took."""
    folder = tmp_path_factory.mktemp("untouched") / "run"
    with start(folder) as child:
        began = time.perf_counter()
        assert child.stdout.read() == "ends\n"
        seconds = time.perf_counter() - began
    return weights(folder), seconds


def run_cell(client, source: str) -> str:
    """Run a cell; return "ok" or the name of the exception that ended it."""
    # Older kernels would drop the cell after a failed one, if it comes as fast as here.
    quiet = {"output_hook": lambda message: None, "stop_on_error": False}
    reply = client.execute_interactive(source, timeout=120, **quiet)
    return reply["content"].get("ename") or reply["content"]["status"]


def assert_equal(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = weights(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(untouched, tmp_path):
    expected, seconds = untouched
    moments, killed, run = random.Random(0), 0, 0
    while killed < KILLS:
        folder, run = tmp_path / f"run-{run}", run + 1
        for _ in range(4):  # kills of one and the same run, each after it went on
            with start(folder) as child:
                time.sleep(moments.uniform(0, 0.6 * seconds))
                over = child.poll() is not None
                child.kill()
            killed += not over
            if over or killed == KILLS:
                break
        finish(folder)
        assert_equal(folder, expected)


@pytest.mark.parametrize("step", [1, 7])
def test_a_run_that_dies_while_it_writes_a_checkpoint_loses_nothing_before(
    untouched, tmp_path, step
):
    with start(tmp_path, step) as child:
        child.stdout.read()
    assert child.returncode == 9
    last = latest_checkpoint(tmp_path)
    assert (last.name if last else None) == (f"checkpoint-{step - 1:06d}" if step > 1 else None)
    finish(tmp_path)
    assert_equal(tmp_path, untouched[0])


@pytest.mark.skipif(os.name == "nt", reason="the size of files cannot be limited there")
def test_a_run_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(untouched, tmp_path):
    """The limit on the size of a file fails a write in its middle, as a full disk does."""
    with start(tmp_path, 0, 7) as child:
        said = child.communicate()[1]
    assert child.returncode == 1
    assert "OSError: " in said and ".safetensors cannot be written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000006"]
    finish(tmp_path)
    assert_equal(tmp_path, untouched[0])


def test_an_interrupted_cell_leaves_a_kernel_that_goes_on_with_the_run(untouched, tmp_path):
    """What the stop button of a notebook does, in the middle of training."""
    folder = tmp_path / "run"
    # The interrupt comes from inside, after some steps, as a slow machine has no fixed moment.
    stop = "lambda row: row['step'] == 20 and signal.raise_signal(signal.SIGINT)"
    train = f"train(model, examples, [], settings, Path({str(folder)!r}), True, on_step={{}})"
    with run_kernel(cwd=str(ROOT)) as client:
        assert run_cell(client, RUN + "import signal") == "ok"
        assert run_cell(client, train.format(stop)) == "KeyboardInterrupt"
        assert latest_checkpoint(folder).name in ("checkpoint-000019", "checkpoint-000020")
        assert run_cell(client, train.format("lambda row: None")) == "ok"
    assert_equal(folder, untouched[0])

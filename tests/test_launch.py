"""The commands of the README through the real launcher: processes, threads, Ctrl-C, and errors as a user sees them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch"]
TINY = (
    "--epochs 1 --twin null --evaluation.attacks [clean] --validation.steps 2 --attack.steps 1 "
    "--model.kwargs.channels [8,16]"
).split()


def launch(*words: object, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, *map(str, words)], cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=900
    )


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def on_two_processes(folder: Path, *words: object) -> tuple[subprocess.CompletedProcess[str], dict, dict]:
    """Train in `folder`/run; what the launcher answered, and what each process saw (launched.py)."""
    found = launch(
        "--multi_gpu", "--num_processes", 2, "--main_process_port", 0,
        ROOT / "tests/launched.py", folder, 2, "--output", folder / "run", *TINY, *words,
        env={"ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return found, *(json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2))


@pytest.mark.parametrize("method", ["arat", "trades"])
def test_two_processes_hold_the_same_weights_and_statistics(tmp_path, method):
    found, first, second = on_two_processes(tmp_path, "--epochs", 2, "--method.name", method, "--twin.name", "standard")
    for same in ("parameters", "buffers", "balance"):
        assert first[same] == second[same], same
    assert first["noise"] != second["noise"]  # the attacks' random starts
    assert first["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    assert found.stdout.count("epoch 1/2") == 2  # the model and its twin; one process speaks
    result = json.loads((tmp_path / "run/results.json").read_text())
    assert result["clean"]["n"] == 360  # both shares, each image once


def test_two_processes_share_the_perturbations_of_a_warm_start_and_what_a_guard_measured(tmp_path):
    _, first, second = on_two_processes(
        tmp_path, "--epochs", 2, "--warm_start", "true", "--guard.every", 3, "--guard.images", 63
    )
    assert first["parameters"] == second["parameters"]
    assert first["guard"] == second["guard"] and first["guard"][0] > 0
    # In the second epoch, all images but those of a last, partial batch have a start, whichever process attacked them.
    assert first["without_start"] == second["without_start"] < 0.25
    assert not list((tmp_path / "run").glob("perturbations-*"))


def test_what_two_processes_train_does_not_depend_on_when_they_save(tmp_path):
    seen = {}
    for minutes in (0, 60):
        folder = tmp_path / str(minutes)
        folder.mkdir()
        _, seen[minutes], _ = on_two_processes(
            folder, "--log_every", 3, "--checkpoint_minutes", minutes, "--keep_checkpoints", 9
        )
        assert len(list((folder / "run/checkpoints").iterdir())) == (3 if minutes == 0 else 1)
    assert seen[0]["parameters"] == seen[60]["parameters"]


def test_the_launcher_sets_one_thread_and_the_engine_all_cores(tmp_path):
    found = launch("recipes/train.py", "--output", tmp_path / "run", *TINY)
    assert found.returncode == 0, found.stderr[-2000:]
    assert f"1 process of {len(os.sched_getaffinity(0))} threads" in found.stdout
    assert "values were not passed" not in found.stdout + found.stderr


def test_ctrl_c_leaves_a_checkpoint_that_resumes(tmp_path):
    command = [
        sys.executable,
        "recipes/train.py",
        "--output",
        tmp_path / "run",
        *TINY,
        "--epochs",
        "200",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "run/summary.jsonl", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err[-2000:]
    assert "Traceback" not in err
    assert f"--resume {tmp_path / 'run'} goes on" in out.splitlines()[-1].replace("`", "")
    done = len((tmp_path / "run/summary.jsonl").read_text().splitlines())
    resumed = subprocess.run(
        [sys.executable, "recipes/train.py", "--resume", str(tmp_path / "run"), "--epochs", str(done + 1)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "run/summary.jsonl").read_text().splitlines()]
    assert rows[-1]["epoch"] == done + 1
    assert "resumed from" in resumed.stdout


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config digitz", "digits"),
        ("--attack.eps 8", "write 8/255 rather than 8"),
        ("--method.nam madry", "method.name"),
        ("--data.val_size -1", "negative"),
    ],
)
def test_a_typo_is_answered_in_one_line_and_at_once(words, message):
    code, _, err, imported = with_imports("recipes/train.py", *words.split())
    assert code == 2
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not imported & SLOW


@pytest.mark.parametrize(
    "module", ["timm_arat.train", "timm_arat.evaluation", "benchmarks", "benchmarks.report", "benchmarks.speed"]
)
def test_help_is_quick_and_the_entry_is_also_a_module(module):
    code, out, _, imported = with_imports("-m", module, "--help", cwd=Path("/"))
    assert code == 0 and "usage:" in out
    assert not imported & SLOW


SLOW = {"torch", "timm", "accelerate", "datasets", "sklearn", "matplotlib"}  # seconds of waiting for an answer


def with_imports(*words: str, cwd: Path = ROOT) -> tuple[int, str, str, set[str]]:
    """Exit code, stdout and stderr of Python with these words, and the modules that it imported."""
    command = [sys.executable, "-X", "importtime", *words]
    found = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)
    lines = found.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "timm_arat" in imported
    said = "\n".join(line for line in lines if not line.startswith("import time:"))
    return found.returncode, found.stdout, said, imported

"""What a run tells a person: lines that fit a terminal, and signs of life in a pipe."""

import re

import pytest
import torch
from accelerate import Accelerator
from helpers_engine import fresh_accelerate  # noqa: F401  # a fixture

from timm_arat.engine import log as log_module
from timm_arat.engine.log import Log

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
TERMS = {name: torch.tensor(0.123456) for name in ("loss", "ce_adv", "invariance", "ce_clean", "balance", "acc_adv")}
ROW = {"epoch": 9, "seconds": 1275.0, "images_per_second": 7.1, "lr": 0.0346, "val_clean": 0.64, "val_robust": 0.235}


def test_the_line_of_an_epoch_fits_a_terminal_and_is_in_the_log(tmp_path, capsys):
    log = Log(Accelerator(cpu=True), tmp_path, 10)
    log.begin(8, 100, steps=141, done=0)
    log.step(TERMS, 64, 0.0346, 1)
    log.end(ROW, 100, 141)
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) <= 120 and "epoch   9/100" in line and line.endswith("validation clean 64.0, robust 23.5 %")
    assert (tmp_path / "train.log").read_text() == f"{line}\n"
    (row,) = log.rows()
    assert row["balance"] == row["acc_adv"] == pytest.approx(0.123456), "the row has what the line leaves out"


def test_a_long_epoch_in_a_pipe_says_how_long_it_will_take(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    log = Log(Accelerator(cpu=True), tmp_path, 1000)
    log.begin(0, 3, steps=100, done=40)
    for step in range(41, 61):
        now[0] += 10
        log.step(TERMS, 64, 0.1, step)
    lines = capsys.readouterr().out.splitlines()
    assert [int(re.search(r"step (\d+)/100", line).group(1)) for line in lines] == [47, 54], "one a minute"
    assert "8 min left" in lines[1]  # 46 steps of ten seconds

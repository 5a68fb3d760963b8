"""Which epoch is the best one."""

import subprocess
import sys

import pytest

from timm_arat.engine.best import best_epoch, score

ROWS = [
    {"epoch": 1, "val_clean": 0.9, "val_robust": 0.1},
    {"epoch": 2, "val_clean": 0.75, "val_robust": 0.5},
    {"epoch": 3, "val_clean": 0.75, "val_robust": 0.5},
    {"epoch": 4, "val_clean": 0.5, "val_robust": 0.625},
]


@pytest.mark.parametrize(("select", "best", "value"), [("sum", 2, 1.25), ("clean", 1, 0.9), ("robust", 4, 0.625)])
def test_the_first_epoch_with_the_highest_score_is_best(select, best, value):
    assert best_epoch(ROWS, select) == best
    assert max(score(row, select) for row in ROWS) == value


@pytest.mark.parametrize("select", ["sum", "clean", "robust"])
def test_without_validation_the_last_epoch_is_best(select):
    assert best_epoch([{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 0.2}], select) == 2


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="select='mean' is not one of sum, robust, clean"):
        score(ROWS[0], "mean")
    with pytest.raises(ValueError, match="has not finished an epoch"):
        best_epoch([], "sum")


def test_the_rule_imports_neither_torch_nor_accelerate():
    code = "import sys, timm_arat.engine.best; print({'torch', 'timm', 'accelerate'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"

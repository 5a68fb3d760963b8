"""The result of an evaluation as data: intervals, JSON, merging, comparing, the table."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from timm_arat.evaluation import ImageSet, Robustness, Score, compare, merge, table
from timm_arat.evaluation._compare import Paired, mcnemar
from timm_arat.evaluation._robustness import eps_text
from timm_arat.evaluation._score import pack_bits, pack_indices, unpack_bits, unpack_indices, wilson


def score(correct, indices=None, num_classes=3):
    indices = range(len(correct)) if indices is None else indices
    return Score.of(list(indices), correct, [i % num_classes for i in indices], num_classes)


def result(indices=range(20), seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    flags = torch.rand(100, generator=generator)
    scores = {
        name: score([bool(flags[i] > bar) for i in indices], indices)
        for name, bar in zip(
            ("clean", "fgsm", "pgd", "apgd-ce", "apgd-t", "fab-t", "square"), torch.linspace(0.1, 0.7, 7), strict=True
        )
    }
    fields = {
        "model": "net",
        "weights": "ab",
        "data": ImageSet("blobs", "test", 100, "aa", 50, 0, True, f"{len(indices):032x}"),
        "norm": "linf",
        "eps": 8 / 255,
        "scores": scores,
        "attacks": {"pgd": "PGD()"},
        "zero_gradient": 0,
        "seed": 0,
        "batch_size": 10,
        "seconds": {"clean": 1.0, "pgd": 2.0},
        "versions": {"torch": "2"},
        "device": "cpu",
        "command": "evaluate",
    }
    return Robustness(**(fields | changes))


@pytest.mark.parametrize(
    "right, n, low, high", [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0)]
)
def test_interval_is_wilsons(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-6)


def test_half_width_at_common_sizes():
    for n, points in ((500, 4.4), (1000, 3.1), (10_000, 1.0)):
        low, high = wilson(n // 2, n)
        assert 50 * (high - low) == pytest.approx(points, abs=0.1)


@pytest.mark.parametrize("n", [0, 1, 8, 9, 1000])
def test_packing_gives_back_what_went_in(n):
    bits = tuple(bool(bit) for bit in torch.rand(n, generator=torch.Generator().manual_seed(n)) > 0.5)
    indices = tuple(i for i, bit in enumerate(bits) if bit)
    assert unpack_bits(pack_bits(bits), n) == bits
    assert unpack_indices(pack_indices(indices)) == indices


def test_packed_bits_of_another_length_are_refused():
    with pytest.raises(ValueError, match="do not hold n=20"):
        unpack_bits("ff", 20)


def test_a_whole_test_set_is_short_in_json():
    assert pack_indices(range(10_000)) == "0-9999"
    assert len(json.dumps(score([True] * 10_000, num_classes=10).to_json())) < 3000


def test_per_class_counts_add_up():
    whole = score([True, False, True, True, False, False])
    assert whole.per_class == ((2, 2), (0, 2), (1, 2))
    assert sum(right for right, _ in whole.per_class) == sum(whole.correct)


def test_json_round_trip_is_exact(tmp_path):
    path = tmp_path / "sub" / "results.json"
    result().save(path)
    assert Robustness.load(path) == result()
    written = json.loads(path.read_text())
    assert written["threat"]["eps_text"] == "8/255"
    assert written["autoattack"]["accuracy"] == result().autoattack.accuracy
    assert list(written["autoattack"]["after"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]


def test_a_result_of_the_first_format_loads(tmp_path):
    fields = result().to_json()
    fields["data"]["limit"] = fields["data"].pop("autoattack_images")
    (tmp_path / "old.json").write_text(json.dumps(fields))
    assert Robustness.load(tmp_path / "old.json") == result()


def test_only_what_was_run_is_in_the_json(tmp_path):
    some = result()
    some = replace(some, scores={"clean": some.scores["clean"]})
    some.save(tmp_path / "r.json")
    loaded = Robustness.load(tmp_path / "r.json")
    assert loaded == some and loaded.pgd is None and loaded.autoattack is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "timm_arat.robustness/1"}', "not json"])
def test_a_foreign_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json is not a result"):
        Robustness.load(tmp_path / "r.json")


def test_an_interrupted_write_leaves_the_old_result(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    result().save(path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        result(seed=1).save(path)
    assert Robustness.load(path) == result()


def test_shards_merge_to_the_whole_in_any_order():
    parts = [result(range(7)), result(range(7, 15)), result(range(15, 20))]
    whole = replace(result(), seconds={"clean": 3.0, "pgd": 6.0}, command="evaluate")
    for order in ((0, 1, 2), (2, 0, 1)):
        assert merge([parts[i] for i in order]) == whole


def test_merge_refuses_overlap_and_mixtures():
    with pytest.raises(ValueError, match="image 6 is in both"):
        merge([result(range(7)), result(range(6, 9))])
    with pytest.raises(ValueError, match="weights is ab in one and cd"):
        merge([result(range(7)), result(range(7, 9), weights="cd")])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


def test_mcnemar_is_the_exact_binomial():
    assert Paired(100, 0, 10, 2).p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert Paired(100, 0, 2, 10).p_value == Paired(100, 0, 10, 2).p_value
    assert Paired(100, 0, 0, 0).p_value == 1 == Paired(100, 0, 5, 5).p_value
    assert 0 <= Paired(20_000, 0, 9_000, 1_000).p_value < 1e-300


def test_difference_and_its_interval_follow_the_pairs():
    paired = mcnemar(score([True] * 60 + [False] * 40), score([True] * 50 + [False] * 50))
    assert (paired.n, paired.both, paired.only_a, paired.only_b) == (100, 50, 10, 0)
    assert (paired.a, paired.b) == (0.6, 0.5)
    low, high = paired.interval
    assert paired.difference == 0.1 and 0 < low < 0.1 < high


def test_the_interval_of_a_difference_is_the_score_test_s():
    """By brute force: the likelihood of the three counts, maximised under each difference, and its corrected score."""
    n, only_a, only_b = 50, 9, 2
    b = np.linspace(1e-6, 1, 20_001)  # chance of only_b

    def refused(difference):
        a, rest = b + difference, 1 - difference - 2 * b
        fits = (a > 0) & (rest > 0)
        likelihood = only_a * np.log(a[fits]) + only_b * np.log(b[fits])
        likelihood += (n - only_a - only_b) * np.log(rest[fits])
        chance = b[fits][likelihood.argmax()]
        deviation = math.sqrt(n * (2 * chance + difference * (1 - difference)))
        return abs(only_a - only_b - n * difference) - 1 > 1.959964 * deviation

    low, high = Paired(n, 0, only_a, only_b).interval
    assert not refused(low + 1e-3) and not refused(high - 1e-3)
    assert refused(low - 1e-3) and refused(high + 1e-3)


@pytest.mark.parametrize("n", [200, 1000])
def test_the_interval_holds_zero_where_the_printed_test_does_not_refuse_it(n):
    for only_a, only_b in itertools.product(range(0, 40), repeat=2):
        paired = Paired(n, 0, only_a, only_b)
        low, high = paired.interval
        assert -1 <= low <= paired.difference <= high <= 1
        if not 0.048 < paired.p_value < 0.052:  # the correction is an approximation of the exact test
            assert (low <= 0 <= high) == (paired.p_value >= 0.05)
    assert Paired(n, 0, 0, 0).interval[0] < 0 < Paired(n, 0, 0, 0).interval[1]


@pytest.mark.parametrize("n", [32, 200])
@pytest.mark.parametrize("chances", [(0, 0), (0.02, 0.02), (0.1, 0.02), (0.3, 0.05), (0.2, 0.3), (0, 0.05)], ids=str)
def test_the_interval_covers_the_true_difference(n, chances):
    only_a, only_b = chances
    counts = np.random.default_rng(0).multinomial(n, [only_a, only_b, 1 - only_a - only_b], size=2000)
    different, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    inside = [
        low <= only_a - only_b <= high for low, high in (Paired(n, 0, *map(int, row)).interval for row in different)
    ]
    assert times[inside].sum() / times.sum() > 0.93


@pytest.mark.parametrize("n", [1, 3, 7, 49, 1000, 10_000])
def test_wilson_s_limits_lie_round_the_share(n):
    for right in {0, 1, n // 2, n - 1, n}:
        low, high = wilson(right, n)
        assert 0 <= low <= right / n <= high <= 1


def test_compare_pairs_only_common_images():
    compared = compare(result(range(15)), result(range(10, 20), model="other", seed=1))
    assert {name: paired.n for name, paired in compared.items()} == {"clean": 5, "pgd": 5, "autoattack": 5}


def test_compare_refuses_what_cannot_be_paired():
    with pytest.raises(ValueError, match="share no image"):
        compare(result(range(5)), result(range(5, 9)))
    with pytest.raises(ValueError, match="eps"):
        compare(result(), result(eps=4 / 255))
    with pytest.raises(ValueError, match="same images can be paired"):
        compare(result(), result(data=replace(result().data, labels="bb")))


def test_table_has_every_model_its_numbers_and_the_threat():
    text = table(result(), result(model="a_longer_name", eps=0.3))
    for wanted in ("a_longer_name", "(n=20)", "±", "eps=8/255", "eps=0.3", "blobs test", "50 stratified", "square"):
        assert wanted in text


def test_table_shows_warnings():
    assert "WARNING: 9 of" in table(result(zero_gradient=9))


def test_the_table_by_class_has_the_worst_class_first_by_the_strongest_attack():
    names = ("cat", "dog", "owl")
    found = result(range(60), class_names=names)
    lines = table(found, per_class=True).splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("net by class, the worst"))
    rows = [line.split() for line in lines[start + 3 :]]
    by_class = {name: found.autoattack.per_class[i] for i, name in enumerate(names)}
    shares = [by_class[row[0]][0] / by_class[row[0]][1] for row in rows]
    assert {row[0] for row in rows} == set(names) and shares == sorted(shares) and shares[0] < shares[-1]
    for row in rows:
        right, n = found.clean.per_class[names.index(row[0])]
        assert row[1] == f"{100 * right / n:.1f}" and row[4] == f"(n={n})"
    assert "by class" not in table(found)


def test_the_table_by_class_numbers_classes_without_names_and_counts_those_without_images():
    clean = score([True, False, False], num_classes=3)
    clean = replace(clean, per_class=(*clean.per_class, (0, 0)))
    text = table(result(scores={"clean": clean}), per_class=True)
    assert [line.split()[0] for line in text.splitlines()[-4:]] == ["1", "2", "0", "1"]
    assert text.endswith("1 class has no image among these")


def test_names_of_classes_come_back(tmp_path):
    named = result(class_names=("cat", "d\u00f6g", "[1, 2]"))
    named.save(tmp_path / "r.json")
    assert Robustness.load(tmp_path / "r.json") == named
    assert "class_names" not in result().to_json()


@pytest.mark.parametrize(
    "eps, text", [(8 / 255, "8/255"), (0.5, "0.5"), (128 / 255, "128/255"), (0.031, "0.031"), (1e-9, "1e-09")]
)
def test_eps_is_a_fraction_where_it_is_one(eps, text):
    assert eps_text(eps) == text


@pytest.mark.parametrize(
    ("start", "said"), [(["-m", "mine"], "python -m mine"), (["mine/__main__.py"], "mine/__main__.py")]
)
def test_the_command_is_what_one_would_type(tmp_path, start, said):
    """By `-m`, Python makes a path of this machine of the module's name, which must not come into a result."""
    (tmp_path / "mine").mkdir()
    text = "from timm_arat.evaluation._where import command_line\nprint(command_line())"
    (tmp_path / "mine" / "__main__.py").write_text(text)
    path = f"{Path(__file__).parents[1]}:{tmp_path}"
    done = subprocess.run(
        [sys.executable, *start, "--name", "b c"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"{said} --name 'b c'"

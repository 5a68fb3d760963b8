"""Broken defences are caught without AutoAttack, and honest networks are not accused."""

import json

import pytest
import timm
import torch
from helpers_evaluation import EPS, digits, trained
from torch import nn

import timm_arat
from benchmarks import defences
from benchmarks.document import write_block
from timm_arat.evaluation import evaluate


def images(n=100):
    x, y = digits()
    return x[-n:], y[-n:]


@pytest.mark.parametrize("kind", defences.DEFENCES, ids=lambda kind: kind.__name__)
def test_every_defence_is_refused_or_warned_of(kind):
    said = defences.said(kind(trained()), images(), eps=EPS)
    assert kind.speaks in said.get("error", "") + " ".join(said.get("warnings", ()))
    if "error" not in said and kind is not defences.Constant:
        honest = defences.said(trained(), images(), eps=EPS)
        assert said["pgd"] > honest["pgd"] + 0.2, "a defence that fools nobody tests nothing"


def test_saturated_logits_are_no_defence():
    """Logits times 1000 have no gradient of their cross-entropy left; PGD finds as much as without them."""

    class Saturated(defences.Defence):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1000 * self.model(x)

    honest, saturated = (defences.said(net, images(), eps=EPS) for net in (trained(), Saturated(trained())))
    assert saturated["warnings"] == honest["warnings"] == []
    assert saturated["pgd"] <= honest["pgd"] + 0.05


FAMILIES = (
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "test_convnext",
    "test_byobnet",
    "test_nfnet",
    "test_mambaout",
    "test_efficientnet_ln",
    "test_efficientnet_gn",
    "test_vit3",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_honest_networks_raise_no_warning(family):
    x, y = digits()
    x = nn.functional.interpolate(x.expand(-1, 3, -1, -1), size=(32, 32))
    overlay = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    size = {"img_size": 32} if "vit" in family else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm_arat.in_pixels(timm.create_model(family, num_classes=10, pretrained_cfg_overlay=overlay, **size))
        net.train()
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
        for _ in range(60):
            chosen = torch.randint(0, len(x) - 300, (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    result = evaluate(net, (x[-60:], y[-60:]), attacks=("clean", "pgd"), progress=False)
    assert result.clean.accuracy > 0.15 and result.scores["unbounded"].n > 30
    assert result.warnings == ()


def test_a_robust_network_on_real_images_raises_no_warning():
    if not defences.CIFAR10.is_dir():
        pytest.skip(f"no CIFAR-10 in {defences.CIFAR10}")
    data = timm_arat.data.DataConfig(name=f"hfds/{defences.CIFAR10}")
    said = defences.said("resnet20_cifar_arat", data, pgd_images=50)
    assert said["pgd"] > 0.1 and said["warnings"] == []


def test_a_pixel_that_the_model_ignores_is_no_sign():
    class Cropped(defences.Defence):
        def forward(self, x):
            return self.model(nn.functional.pad(x[:, :, 1:-1, 1:-1], (1, 1, 1, 1)))

    assert evaluate(Cropped(trained()), images(), eps=EPS, attacks=("pgd",), progress=False).blind == 0


def test_a_detached_model_may_still_be_measured_unattacked():
    result = evaluate(defences.Detached(trained()), images(), attacks=("clean",), progress=False)
    assert result.clean.accuracy > 0.8


def test_buffers_are_put_back_also_of_a_model_that_trains_itself():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)).eval()
    before = {name: (buffer, buffer.clone()) for name, buffer in net.named_buffers()}
    with pytest.raises(ValueError, match="in another batch"):
        evaluate(defences.TrainModeNorms(net), images(), progress=False)
    for name, buffer in net.named_buffers():
        assert buffer is before[name][0] and torch.equal(buffer, before[name][1])
    assert not net[1].training


def test_the_document_is_what_the_json_says(tmp_path):
    document = tmp_path / "attacks.md"
    document.write_text(defences.DOCUMENT.read_text())
    write_block(document, "defences", defences.table(json.loads(defences.RESULTS.read_text())))
    assert document.read_text() == defences.DOCUMENT.read_text()

"""Two steps of the official recipe give the numbers of the authors' own code.

The numbers were written down from github.com/futakw/AR-AT at e65ffad (`train_one_epoch`, cifar_resnet18_split_bn, on
the CPU in float64), with the weights, images and noise that are drawn here. RandomState's streams are the same on
every machine and in every version of numpy.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from timm_arat.engine.config import ModelConfig
from timm_arat.engine.model import create
from timm_arat.engine.optimizer import build_optimizer, build_schedule
from timm_arat.engine.recipe import read_recipe
from timm_arat.engine.session import build_method

LOSSES = (34.0857979446307, 33.2778073509401)
# After the two steps, by the names of timm's ResNet.
NORMS = {
    "conv1": 8.17353698970125,
    "layer4.1.conv2": 22.637269808562966,
    "fc": 3.141628304762465,
    "fc.bias": 0.1343375382902527,
    "predictor": 11.307593266110262,
    "main scale": 22.624851782296304,
    "aux scale": 22.626143521698474,
    "main mean": 4.441523686563492,
    "aux mean": 0.9395520902457684,
    "main var": 1.4804833523667582,
    "aux var": 6.625279578413628,
}


@pytest.fixture(scope="module")
def official():
    return read_recipe("cifar10_resnet18_official")


def test_two_steps_are_those_of_the_authors_code(official, monkeypatch):
    draw = np.random.RandomState(100)
    method = build_method(official, create(official.model, "model", (3, 16, 16), 10)).double()
    _fill(method)
    batches = [(torch.from_numpy(draw.rand(8, 3, 16, 16)), torch.from_numpy(draw.randint(0, 10, 8))) for _ in range(2)]
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda t, a, b: t.copy_(torch.from_numpy(draw.uniform(a, b, t.shape)))
    )
    optimizer = build_optimizer(official, method)
    build_schedule(official, optimizer, updates=391).step(0)
    method.set_clean_accuracy(0.3)
    method.train()
    for (x, y), loss in zip(batches, LOSSES, strict=True):
        found = method(x, y)["loss"]
        assert found.item() == pytest.approx(loss, rel=1e-9)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()

    net, predictor = method.model, method.predictors[0][0]
    norm = net.layer4[1].bn2
    found = {
        "conv1": net.conv1.weight,
        "layer4.1.conv2": net.layer4[1].conv2.weight,
        "fc": net.fc.weight,
        "fc.bias": net.fc.bias,
        "predictor": predictor.weight,
        "main scale": norm.weight,
        "aux scale": norm.aux_bn[0].weight,
        "main mean": norm.running_mean,
        "aux mean": norm.aux_bn[0].running_mean,
        "main var": net.bn1.running_var,
        "aux var": net.bn1.aux_bn[0].running_var,
    }
    assert {name: t.norm().item() for name, t in found.items()} == pytest.approx(NORMS, rel=1e-9)
    # Ten steps of the attack and the step itself, twice; the authors' attack moves the statistics of the main branch.
    assert (int(norm.num_batches_tracked), int(norm.aux_bn[0].num_batches_tracked)) == (22, 2)


def _fill(method):
    """Weights by numpy: of convolutions and linear layers in their order, those of the predictors last."""
    layers = [module for module in method.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for i, layer in enumerate(layers):
        bound = (3 / layer.weight[0].numel()) ** 0.5
        for parameter in layer.parameters():
            parameter.data = torch.from_numpy(np.random.RandomState(i).uniform(-bound, bound, parameter.shape))


def test_the_official_recipe_begins_as_torch_does(official):
    """timm begins the last scale of a residual branch at zero, the authors (and torch) at one; the convolutions are
    uniform, where timm's are normal."""
    torch.manual_seed(0)
    net = create(official.model, "model", (3, 32, 32), 10)
    torch.manual_seed(0)
    other = create(replace(official.model, init="timm"), "model", (3, 32, 32), 10)
    assert (net.layer1[0].bn2.weight == 1).all() and (other.layer1[0].bn2.weight == 0).all()
    bound = net.conv1.weight[0].numel() ** -0.5  # kaiming_uniform with a = sqrt(5): torch's Conv2d
    assert net.conv1.weight.abs().max() <= bound and net.conv1.weight.std().item() == pytest.approx(
        bound / 3**0.5, rel=0.05
    )
    with pytest.raises(ValueError, match="two beginnings"):
        ModelConfig(init="torch", pretrained=True)

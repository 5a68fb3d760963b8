"""A small honest classifier of digits, and AutoAttack with few steps, for the tests of evaluation."""

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from timm_arat.evaluation import _autoattack

EPS = 0.1


def digits(num_classes: int = 10) -> tuple[Tensor, Tensor]:
    """The first classes of scikit-learn's digits: Nx1x8x8 in [0, 1] in steps of 1/16, and N."""
    bunch = load_digits()
    x, y = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16, torch.tensor(bunch.target)
    return x[y < num_classes], y[y < num_classes]


@functools.cache
def trained(num_classes: int = 10) -> nn.Module:
    """A network trained for a second, partly robust at `EPS`, in evaluation mode. Shared: leave it as it is."""
    x, y = digits(num_classes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
        net = nn.Sequential(*stem, nn.Flatten(), nn.Linear(128, num_classes))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(150):
            chosen = torch.randint(0, len(x) - 300, (128,))
            noisy = (x[chosen] + 0.1 * torch.randn(128, 1, 8, 8)).clamp(0, 1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(noisy), y[chosen]).backward()
            optimizer.step()
    net.zero_grad()
    return net.eval()


def short_attacks(*args, **kwargs) -> dict[str, _autoattack.Attack]:
    """`standard_attacks` with 5 steps and 60 queries."""
    attacks = _autoattack.standard_attacks(*args, **kwargs)
    for attack in attacks.values():
        shorten(attack.args[0])
    return attacks


def shorten(part) -> None:
    part.n_iter = part.n_iter_orig = 5
    part.n_queries = 60

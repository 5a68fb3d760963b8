"""A mistyped name is answered with those nearest to it, or with the list."""

import pytest

from timm_arat.names import nearest

MODELS = ["resnet18", "resnet50", "resnet18_cifar", "vit_base"]


@pytest.mark.parametrize(
    ("name", "names", "most", "answer"),
    [
        ("resnet19", ["resnet18", "vit"], 1, "did you mean 'resnet18'?"),
        ("resnet18_cifer", MODELS, 1, "did you mean 'resnet18_cifar'?"),
        ("resnet18_cifer", MODELS, 2, "did you mean 'resnet18_cifar' or 'resnet18'?"),
        ("eps", ["method.attack.eps", "method.weight"], 1, "did you mean 'method.attack.eps'?"),
        ("attack.epz", ["method.attack.eps", "method.weight"], 1, "did you mean 'method.attack.eps'?"),
        ("bn", ["layer1.bn", "layer2.bn", "layer3.bn"], 2, "did you mean 'layer1.bn' or 'layer2.bn'?"),
        ("qqq", ["b", "a"], 1, "choose from a, b"),
        ("qqq", map(str, range(10, 40)), 3, f"choose from {', '.join(map(str, range(10, 30)))}, ..."),
        ("qqq", [], 1, "there is none to choose from"),
    ],
)
def test_the_way_out_of_a_typo(name, names, most, answer):
    assert nearest(name, names, most) == answer

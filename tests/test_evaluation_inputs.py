"""What `evaluate` takes: loaders, bytes for labels, labels by name, models of other libraries, prepared ones."""

from types import SimpleNamespace

import pytest
import timm
import torch
from helpers_evaluation import EPS, digits, trained
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from timm_arat.data import DataConfig
from timm_arat.evaluation import evaluate
from timm_arat.evaluation._model import frozen


def images(n=40):
    x, y = digits()
    return x[-n:], y[-n:]


def run(net, data, **settings):
    return evaluate(net, data, **({"eps": EPS, "attacks": ("clean", "pgd"), "progress": False} | settings))


def test_a_loader_is_its_images():
    wanted = run(trained(), images())
    loader = DataLoader(TensorDataset(*images()), batch_size=7)
    found = run(trained(), loader)
    assert found.pgd == wanted.pgd and found.data.fingerprint == wanted.data.fingerprint
    with pytest.raises(ValueError, match="shuffle=False"):
        run(trained(), DataLoader(TensorDataset(*images()), shuffle=True))
    with pytest.raises(ValueError, match="gives Tensor, wanted pairs"):
        run(trained(), DataLoader(images()[0]))


def test_labels_may_be_bytes():
    x, y = images()
    assert run(trained(), (x, y.byte()), pgd_images=20).pgd == run(trained(), (x, y), pgd_images=20).pgd
    assert run(trained(), TensorDataset(x, y.byte()), pgd_images=20).pgd == run(trained(), (x, y), pgd_images=20).pgd


@pytest.mark.parametrize("form", [lambda x, y: (x, y), TensorDataset], ids=["tensors", "data set"])
def test_pixels_may_lie_outside_by_rounding_and_no_more(form):
    x, y = images()
    off = x.clone()
    off[x == 0], off[x == 1] = -2.98e-8, 1 + 1.2e-7
    assert run(trained(), form(off, y)).data.fingerprint == run(trained(), form(x, y)).data.fingerprint
    with pytest.raises(ValueError, match=r"wanted pixels in \[0, 1\]"):
        run(trained(), form(off - 1e-3, y))


def test_logits_may_come_in_an_object():
    class Answering(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = trained()

        def forward(self, x):
            return SimpleNamespace(logits=self.model(x), loss=None)

    assert run(Answering(), images()).pgd == run(trained(), images()).pgd


def test_a_prepared_model_is_measured_in_float32_and_stays_prepared():
    seen = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    net[1].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    # As Accelerator.prepare does in mixed precision.
    net._original_forward = net.forward
    net.forward = torch.autocast("cpu", torch.bfloat16)(net.forward)
    prepared = net.forward
    assert net(images()[0]).dtype == torch.bfloat16
    seen.clear()
    run(net, images())
    assert set(seen) == {torch.float32} and net.forward is prepared
    with frozen(net):
        assert net(images()[0]).dtype == torch.float32


def test_classes_are_matched_by_name():
    net = timm.create_model(
        "test_resnet", num_classes=10, in_chans=1, pretrained_cfg_overlay={"input_size": (1, 32, 32)}
    )
    plain = run(net, DataConfig(), attacks=("clean",))
    assert "position" in plain.data.note
    names = [str(i) for i in range(10)]
    with torch.no_grad():
        net.fc.weight.copy_(net.fc.weight.flip(0))
        net.fc.bias.copy_(net.fc.bias.flip(0))
    net.pretrained_cfg["label_names"] = [f"digit {name}" for name in reversed(names)]
    assert run(net, DataConfig(), attacks=("clean",)).clean.correct != plain.clean.correct, "numbers go by position"
    net.pretrained_cfg["label_names"] = names[::-1]
    turned = run(net, DataConfig(), attacks=("clean",))
    assert turned.clean.correct == plain.clean.correct and turned.data.note == ""

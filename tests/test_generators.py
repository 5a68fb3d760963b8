"""The random generators: put back after a measurement, kept for a resume, on any accelerator."""

import random

import numpy as np
import torch

from timm_arat import generators


class Device:
    """A stand-in for torch.cuda, torch.mps or torch.xpu with one device, whose generator is one number."""

    def __init__(self) -> None:
        self.state = torch.tensor([1], dtype=torch.uint8)

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return self.state.clone()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        self.state = state.clone()


def on_a_device(monkeypatch) -> Device:
    """A machine with an accelerator that is not CUDA."""
    device = Device()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "get_device_module", lambda name=None: device)
    return device


def test_torch_s_generators_are_put_back_after_an_error_too(monkeypatch):
    device = on_a_device(monkeypatch)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    try:
        with generators.forked():
            torch.rand(4)
            device.state = torch.tensor([9], dtype=torch.uint8)
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
    assert device.state.item() == 1


def test_states_hold_every_generator(monkeypatch):
    device = on_a_device(monkeypatch)
    found = generators.states()
    drawn = torch.rand(3), np.random.rand(3), random.random()
    device.state = torch.tensor([9], dtype=torch.uint8)
    generators.restore(found)
    again = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(drawn[0], again[0])
    assert (drawn[1] == again[1]).all()
    assert drawn[2] == again[2]
    assert device.state.item() == 1


def test_states_of_an_accelerator_are_no_matter_where_there_is_none(monkeypatch):
    with monkeypatch.context() as patch:
        on_a_device(patch)
        found = generators.states()
    generators.restore(found)

"""Change a model's train and eval modes for a while; the ground floor, which everything above may use."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Give every module of `model` its own train or eval mode back on the way out, also after an error.

    Restored by `train(mode)`, parents first, and by way of train mode: some timm models (levit, efficientvit_msra,
    tiny_vit, efficientformer) cache attention biases in eval mode and drop them only on that call, so what was cached
    inside, with frozen or outdated weights, does not outlive the `with`.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        model.train()
        for module, mode in modes:
            if module.training != mode:
                module.train(mode)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module of `model` in eval mode, with nothing cached of older weights; its own mode back on the way out.

    By way of train mode, for the same models as in `keep_modes`: what they cached in eval mode before the weights
    changed, by a step or by `load_state_dict`, would be used otherwise.
    """
    with keep_modes(model):
        model.train()
        model.eval()
        yield

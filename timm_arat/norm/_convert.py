"""Plain model -> split model, by class swap in place."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._shared import SHARES, Share, check_shareable, drop_shared
from ._split import SplitNorm
from ._table import SPLIT_CLASSES
from ._walk import RECORD, norm_modules, refuse_dead_aux, split_norms

Model = TypeVar("Model", bound=nn.Module)
Norms = Literal["all"] | Sequence[type[nn.Module]]


def convert_split_norm(model: Model, *, norms: Norms | None = None, share: Share | None = None) -> Model:
    """Gives the norms of `model` a second set of parameters and statistics, in place; returns `model`.

    The second set starts as a copy, so both branches compute what the plain model computed. Module objects, their
    parameters, hooks, flags, `isinstance` and state-dict keys stay; the copy is found under `aux_bn.0.` of each norm.
    Call it after pretrained weights are loaded, after `convert_sync_batchnorm`, before the optimizer is built. On a
    model that is split already it converts what is new (a head that `reset_classifier` made).

    norms: None, every BatchNorm; 'all', also the affine parameters of LayerNorm, GroupNorm and RMSNorm kinds (torch's
        and timm's); or the classes to split, subclasses included.
    share: None, each branch has all of its own; 'affine' or 'statistics', this half of a BatchNorm is main's for both
        branches (an ablation). Shared statistics are of both halves of a batch together in training.
    Raises ValueError, before anything is changed, when there is nothing to split, when a norm has a class that is not
    in the table, or when another layer that couples the images of a batch (EvoNormB, InplaceAbn) would stay shared.
    """
    refuse_dead_aux(model)
    chosen = [(name, module) for name, module in norm_modules(model) if _is_wanted(module, norms)]
    unknown = [(name, module) for name, module in chosen if not _is_known(module)]
    if norms is None or norms == "all":
        unknown += [(name, module) for name, module in norm_modules(model) if _couples_images(module)]
    if unknown:
        listed = ", ".join(f"{name} ({_full_name(type(module))})" for name, module in unknown[:3])
        raise ValueError(
            f"cannot split {len(unknown)} norms of {type(model).__name__}, among them {listed}: only these classes can "
            f"be split, not their subclasses: {', '.join(sorted(map(_full_name, SPLIT_CLASSES)))}. Build the model "
            f"with one of them"
        )
    if not chosen:
        raise ValueError(_nothing_to_split(model, norms))
    if share is not None:
        if share not in SHARES:
            raise ValueError(f"share={share!r} is not None, {' or '.join(map(repr, SHARES))}")
        for name, module in chosen:
            check_shareable(module, name)
    for _, module in chosen:
        if not isinstance(module, SplitNorm):
            _split(module, share)
    model.__dict__[RECORD] = frozenset(name for name, _ in split_norms(model))
    return model


def _is_wanted(module: nn.Module, norms: Norms | None) -> bool:
    if isinstance(module, SplitNorm):
        return True
    if norms is None or norms == "all":
        if isinstance(module, _BatchNorm):
            return True
        return norms == "all" and type(module) in SPLIT_CLASSES and _holds_tensors(module)
    if isinstance(norms, str) or not all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in norms):
        raise ValueError(f"norms={norms!r} is not None, 'all' or a sequence of module classes such as [nn.LayerNorm]")
    return isinstance(module, tuple(norms)) and (isinstance(module, _BatchNorm) or _holds_tensors(module))


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _is_known(module: nn.Module) -> bool:
    return isinstance(module, SplitNorm) or type(module) in SPLIT_CLASSES


def _couples_images(module: nn.Module) -> bool:
    """Moving statistics outside BatchNorm: EvoNormB, InplaceAbn, InstanceNorm. Frozen ones have no momentum."""
    moves = module._buffers.get("running_var") is not None and hasattr(module, "momentum")
    return moves and not isinstance(module, _BatchNorm)


def _split(module: nn.Module, share: Share | None) -> None:
    split = SPLIT_CLASSES[type(module)]
    aux = _copy_bare(module, split.bare)
    if share is not None:
        drop_shared(aux, share)
    module.__class__ = split
    assert isinstance(module, SplitNorm)
    module.aux_bn = nn.ModuleList([aux])
    module.aux_bn.training = module.training
    module.branch, module.share = "main", share


def _copy_bare(module: nn.Module, bare: type[nn.Module]) -> nn.Module:
    aux = bare.__new__(bare)
    nn.Module.__init__(aux)
    # Settings (eps, momentum, training ...), but neither tensors, hooks nor children, which Module keeps in dicts.
    own = set(aux.__dict__) - {"training"}
    aux.__dict__.update({name: value for name, value in module.__dict__.items() if name not in own})
    for name, parameter in module._parameters.items():
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        aux.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        aux.register_buffer(name, None if buffer is None else buffer.clone())
    return aux


def _nothing_to_split(model: nn.Module, norms: Norms | None) -> str:
    found = Counter(_full_name(type(m)) for _, m in norm_modules(model) if _is_known(m) and _holds_tensors(m))
    if norms is None:
        asked = "BatchNorm"
    else:
        asked = "norm that can be split" if norms == "all" else f"parameter in norms of {[k.__name__ for k in norms]}"
    if not found:
        return f"{type(model).__name__} has no {asked}, nor another norm that can be split: use one branch"
    listed = ", ".join(f"{count} {name}" for name, count in found.most_common())
    return (
        f"{type(model).__name__} has no {asked}. Its norms are: {listed}. They keep no statistics; norms='all' splits "
        f"their affine parameters"
    )


def _full_name(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]} {kind.__name__}"

"""Finding norms in a model, and noticing when other code has broken a split."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._split import SplitNorm

# Plain attribute of the converted model: names of its split norms. What others replace later is missed by name.
RECORD = "_split_norm_names"


def split_norms(model: nn.Module) -> Iterator[tuple[str, SplitNorm]]:
    """Names and modules of the split norms of `model`, each module once."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, SplitNorm))


def is_split(model: nn.Module) -> bool:
    """Whether `model` has a split norm."""
    return any(True for _ in split_norms(model))


def norm_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules` without what lies under the `aux_bn` of a split norm."""
    aux = {id(child) for _, norm in split_norms(model) for child in norm.aux_bn.modules()}
    return ((name, module) for name, module in model.named_modules() if id(module) not in aux)


def batch_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Names and modules of every BatchNorm of `model`, split or plain; the `aux_bn` of a split one is not counted.

    To estimate statistics again, reset and measure `norm` under `norm_branch(model, 'main')`, then `norm.aux_bn[0]`
    under 'aux'.
    """
    return ((name, module) for name, module in norm_modules(model) if isinstance(module, _BatchNorm))


def check_split_norm(model: nn.Module) -> None:
    """Raises ValueError when code that ran after the split has broken it; passes on a model that was never split.

    torch's and timm's `convert_sync_batchnorm` leave an `aux_bn` that nothing calls, `freeze_batch_norm_2d` and
    `reparameterize_model` drop it, `reset_classifier` puts plain BatchNorms back: all without a word.
    """
    refuse_dead_aux(model)
    lost = []
    for prefix, module in model.named_modules():
        for name in module.__dict__.get(RECORD, ()):
            found = _find(module, name)
            if not isinstance(found, SplitNorm):
                what = "gone" if found is None else f"now {type(found).__name__}"
                lost.append(f"{f'{prefix}.{name}' if prefix else name} ({what})")
    if lost:
        raise ValueError(
            f"{len(lost)} norms were split and are no longer, among them {', '.join(sorted(lost)[:3])}: after "
            f"reset_classifier call convert_split_norm(model) again; freeze_batch_norm_2d and reparameterize_model "
            f"come before the split or after merge_split_norm"
        )


def refuse_dead_aux(model: nn.Module) -> None:
    """Raises ValueError when a norm owns an `aux_bn` but is not split."""
    dead = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if "aux_bn" in module._modules and not isinstance(module, SplitNorm)
    ]
    if dead:
        raise ValueError(
            f"{len(dead)} norms own an aux_bn but are not split, among them {', '.join(dead[:3])}: "
            f"convert_sync_batchnorm after the split, or timm's SplitBatchNorm2d, does this. Build the model anew, "
            f"make it SyncBatchNorm first, then call convert_split_norm"
        )


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None

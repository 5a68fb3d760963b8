"""Split norm on every architecture of `timm.list_models()`: the long check, and its parts for the default tests.

    uv run python tests/zoo.py --output zoo.jsonl [--filter 'resnet*'] [--jobs 2]

One JSON line an architecture; run again, it goes on where it stopped and tries failures anew. The last line printed is
the summary, the exit status is 1 when an architecture failed. BatchNorm architectures first, small ones first.
"""

import argparse
import fnmatch
import gc
import json
import multiprocessing
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from helpers_norm import joint_error, shift_aux
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from timm_arat.fold import folded
from timm_arat.norm import batch_norms, convert_split_norm, merge_split_norm, norm_branch, split_norms

FLOAT64_UP_TO = 500e6  # parameters, all with BatchNorm but four; above, 'both' is compared in float32
ALLOCATED_UP_TO = 1.3e9  # parameters; above, structure only, on the meta device (17 architectures without BatchNorm)
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}  # of 'both' against two passes, relative
BRANCHES: tuple[Literal["main", "aux"], ...] = ("main", "aux")
SIZES = (32, 64, 96, 128, 160, 192)  # tried in this order, then the architecture's own
# On 1x1 maps very deep networks blow rounding up, to the size of the outputs (efficientnet_b6: 0.5 at 32, 1e-14 at 96;
# tf_efficientnet_l2: 1.3 at 32, 6e-9 at 192): what fails there is tried once more at this size.
LARGER = 192
# Families that mix the images of a batch by themselves, whatever the norms: csatv2's SpatialTransformerBlock computes
# `q @ k.transpose(-1, -2)` on (B, N), attention over the batch (timm 1.0.31).
MIXING = ("csatv2",)
OWN_SIZE = ("efficientvit_msra",)  # families whose windows, folded into dim 0, appear on their own size only


@dataclass(frozen=True)
class Architecture:
    """What the meta device tells of an architecture without allocating it."""

    name: str
    family: str
    parameters: int
    batch_norms: int
    image: tuple[int, int, int]
    fixed: bool  # built for one image size


def survey(name: str) -> Architecture:
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    cfg = model.pretrained_cfg
    return Architecture(
        name=name,
        family=type(model).__module__.rsplit(".", 1)[-1],
        parameters=sum(p.numel() for p in model.parameters()),
        batch_norms=sum(1 for _ in batch_norms(model)),
        image=tuple(cfg["input_size"]),
        fixed=bool(cfg.get("fixed_input_size")),
    )


def small_image(arch: Architecture, smallest: int = 0) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """The smallest image that runs on the meta device, and what `create_model` must be told for it."""
    channels, *own = arch.image
    model: Any = None
    for size in (size for size in SIZES if smallest <= size < own[0] and arch.family not in OWN_SIZE):
        kwargs: dict[str, Any] = {"img_size": size} if arch.fixed else {}
        try:
            with torch.device("meta"):
                if model is None or arch.fixed:
                    model = timm.create_model(arch.name, **kwargs).eval()
                final, _ = model.forward_intermediates(torch.empty(2, channels, size, size), indices=1)
                model.forward_head(final)
        except Exception:
            continue  # an architecture may refuse a size in any way it likes
        return (channels, size, size), kwargs
    return arch.image, {}


def check_architecture(arch: Architecture) -> dict[str, Any]:
    """Every property of a conversion on one architecture; a record with its outcome, never an exception."""
    record = _attempt(arch, smallest=0)
    return record if record["outcome"] != "failed" else _attempt(arch, LARGER)


def _attempt(arch: Architecture, smallest: int) -> dict[str, Any]:
    began = time.perf_counter()
    record: dict[str, Any] = asdict(arch) | {"timm": timm.__version__, "torch": torch.__version__}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record |= _check(arch, smallest)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
        record |= {"outcome": "failed", "reason": reason}
    record["seconds"] = round(time.perf_counter() - began, 2)
    gc.collect()
    return record


def _check(arch: Architecture, smallest: int) -> dict[str, Any]:
    torch.manual_seed(0)
    image, kwargs = small_image(arch, smallest)
    with torch.device("cpu" if arch.parameters <= ALLOCATED_UP_TO else "meta"):
        model: Any = timm.create_model(arch.name, **kwargs)
    record: dict[str, Any] = {"size": image[1], "outcome": "converted"}
    norms: Any = None
    if not arch.batch_norms:
        _expect(_error(convert_split_norm, model) is not None, "a conversion that converts nothing is an error")
        norms = "all"
        record["outcome"] = "affine-split"
        if reason := _error(partial(convert_split_norm, norms=norms), model):
            return record | {"outcome": "refused", "reason": _reason(reason)}
        merge_split_norm(model)
    classes, keys = [type(m) for m in model.modules()], list(model.state_dict())

    def is_plain() -> bool:
        return [type(m) for m in model.modules()] == classes and list(model.state_dict()) == keys

    if arch.parameters > ALLOCATED_UP_TO:
        convert_split_norm(model, norms=norms)
        merge_split_norm(model)
        _expect(is_plain(), "merging gives classes and keys back")
        return record | {"dtype": "meta"}

    # On 1x1 maps a BatchNorm over two images blows rounding up; large images have no such maps.
    x = torch.randn(8 if image[1] < 96 else 4, *image)
    settle(model, x)
    y = logits(model, x[:1])
    convert_split_norm(model, norms=norms)
    record["norms"] = dict(Counter(type(norm).__name__ for _, norm in split_norms(model)))

    for branch in BRANCHES:
        with norm_branch(model, branch):
            _expect(same(logits(model, x[:1]), y), f"{branch} in eval is bit-identical to the plain model")

    shift_aux(model)
    # Before anything trains: with statistics that no longer fit, deep networks blow rounding up to the size of the
    # outputs (efficientnet_l2).
    dtype = torch.float64 if arch.parameters <= FLOAT64_UP_TO else torch.float32
    record["dtype"] = str(dtype).removeprefix("torch.")
    model.to(dtype)
    images = x.to(dtype)
    record["error"] = max(joint_error(model, images[:2], False), joint_error(model, images, batch_statistics=True))
    if arch.batch_norms:
        record["folded"] = _check_folding(model, images[:2], TOLERANCE[dtype])
    model.float()  # exactly what it was
    if arch.family in MIXING:
        _expect(record["error"] > TOLERANCE[dtype], "the self-check notices a model that mixes images")
        return record | {"outcome": "refused", "reason": "mixes the images of a batch outside its norms"}
    _expect(record["error"] <= TOLERANCE[dtype], f"'both' equals two passes; error {record['error']:.2g}")

    with norm_branch(model, "aux"):
        y_aux = logits(model, x[:1])
    _expect(not same(y_aux, y), "the logits see the norms, or every check here is empty")
    _expect(same(logits(model, x[:1]), y), "main in eval does not see aux")
    shift(norm for _, norm in split_norms(model))
    with norm_branch(model, "aux"):
        _expect(same(logits(model, x[:1]), y_aux), "aux in eval does not see main")
    _check_train_isolation(model, x[:2])

    record["without_gradient"] = _check_gradients(model, x)

    for branch in BRANCHES:
        if branch == "aux":
            convert_split_norm(model, norms=norms)
            shift_aux(model)
        with norm_branch(model, branch):
            wanted = logits(model, x[:1])
        merge_split_norm(model, branch=branch)
        _expect(is_plain(), f"merging {branch} gives classes and keys back")
        _expect(same(logits(model, x[:1]), wanted), f"merging {branch} keeps its logits to the bit")
    return record


@torch.no_grad()
def settle(model: nn.Module, x: Tensor) -> None:
    """Random affine parameters, statistics near those of `x`: activations stay tame and no two norms are alike."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.normal_(0, 0.02)  # a head that starts at zero hides all before it
    norms: list[Any] = [norm for _, norm in batch_norms(model)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.uniform_(0.7, 1.3)
        norm.bias.normal_(0, 0.1)
    model.eval()
    for norm in norms:
        norm.training = True
    model(x)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.2)).clamp_min_(1e-2)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.eval()
    y = model(x)
    return [y] if isinstance(y, Tensor) else list(y)


def same(got: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)) and all(a.isfinite().all() for a in got)


@torch.no_grad()
def shift(norms: Iterator[nn.Module]) -> None:
    for norm in norms:
        for tensor in (*norm.parameters(recurse=False), *norm.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.mul_(0.9).add_(0.05)


@torch.no_grad()
def _check_train_isolation(model: nn.Module, x: Tensor) -> None:
    names = {name for name, _ in split_norms(model)}
    aux_keys = tuple(f"{name}.aux_bn." for name in names)
    for branch in BRANCHES:
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with norm_branch(model, branch):
            model.train()(x)
        for name, buffer in model.named_buffers():
            own = name.startswith(aux_keys) == (branch == "aux")
            if name.endswith("num_batches_tracked"):
                counted = int(buffer - before[name])
                _expect(counted == own, f"training {branch} counts its own batches: {name} moved by {counted}")
            elif name.startswith(aux_keys) or name.rsplit(".", 1)[0] in names:
                _expect(own or torch.equal(buffer, before[name]), f"training {branch} leaves {name} alone")
    model.eval()


def _check_folding(model: nn.Module, x: Tensor, tolerance: float) -> int:
    """Attacks fold norms on either branch, and nothing changes; the number of those that were folded in aux."""
    for branch in BRANCHES:
        with norm_branch(model, branch):
            wanted = logits(model, x)
            with folded(model, x[:1]):
                count = sum("forward" in vars(m) for m in model.modules() if isinstance(m, _BatchNorm))
                found = logits(model, x)
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))
        _expect(error <= tolerance, f"folded {branch} equals {branch}; error {error:.2g}")
    return count


def _check_gradients(model: nn.Module, x: Tensor) -> list[str]:
    """One joint step as ARAT takes it; the names of parameters that the plain forward does not use either."""
    model.train()
    model.requires_grad_(True)
    backbone: Any = model
    with norm_branch(model, "both"):
        final, features = backbone.forward_intermediates(x, indices=1)
        outputs = backbone.forward_head(final)
    loss = torch.zeros((), dtype=x.dtype)
    for output in [outputs] if isinstance(outputs, Tensor) else outputs:
        per_image = output.flatten(1)
        y = torch.arange(len(x) // 2) % per_image.shape[1]
        for half in per_image.chunk(2):
            loss = loss + F.cross_entropy(half, y)
    main, aux = features[-1].flatten(2).mean(-1).chunk(2)
    loss = loss + (1 - F.cosine_similarity(main, aux.detach())).mean()
    loss.backward()
    wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    _expect(not wrong, f"gradients are finite: {len(wrong)} are not, {wrong[:3]}")
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    model.zero_grad()
    if unused:
        with norm_branch(model, "main"):
            plain = model(x)
        torch.stack([part.sum() for part in ([plain] if isinstance(plain, Tensor) else plain)]).sum().backward()
        aux_keys = tuple(f"{name}.aux_bn." for name, _ in split_norms(model))
        used = [n for n, p in model.named_parameters() if n in unused and p.grad is not None]
        _expect(not used, f"a parameter that the model uses has a gradient in the joint step: {used[:3]}")
        main_unused = {name.replace(".aux_bn.0.", ".") for name in unused if name.startswith(aux_keys)}
        _expect(main_unused <= set(unused), "aux has a gradient wherever main has one")
    model.zero_grad()
    model.eval()
    return unused


def _expect(holds: bool, statement: str) -> None:
    if not holds:
        raise AssertionError(f"does not hold: {statement}")


def _error(convert: Any, model: nn.Module) -> str | None:
    try:
        convert(model)
    except ValueError as error:
        return str(error)
    return None


def _reason(message: str) -> str:
    return "no norm with parameters that can be split" if "nor another norm" in message else message[:200]


def summary(records: list[dict[str, Any]]) -> str:
    outcomes = Counter(r["outcome"] for r in records)
    wanted = sum(1 for r in records if r["batch_norms"])
    reasons = Counter(r["reason"] for r in records if r["outcome"] == "refused")
    line = f"converted {outcomes['converted']} of {wanted}, affine-split {outcomes['affine-split']}, "
    line += f"refused {outcomes['refused']}: {'; '.join(f'{n} {reason}' for reason, n in reasons.items()) or 'none'}"
    failed = [r["name"] for r in records if r["outcome"] == "failed"]
    return line + (f"; FAILED {len(failed)}: {', '.join(failed)}" if failed else "")


def _surveyed(cache: Path) -> list[Architecture]:
    if cache.exists():
        rows = json.loads(cache.read_text())
        return [Architecture(**row | {"image": tuple(row["image"])}) for row in rows]
    # timm's own: the names that timm_arat registers are the same classes again.
    own = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")]
    archs = [survey(name) for name in own]
    cache.write_text(json.dumps([asdict(arch) for arch in archs]))
    return archs


def _checked(archs: list[Architecture], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        torch.set_num_threads(1)
        yield from map(check_architecture, archs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(check_architecture, arch) for arch in archs]):
            yield future.result()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("zoo.jsonl"))
    parser.add_argument("--filter", default="*", help="names to check, as a shell pattern")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    surveyed = _surveyed(options.output.with_suffix(".survey.json"))
    archs = [arch for arch in surveyed if fnmatch.fnmatch(arch.name, options.filter)]
    archs.sort(key=lambda a: (a.batch_norms == 0, a.parameters))
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    records = {record["name"]: record for record in map(json.loads, lines)}
    todo = [a for a in archs if records.get(a.name, {}).get("outcome", "failed") == "failed"]
    print(f"{len(archs)} architectures, {len(archs) - len(todo)} of them done in {options.output}", flush=True)
    with options.output.open("a") as file:
        for done, record in enumerate(_checked(todo, options.jobs), 1):
            records[record["name"]] = record
            print(json.dumps(record), file=file, flush=True)
            outcome = record["outcome"]
            if outcome == "failed" or done % 20 == 0:
                print(f"{done}/{len(todo)} {record['name']}: {outcome} {record.get('reason', '')}", flush=True)
    print(summary([records[a.name] for a in archs if a.name in records]))
    return int(any(records[a.name]["outcome"] == "failed" for a in archs))


if __name__ == "__main__":
    sys.exit(main())

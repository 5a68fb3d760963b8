"""Whether results are of the model, the images and the threat that they stand beside."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from ..attacks import PGD
from ..data import Images
from ..evaluation import Robustness, eps_text, fingerprint
from ..evaluation._known import known
from ..evaluation._selection import select
from ..models import create
from ..models._json import read_config
from ..pixels import in_pixels
from ._files import check_plain


def settings_of(run: Path) -> dict[str, Any]:
    """What a run's config.yaml says."""
    if not (run / "config.yaml").exists():
        raise ValueError(
            f"{run} is not a run's folder (there is no config.yaml); only a finished, evaluated run can be published"
        )
    settings = yaml.safe_load(check_plain(run, "config.yaml").read_text())
    if not isinstance(settings, dict) or not isinstance(settings.get("data"), dict):
        raise ValueError(f"{run / 'config.yaml'} has no data: it is not what a run writes")
    return settings


def check_run(run: Path) -> Robustness:
    """The results of a finished run, after making sure that they are its model's and for its threat, and that its model
    is the trained one."""
    settings_of(run)
    for name, what in (
        ("model/config.json", "holds no exported model: the run has not finished"),
        ("results.json", "was not evaluated: let the run end, or call recipes/evaluate.py with it"),
        ("weights/best.safetensors", "has lost its trained weights"),
        ("summary.jsonl", "has no epoch in it"),
    ):
        if not (run / name).exists():
            raise ValueError(f"{run} {what} (there is no {name}); only a finished, evaluated run can be published")
        check_plain(run, name)
    results = check_results(run / "model", run / "results.json")
    threat = threat_of(run)
    check_threat(results, threat.norm, threat.radius, f"{run / 'config.yaml'}")
    trained = load_file(run / "weights" / "best.safetensors")
    exported = create(f"local-dir:{run / 'model'}", pretrained=True).eval()
    again = create(f"local-dir:{run / 'model'}").eval()
    written = load_file(run / "model" / "model.safetensors")
    # What was exported in half precision is compared with the trained weights after the same rounding.
    again.load_state_dict({key: trained[key].to(written[key].dtype) for key in exported.state_dict()})
    size: tuple[int, int, int] = exported.pretrained_cfg["input_size"]  # type: ignore[index, assignment]  # timm's
    x = torch.rand((2, *size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(exported(x), again(x)):
            raise ValueError(f"the logits of {run / 'model'} differ from those of the trained weights: export it again")
    return results


def check_results(model: Path, results: Path) -> Robustness:
    """The results in the file `results`, if they are of the weights in the folder `model`; ValueError otherwise."""
    found = Robustness.load(results)
    if found.autoattack is None or found.clean is None:
        raise ValueError(f"{results} holds no AutoAttack result: evaluate with --attack autoattack before publishing")
    if found.weights != fingerprint(in_pixels(create(f"local-dir:{model}", pretrained=True))):
        raise ValueError(
            f"{results} is of other weights than those in {model} (or of another version of torch or timm, which "
            f"describe a model in other words): evaluate {model} again"
        )
    return found


def check_folder(folder: Path) -> Robustness:
    """The results of an assembled folder, if they are what its config.json says; ValueError otherwise."""
    config = read_config(check_plain(folder, "config.json"))
    for field in ("architecture", "training", "threat", "dataset", "pretrained_cfg", "num_classes"):
        if field not in config:
            raise ValueError(f"{folder / 'config.json'} has no {field}: assemble it from its run again")
    results = check_results(folder, check_plain(folder, "results.json"))
    threat = config["threat"]
    if not isinstance(threat, dict) or not isinstance(threat.get("eps"), int | float):
        raise ValueError(f"{folder / 'config.json'}: threat is {threat!r}, wanted norm and eps")
    check_threat(results, str(threat.get("norm")), threat["eps"], f"{folder / 'config.json'}")
    source = config["dataset"].get("source", results.data.name) if isinstance(config["dataset"], dict) else None
    if source != results.data.name:
        raise ValueError(
            f"{folder / 'config.json'} says data {source!r}, results.json was measured on {results.data.name!r}: "
            "assemble it from its run again"
        )
    return results


def threat_of(run: Path) -> PGD:
    """An attack with norm and eps of a run, by its config.yaml; with the defaults, where nobody gave a number."""
    own = known(str(run))
    return PGD(norm=own.norm or "linf", eps=own.eps)


def check_threat(results: Robustness, norm: str, eps: float, where: str) -> None:
    """ValueError unless `results` are for this norm and eps."""
    if results.norm != norm or not math.isclose(results.eps, eps, rel_tol=1e-6):
        raise ValueError(
            f"results.json was measured for {results.norm} eps {eps_text(results.eps)}, and {where} says {norm} eps "
            f"{eps_text(eps)}: evaluate again with --norm {norm} --eps {eps:g}"
        )


def check_images(images: Images, results: Robustness, config: Mapping[str, Any]) -> None:
    """ValueError unless `results` are of `images`, pixel for pixel, in the size that the model's `config` says."""
    shape, wanted = tuple(images[0][0].shape), tuple(config["pretrained_cfg"]["input_size"])
    if shape != wanted:
        raise ValueError(f"the run's test images are {shape}, the model's config.json says {wanted}: export it again")
    assert results.clean is not None
    if len(results.clean.per_class) != config["num_classes"]:
        raise ValueError(
            f"results.json knows {len(results.clean.per_class)} classes, the model {config['num_classes']}"
        )
    n, size = (results.pgd or results.clean).n, len(images)
    nobody = torch.nn.Identity()  # a model is asked for its image size only, which these images have
    here = select(
        images,
        nobody,
        pgd_images=None if n >= size else n,
        autoattack_images=results.data.autoattack_images,
        seed=results.seed,
        shard=None,
    ).source
    there = results.data
    if (here.size, here.labels, here.fingerprint) != (there.size, there.labels, there.fingerprint):
        raise ValueError(
            f"results.json was measured on other images ({there.name!r}, {there.split}, {there.size}) than those of "
            f"the run's config.yaml ({here.name!r}, {here.split}, {here.size}), or they were decoded or resized "
            "otherwise: evaluate the run's model on the run's data, on this machine, and publish that"
        )

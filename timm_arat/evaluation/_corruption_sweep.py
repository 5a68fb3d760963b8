"""Accuracy under common corruptions: every corruption at every severity, the same images for every model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ._checks import check_model
from ._corrupting import COMMON, PACKAGES, SEVERITIES, check_images, check_names, corrupt, library
from ._corruptions import Corrupted, Corruptions, check_baseline
from ._evaluate import unchanged
from ._journal import Journal, Record
from ._loop import attack_batch
from ._model import device_of, fingerprint, frozen, open_model, with_logits
from ._progress import Progress
from ._score import Score
from ._selection import Data, select
from ._where import command_line, device_name, versions


def evaluate_corruptions(
    model: str | Path | nn.Module,
    data: Data,
    *,
    severities: Sequence[int] = SEVERITIES,
    corruptions: Sequence[str] = COMMON,
    images: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    baseline: Corruptions | None = None,
    state: str | Path | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    progress: bool | Callable[[str], None] = True,
    command: str | None = None,
) -> Corruptions:
    """Accuracy under the common corruptions of Hendrycks and Dietterich (arXiv:1903.12261) at severities 1 to 5.

    The noise of an image is drawn from (seed, position in the data set, corruption, severity), so that all models see
    the same images, as far as they take the same size. The strengths are those of ImageNet-C, which were chosen for
    images of 224 pixels, at any size; deviation: the images of CIFAR-10-C were made with weaker ones, and those of
    ImageNet-C before the resizing, so numbers are not those of the published image sets. Hand these in as `data` to
    `evaluate` for their numbers. Images are rounded to 8 bits, and the result of some corruptions is cut to them.

    Args:
        severities, corruptions: Which; the 15 of the benchmark if not given. speckle_noise, gaussian_blur, spatter and
            saturate are known, too.
        images: On this many images, seeded and stratified; None is all.
        seed: Of the choice of images and of the noise.
        batch_size: Images a batch; no number depends on it.
        baseline: What mCE is to be normalised by; it is only looked at, so that one that does not fit is refused before
            anything runs. See `Corruptions.mce`.
        model, data, state, name, device, progress, command: As for `evaluate`.

    Raises:
        ImportError: the package imagecorruptions-imaug is not installed; the extra `corruptions` has it.
        ValueError: an unknown corruption or severity; images of other than 3 channels or below 32 pixels a side; or
            what `evaluate` refuses.
    """
    check_names(corruptions, severities)
    severities, corruptions = tuple(severities), tuple(corruptions)
    for what, number in (("images", images), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"{what}={number} is not at least 1")
    library()
    net, found_name = open_model(model, device)
    chosen = select(data, net, pgd_images=images, autoattack_images=0, seed=seed, shard=None)
    check_images(chosen.x)
    if baseline is not None:
        check_baseline(
            baseline,
            labels=chosen.source.labels,
            positions=tuple(chosen.positions.tolist()),
            corruptions=corruptions,
            severities=severities,
            seed=seed,
        )

    with frozen(net):
        x = chosen.x[:batch_size].to(device_of(net))
        net = with_logits(net, x[:1])
        num_classes = check_model(net, x, chosen.y, gradients=False)
        package_versions = versions(*PACKAGES)
        identity = {
            "weights": fingerprint(net),
            "images": chosen.source.fingerprint,
            "corruptions": corruptions,
            "severities": severities,
            "seed": seed,
            "batch_size": batch_size,
            "versions": {each: package_versions[each] for each in PACKAGES},
        }
        journal = Journal(Path(state) if state else None, identity)

        total = len(chosen.x) * (1 + len(corruptions) * len(severities))

        def score(corruption: str, severity: int) -> Score:
            """What is right of all images under one corruption at one severity, of 0 without one."""
            stage, right = f"{corruption} {severity}", torch.ones(len(chosen.x), dtype=torch.bool)
            for number, batch in enumerate(torch.arange(len(chosen.x)).split(batch_size)):

                def run(batch: Tensor = batch) -> Record:
                    x = chosen.x[batch]
                    if severity:
                        x = corrupt(x, chosen.positions[batch].tolist(), corruption, severity, seed)
                    _, predicted, _ = attack_batch(unchanged, net, x, chosen.y[batch])
                    return {"wrong": batch[predicted != chosen.y[batch]].tolist()}

                known = (stage, number) in journal.finished
                right[journal.get_or_run(stage, number, run)["wrong"]] = False
                shown.advance(stage, len(batch), not known)
            return Score.of(chosen.positions.tolist(), right.tolist(), chosen.y.tolist(), num_classes)

        with Progress(total, progress).watching(net) as shown:
            clean = score("unchanged", 0)
            corrupted = tuple(
                Corrupted(corruption, severity, score(corruption, severity))
                for corruption in corruptions
                for severity in severities
            )
    return Corruptions(
        model=name or found_name,
        weights=str(identity["weights"]),
        data=chosen.source,
        size=(chosen.x.shape[2], chosen.x.shape[3]),
        clean=clean,
        corrupted=corrupted,
        seed=seed,
        versions=package_versions,
        device=device_name(device_of(net)),
        command=command or command_line(),
    )

"""`recipes/publish.py RUN_OR_FOLDER --repo-id ORG/NAME [--dry-run]`: assemble a checkpoint's folder and publish it."""

from dataclasses import dataclass
from pathlib import Path

from timm_arat.config import cli, read


@dataclass(frozen=True)
class Options:
    """Assemble the folder of a checkpoint from a finished run, and publish it on the Hugging Face Hub.

    Attributes:
        source: A finished run's folder, or a folder that this command assembled before.
        repo_id: ORG/NAME on the Hub; may be left out for a folder that was assembled for one.
        name: What to call the checkpoint, ARCHITECTURE.TAG; the NAME of repo_id if not given.
        cards: Folder of the checkpoints' folders.
        dry_run: Assemble and check, and send nothing.
        mix: Share of the auxiliary branch in the published norms, in [0, 1]: more clean accuracy, less robustness.
        dataset_name: What people call the data set; the run's name of it if not given.
        dataset_id: The data set on the Hub, such as uoft-cs/cifar10.
        dataset_note: A sentence about the data for the card.
        license: Licence of the weights, by the Hub's name for it such as cc-by-nc-4.0, where data or start demand one;
            that of the architecture in timm if not given.
        images: Test images behind the curves and the dial, where these are measured: of a run, or with `results`.
        results: For an assembled folder: other results of it, which `evaluate.py FOLDER` wrote, of more images perhaps.
        twin: The run of the same backbone on the same data by another method, with which the card compares; also for an
            assembled folder.
        private: Make a new repository private.
        create_pr: Propose a pull request instead of writing to the main branch.
        tag: Version to tag; the next of v1, v2, ... if not given.
    """

    source: str
    repo_id: str | None = None
    name: str | None = None
    cards: str = "hub_cards"
    dry_run: bool = False
    mix: float = 0.0
    dataset_name: str | None = None
    dataset_id: str | None = None
    dataset_note: str | None = None
    license: str | None = None
    images: int = 1000
    results: str | None = None
    twin: str | None = None
    private: bool = False
    create_pr: bool = False
    tag: str | None = None


# What an assembled folder has already.
OF_A_RUN = ("name", "cards", "mix", "dataset_name", "dataset_id", "dataset_note", "license")


@cli
def main() -> None:
    """Assemble, check, publish, and say where it is."""
    options = read(
        Options, variants={}, prog="publish.py", description="A checkpoint's way to the Hub.", positional="source"
    )
    source = Path(options.source)
    if not source.is_dir():
        raise ValueError(
            f"{source} is not a folder: give a finished run (runs/...) or an assembled folder (hub_cards/...)"
        )
    if options.repo_id is not None:
        _check(options.repo_id)
    if options.tag is not None and options.create_pr:
        raise ValueError("--tag: a pull request has no version yet; it is tagged when it is published after the merge")
    # Here, so that --help and errors do not wait for torch.
    from timm_arat.hub._again import renew
    from timm_arat.hub._assemble import assemble
    from timm_arat.hub._files import files, left_out
    from timm_arat.hub._publish import check, publish

    folder = source
    if (source / "config.yaml").is_file() or not (source / "hub.json").is_file():
        if options.results is not None:
            raise ValueError(f"--results is for an assembled folder; {source} is taken for a run, which has its own")
        if options.repo_id is None:
            raise ValueError("--repo_id ORG/NAME is missing: the card says how to load the model from there")
        folder = Path(options.cards) / (options.name or options.repo_id.rpartition("/")[2])
        dataset = {key: value for key in ("name", "id", "note") if (value := getattr(options, f"dataset_{key}"))}
        assemble(
            source,
            folder,
            options.repo_id,
            mix=options.mix,
            dataset=dataset,
            license=options.license,
            images=options.images,
            twin=options.twin,
        )
        print(f"assembled {folder}: {', '.join(files(folder))}", flush=True)
    elif given := [f"--{field}" for field in OF_A_RUN if getattr(options, field) != getattr(Options, field)]:
        raise ValueError(
            f"{', '.join(given)}: for a run, and {source} is assembled already: leave that out, or give its run"
        )
    elif options.images != Options.images and options.results is None:
        raise ValueError(f"--images: nothing is measured of {source}, which is assembled already; with --results it is")
    elif options.results is not None or options.twin is not None:
        renew(folder, results=options.results, images=options.images, twin=options.twin)
        print(f"renewed {folder}", flush=True)
    repo_id = check(folder, options.repo_id)
    if others := left_out(folder):
        print(f"left out, not files of a checkpoint: {', '.join(others)}", flush=True)
    if options.dry_run:
        print(f"dry run: {folder} may be published as {repo_id}; nothing was sent")
        return
    published = publish(folder, repo_id, private=options.private, create_pr=options.create_pr, tag=options.tag)
    print(f"published {published.url}")
    if published.tag:
        print(f"{published.tag}: timm.create_model('hf-hub:{repo_id}@{published.tag}', pretrained=True)")


def _check(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--repo_id {repo_id}: the Hub takes no such name: {error}") from error
    if not all(repo_id.partition("/")[::2]):
        raise ValueError(f"--repo_id {repo_id}: wanted ORG/NAME")


if __name__ == "__main__":
    main()

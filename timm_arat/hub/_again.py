"""What an assembled checkpoint takes later, when its run may be gone: results of more images, and a twin."""

import tempfile
from pathlib import Path

import yaml

from ..data import DataConfig
from ..models._json import read_config, read_json
from ..models._weights import RECORD
from ._agree import check_folder, check_results, check_threat
from ._assemble import CURVE_IMAGES, test_images, write_measured, write_rendered, write_twin
from ._files import copy_files, files, move_into
from ._public import check_public, public_results


def renew(
    folder: str | Path,
    *,
    results: str | Path | None = None,
    images: int = CURVE_IMAGES,
    twin: str | Path | None = None,
) -> None:
    """Let the assembled checkpoint in `folder` take other results, or a twin, and write its card anew.

    The weights stay. With `results` the curves and pictures are measured and drawn again, on the images and with the
    settings of these.

    Args:
        folder: A folder that `assemble` wrote.
        results: What `evaluate` wrote of this checkpoint, on the same data and for the same threat.
        images: Stratified test images for the curves.
        twin: A run's folder, of the same backbone on the same data by another method, with which the card compares; in
            the place of the twin that `folder` has.

    Raises:
        ValueError: `folder` is no assembled checkpoint; `results` are of other weights, images or another threat; or
            `twin` is not a finished, evaluated run that can be compared. `folder` is then as it was.
    """
    folder = Path(folder)
    here = check_folder(folder)
    config, repo_id = read_config(folder / "config.json"), read_json(folder / RECORD)["repo_id"]
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as partial:
        aside = Path(partial) / folder.name
        copy_files(folder, aside)
        if results is not None:
            found = check_results(folder, Path(results))
            check_threat(found, config["threat"]["norm"], config["threat"]["eps"], str(folder / "config.json"))
            recipe = yaml.safe_load((folder / "training.yaml").read_text())
            # The recipe has the data's public name, without the folder of a machine; the result has the one here.
            where = "root" if recipe["data"]["name"] == "folder" else "name"
            test = test_images(DataConfig(**recipe["data"] | {where: found.data.name}), config, found)
            here = public_results(found)
            here.save(aside / "results.json")
            write_measured(aside, config, here, test, images)
        if twin is not None:
            write_twin(Path(twin), aside, here)
        write_rendered(aside, repo_id)
        check_folder(aside)
        check_public(aside, files(aside), (Path.home(), Path.cwd(), folder.parent.resolve()))
        move_into(aside, folder)

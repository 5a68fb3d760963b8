"""The one gate for weights: `create` is timm's `create_model`, and what it loads is safetensors or an error.

timm prefers safetensors and takes a pickle where it finds no other file, or where a configuration names one. So we find
the file ourselves, in timm's order of sources, and give it to timm by name; timm then looks nowhere else.
"""

from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

from ._json import read_config
from ._safetensors import shapes
from ._weights import AUX_NORM, WEIGHTS, WeightsNotFoundError, download, refuse_pickle

OURS = ("timm_arat.models.arat", "timm_arat.models.robustbench")  # they pass the gate themselves, by `_weights.fetch`
# A timm configuration may name the pickle of a repository that holds safetensors, too, by these rules of timm's.
SAFE = {
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}
PICKLES = (".bin", ".pth", ".pt", ".tar", ".ckpt", ".pkl", ".npz", ".npy")


def create(
    name: str,
    pretrained: bool = False,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`timm.create_model(name, pretrained, ...)`, with timm's arguments, for names and files that others gave.

    Args:
        name: A timm model's name, hf-hub:ORG/NAME[@REVISION] or local-dir:FOLDER.
        pretrained: Load weights; without, a config.json is checked and no weights are looked for.
        pretrained_cfg: As timm's.
        pretrained_cfg_overlay: As timm's; a `file` must be safetensors.
        checkpoint_path: A safetensors file to load after the model was built.
        cache_dir: As timm's.
        kwargs: Of the model.

    Raises:
        WeightsNotFoundError: there is no safetensors file where the weights would come from.
        ValueError: another kind of file is named, a file is torn, or a field of config.json lies outside its bounds.
    """
    if checkpoint_path is not None:
        _check_file(Path(checkpoint_path))
    overlay = dict(pretrained_cfg_overlay or {})
    found = resolve(name, pretrained, pretrained_cfg=pretrained_cfg, overlay=overlay, cache_dir=cache_dir)
    try:
        return timm.create_model(
            found.name,
            pretrained=pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay | found.overlay or None,
            checkpoint_path=checkpoint_path,
            cache_dir=cache_dir,
            **kwargs,
        )
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # what timm and torch raise for a foreign config.json is of a dozen kinds
        if found.config is None:
            raise
        said = " ".join((str(error) or type(error).__name__).split())[:300]
        raise ValueError(f"{found.config} and its weights make no model of timm's: {said}") from error


class Source:
    """What to ask of timm in the place of `create`'s name: the checked folder, and the weights' file in `overlay`."""

    def __init__(self, name: str, config: Path | None = None, file: Path | None = None, **overlay: Any):
        self.name, self.config, self.file = name, config, file
        self.overlay: dict[str, Any] = overlay
        if file is not None:
            # `source` would send timm to the folder or the Hub again, `custom_load` to a reader of another format.
            self.overlay |= {"file": str(file), "source": None, "custom_load": False}


def resolve(
    name: str,
    pretrained: bool = True,
    *,
    pretrained_cfg: Any = None,
    overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
) -> Source:
    """Where the weights of `name` come from: one safetensors file, downloaded if it lies on the Hub.

    Raises:
        WeightsNotFoundError, ValueError: as `create` does.
    """
    scheme, _, where = name.partition(":")
    scheme = scheme.lower().replace("_", "-")
    from_overlay = _from_cfg(replaced, name, cache_dir) if (replaced := _replaced(overlay)) and pretrained else None
    if scheme == "local-dir":
        config = Path(where) / "config.json"
        if not config.is_file():
            raise WeightsNotFoundError(f"{where} is no exported model: there is no {config}")
        _architecture(read_config(config), config)
        file = (from_overlay or weights_in(Path(where))) if pretrained else None
        return Source(name, config, file)
    if scheme == "hf-hub":
        config = download(where, cache_dir=cache_dir, config=True)
        fields = read_config(config)
        _architecture(fields, config)
        if not pretrained:
            return Source(f"local-dir:{config.parent}", config)
        filename = fields.get("pretrained_cfg", fields).get("hf_hub_filename") or WEIGHTS
        # Of the commit whose config.json was checked: the cache keeps a folder for each.
        same = f"{where.partition('@')[0]}@{config.parent.name}" if config.parent.parent.name == "snapshots" else where
        file = from_overlay or download(same, filename, cache_dir)
        shapes(file)
        return Source(f"local-dir:{config.parent}", config, file, hf_hub_id=where)
    architecture, _, tag = name.partition(".")
    if not pretrained or not timm.is_model(architecture):
        return Source(name)
    if timm.model_entrypoint(architecture).__module__ in OURS:
        return Source(name)
    return Source(
        name, None, _from_cfg(resolve_pretrained_cfg(architecture, pretrained_cfg or tag, overlay), name, cache_dir)
    )


def exported(folder: str | Path) -> Path | None:
    """Where the exported model of a run's folder lies, or of its own folder; None where there is none."""
    places = Path(folder) / "model", Path(folder)
    return next((place for place in places if (place / "config.json").is_file()), None)


def weights_in(folder: Path) -> Path:
    """model.safetensors of `folder`, or its only other safetensors file if no file of another kind lies beside it."""
    file = folder / WEIGHTS
    if not file.is_file():
        others = [path for path in sorted(folder.glob("*.safetensors")) if path.name != AUX_NORM]
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in PICKLES]
        if len(others) != 1 or pickles:
            raise WeightsNotFoundError(
                f"{folder} holds no {WEIGHTS}, and nothing else is loaded, since a pickle may run code: export it again"
                + (
                    f" (there are {', '.join([*pickles, *(path.name for path in others)])})"
                    if pickles or others
                    else ""
                )
            )
        (file,) = others
    shapes(file)
    return file


def _replaced(overlay: dict[str, Any] | None) -> PretrainedCfg | None:
    """The sources in an overlay for a folder or a repository, if it names some."""
    sources: dict[str, Any] = {
        key: (overlay or {}).get(key) for key in ("file", "url", "hf_hub_id", "hf_hub_filename", "state_dict")
    }
    return PretrainedCfg(**sources) if any(sources.values()) else None


def _from_cfg(cfg: PretrainedCfg, name: str, cache_dir: str | Path | None) -> Path | None:
    """The file that timm's configuration points to; None for weights in memory, and for a model without weights."""
    from_hub = cfg.source == "hf-hub"
    if cfg.state_dict and not cfg.source:
        return None
    if cfg.file and not from_hub:
        file = Path(cfg.file)
        if file.is_dir():
            return weights_in(file)
        _check_file(file)
        return file
    if cfg.hf_hub_id:
        filename = cfg.hf_hub_filename or WEIGHTS
        file = download(cfg.hf_hub_id, SAFE.get(filename, filename), cache_dir)
        shapes(file)
        return file
    if cfg.url:
        raise ValueError(
            f"{name}: timm knows its weights at {cfg.url} only, which is no safetensors file: convert it where you "
            "trust it, and give pretrained_cfg_overlay=dict(file='.../model.safetensors')"
        )
    return None


def _check_file(path: Path) -> None:
    refuse_pickle(path.name, str(path))
    if not path.is_file():
        raise WeightsNotFoundError(f"there is no file {path}")
    shapes(path)


def _architecture(config: dict[str, Any], path: Path) -> None:
    if not timm.is_model(config["architecture"]):
        raise ValueError(
            f"{path}: architecture is {config['architecture']!r}, which timm does not know: import the package that "
            "registers it, or a newer timm"
        )

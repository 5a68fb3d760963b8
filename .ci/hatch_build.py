"""What a wheel and an editable install hold beside the package.

A wheel holds the checkpoints of hub_cards/ whose weights have at most 6 MB; of larger ones it has the card and the
numbers, and their weights stay in the repository.

An editable install, which `uv run` makes, has accelerate_launch.pth; wheels never hold it. `accelerate launch` without
flags warns that the flags have defaults, before any code of ours runs. The README's command means those defaults, so in
a checkout's own environment the launcher's logger drops that one notice.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MAX_BYTES = 6_000_000


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        build_data["force_include_editable"] = {str(root / ".ci" / "accelerate_launch.pth"): "accelerate_launch.pth"}
        for path in cards(root / "hub_cards"):
            build_data["force_include"][str(path)] = f"timm_arat/{path.relative_to(root).as_posix()}"


def cards(folder: Path) -> list[Path]:
    """The files of hub_cards/ that ship: all but the weights, both branches', of checkpoints larger than 6 MB."""
    found = []
    for path in sorted(folder.rglob("*")):
        weights = path.with_name("model.safetensors")
        is_large = weights.is_file() and weights.stat().st_size > MAX_BYTES
        if path.is_file() and not path.is_symlink() and not (path.suffix == ".safetensors" and is_large):
            found.append(path)
    return found

"""Add accelerate_launch.pth to the editable install that `uv run` makes; wheels never hold it.

`accelerate launch` without flags warns that the flags have defaults, before any code of ours runs. The README's command
means those defaults, so in a checkout's own environment the launcher's logger drops that one notice.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        source = Path(self.root) / ".ci" / "accelerate_launch.pth"
        build_data["force_include_editable"] = {str(source): "accelerate_launch.pth"}

"""A client of the loopback Hub."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hub_server import HubServer


@dataclass
class HubClient:
    """Runs scripts against `server`, each in a process of its own: huggingface_hub reads its settings on import."""

    server: HubServer
    folder: Path  # where they run; `folder`/home is their cache

    @property
    def env(self) -> dict[str, str]:
        quiet = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1,localhost"}
        return os.environ | quiet | self.server.env | {"HF_HOME": str(self.folder / "home")}

    def run(self, script: str, *arguments: object, **env: str) -> str:
        """What `script` prints; it has the arguments in `sys.argv`. A script that fails fails the test."""
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, env=self.env | env, cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done.stdout.strip()

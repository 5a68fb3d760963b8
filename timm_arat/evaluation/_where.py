"""What a result says of where it was measured."""

import platform
import shlex
import sys
from importlib.metadata import version

import torch

PACKAGES = ("torch", "timm", "timm_arat", "pyautoattack")


def versions(*others: str) -> dict[str, str]:
    """Of what a result depends on, and of the packages `others`."""
    return {"python": platform.python_version()} | {package: version(package) for package in (*PACKAGES, *others)}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"


def command_line() -> str:
    """The command that this process was started by, as one would type it: a module by `-m`, not by its file's path."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return shlex.join(sys.argv)
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])

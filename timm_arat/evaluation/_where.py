"""What a result says of where it was measured."""

import platform
import shlex
import sys
from importlib.metadata import version

import torch

PACKAGES = ("torch", "timm", "timm_arat", "pyautoattack")


def named_device(name: str | torch.device | None) -> torch.device:
    """The device called `name`, such as cpu or cuda:1; if not given cuda where there is one, and else the CPU.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    try:
        found = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without it
        said = str(error).splitlines()[0]
        raise ValueError(f"device={name!r} is not here: {said}; give cpu, cuda, cuda:1 ..., or leave it out") from error
    return found


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

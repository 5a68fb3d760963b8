"""`python -m timm_arat.demo [--model NAME]`: a checkpoint in the browser; `--space DIR`: the same for the Hub."""

import json
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from timm_arat.config import cli, read

TESTED = "6.31.0"  # of gradio, for a Space that is written where gradio is missing


@dataclass(frozen=True)
class Options:
    """Attack a checkpoint on pictures of your own, in a browser.

    Attributes:
        model: The checkpoint to begin with, a name of timm_arat.list_robust(), or the folder of a finished run or of
            an exported model; the first of the list if not given.
        host: Address to listen at. By default only this machine reaches the page; 0.0.0.0 lets the whole network in.
        port: Port to listen at; the first free one from 7860 on if not given.
        space: Write the page as a Hugging Face Space into this folder, which must be new or empty, and serve nothing.
    """

    model: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    space: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("host", "port") if getattr(self, name) != getattr(Options, name)]
        if self.space is not None and given:
            raise ValueError(f"{' and '.join(given)}: a space, which is written and not started here, has none")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port={self.port} is not in 1 ... 65535")


@cli
def main() -> None:
    """The command line."""
    options = read(Options, variants={}, prog="python -m timm_arat.demo", description="Try it in a browser.")
    if options.space is not None:
        folder = write_space(Path(options.space), options.model)
        print(f"written to {folder}: look at it, then push it as docs/publishing.md says")
        return
    if options.port is not None:
        check_free(options.host, options.port)
    # Here, so that --help and errors do not wait for torch.
    from timm_arat.demo import launch

    launch(options.model, options.host, options.port)


def check_free(host: str, port: int) -> None:
    """OSError, in a sentence, unless one may listen at `port` of `host`."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise OSError(
            f"nothing can listen at port {port} of {host} ({error.strerror}): give another --port, or none for the "
            "first free one"
        ) from error


APP = '''"""The page of timm_arat, as a Space serves it."""

from timm_arat.demo import launch

launch({model!r})
'''
ABOUT = """
# {title}

Drop a picture, slide eps, and see a robust classifier's prediction before and after a PGD attack that runs on the spot.
The page is that of `python -m timm_arat.demo`; the checkpoints are those that `timm_arat.list_robust()` shows.
"""


def write_space(folder: Path, model: str | None = None) -> Path:
    """Write app.py, requirements.txt and README.md of a Space into `folder`, which is new or empty.

    model: The checkpoint to begin with, a name of `timm_arat.list_robust()`.

    Raises:
        ValueError: the folder holds something, or a Space could not load the model.
    """
    from huggingface_hub import SpaceCardData

    from timm_arat.demo._page import TITLE
    from timm_arat.hub import list_robust
    from timm_arat.models._weights import CARDS, RECORD, WHEEL_BYTES

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty, and nothing is overwritten: name a new folder")
    names = [row.name for row in list_robust() if row.bytes is None or row.bytes <= WHEEL_BYTES]
    if model is not None and model not in names:
        raise ValueError(
            f"{model} does not lie in the package or on the Hub, where a Space finds it: name one of {', '.join(names)}"
        )
    records = [CARDS / name / RECORD for name in names]
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = TESTED
    card = SpaceCardData(
        title=TITLE,
        sdk="gradio",
        sdk_version=gradio,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=[json.loads(record.read_text())["repo_id"] for record in records if record.is_file()],
        tags=["timm", "adversarial-robustness"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(APP.format(model=model))
    (folder / "requirements.txt").write_text(f"timm_arat[demo]=={version('timm_arat')}\n")
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n{ABOUT.format(title=TITLE)}")
    return folder


if __name__ == "__main__":
    main()

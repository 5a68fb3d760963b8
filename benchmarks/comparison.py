"""Put the table of a comparison into a document: `python -m benchmarks.comparison docs/comparison/official`.

The folder is that of `recipes/compare.py --output`; its `comparison.md` comes to stand between `<!-- NAME:begin -->`
and `<!-- NAME:end -->`, with the pictures below it, where NAME is the folder's.
"""

from dataclasses import dataclass
from pathlib import Path

from timm_arat.config import cli, read

from .document import write_block

PICTURES = {
    "accuracy.png": "Clean accuracy against that under the strongest attack",
    "time.png": "Their sum against time",
    "held_out.png": "Accuracy on held-out images along the training",
}


@dataclass(frozen=True)
class Options:
    """What to put where.

    Attributes:
        folder: The comparison's folder, which lies beside or below the document.
        into: The Markdown document.
    """

    folder: str
    into: str = "docs/comparison.md"


@cli
def main() -> None:
    """Copy the table, which was rendered from the JSON beside it."""
    options = read(
        Options, variants={}, positional="folder", prog="python -m benchmarks.comparison", description=__doc__ or ""
    )
    folder, document = Path(options.folder), Path(options.into)
    table = (folder / "comparison.md").read_text(encoding="utf-8").rstrip("\n").split("\n")
    place = folder.resolve().relative_to(document.resolve().parent)
    shown = [f"![{words}]({place}/{name})" for name, words in PICTURES.items() if (folder / name).is_file()]
    write_block(document, folder.name, [*table, *([""] if shown else []), *shown])


if __name__ == "__main__":
    main()

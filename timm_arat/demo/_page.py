"""The page: what a visitor chooses on the left, what comes of it on the right."""

import functools
import html
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from ._attack import MAX_STEPS, attack, explain, magnified, picture, prepare
from ._zoo import Checkpoint, Zoo

if TYPE_CHECKING:
    import gradio as gr

TITLE = "Robust image classifiers, attacked on the spot"
INTRO = (
    "An adversarial attack changes a picture a little, so that a classifier gets it wrong. Choose a checkpoint and a "
    "picture, say how far the attack may go, and see whether the prediction holds."
)
NOTES = (
    "Both predictions are made of the small picture that the network sees, in its own size. What is shown here is "
    "rounded to 8 bits, the attacked one is not. One picture says little about a checkpoint: its accuracy on many is "
    "above. Example photographs are scikit-learn's: china.jpg by danielbuechele and flower.jpg by vultilion, CC BY 2.0."
)
OWN = "the model's own prediction"
CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto}
.pixels img {image-rendering: pixelated}
#notes {opacity: 0.7; font-size: 0.9em}
"""


def launch(model: str | None = None, host: str | None = None, port: int | None = None) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model: The checkpoint to begin with: a name of `timm_arat.list_robust()`, or a folder, see `Zoo`.
        host: Address to listen at; None lets gradio decide: 127.0.0.1, or what a Space's environment says.
        port: None takes the first free one from 7860 on.

    Raises:
        ImportError: gradio is missing.
        ValueError: there is no such model.
        OSError: the port is taken.
    """
    gradio = _gradio()
    page = build(Zoo(model))
    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )  # no download
    page.launch(
        server_name=host, server_port=port, theme=theme, css=CSS, footer_links=[], max_file_size="20mb", show_error=True
    )


def build(zoo: Zoo) -> "gr.Blocks":
    """The page for the checkpoints of `zoo`, the first of which is opened here."""
    gr = _gradio()
    first = settings(zoo.open(zoo.first))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n{INTRO}")
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                name = gr.Dropdown(zoo.names, value=zoo.first, label="Checkpoint", elem_id="checkpoint")
                about = gr.Markdown(**first["about"], elem_id="about")
                image = gr.Image(
                    type="filepath", image_mode=None, sources=["upload"], label="Picture", height=180, elem_id="picture"
                )
                # gradio would open the file here and report a broken one in its own terms; `prepare` has a sentence.
                image.preprocess = lambda sent: sent and sent.path
                gr.Examples([[str(path)] for path in examples()], image, label="Or one of these", elem_id="examples")
                eps = gr.Slider(**first["eps"], elem_id="eps")
                mix = gr.Slider(**first["mix"], elem_id="mix")
                button = gr.Button("Attack", variant="primary", size="lg", elem_id="attack")
                with gr.Accordion("More settings", open=False):
                    label = gr.Dropdown(**first["label"], elem_id="label")
                    steps = gr.Slider(1, MAX_STEPS, value=20, step=1, label="Steps of the attack (PGD)")
            with gr.Column(scale=3, min_width=420):
                said = gr.Markdown(WAITING, elem_id="said")
                with gr.Row():
                    before = gr.Label(num_top_classes=5, label="Prediction before", elem_id="before")
                    after = gr.Label(num_top_classes=5, label="Prediction after", elem_id="after")
                with gr.Row():
                    shown = dict(interactive=False, format="png", buttons=[], elem_classes="pixels", height=250)
                    seen = gr.Image(label="What the network sees", **shown)
                    attacked = gr.Image(label="The same, attacked", **shown)
                    change = gr.Image(label="The change", elem_id="change", **shown)
                gr.Markdown(NOTES, elem_id="notes")
        found = [said, before, after, seen, attacked, change]

        def opened(name: str) -> list[Any]:
            updates = settings(zoo.open(name))
            return [gr.update(**updates[key]) for key in ("about", "eps", "mix", "label")]

        def attacked_now(*given: Any) -> list[Any]:
            *values, magnification = answer(zoo, *given)
            return [*values[:-1], gr.update(value=values[-1], label=magnification)]

        quietly: dict[str, Any] = dict(show_progress="hidden", api_visibility="private")
        name.input(_in_sentences(opened), name, [about, eps, mix, label], api_visibility="private")
        button.click(
            _in_sentences(attacked_now), [name, image, eps, mix, label, steps], found, show_progress_on=said,
            api_visibility="private",
        )  # fmt: skip
        # An answer does not stay beside another picture or checkpoint than its own.
        gr.on([name.input, image.change], lambda: [WAITING, *[None] * 5], None, found, **quietly)
    return page


WAITING = "### Not attacked yet\nChoose a picture, slide eps and press **Attack**."


def settings(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """What the components that depend on the checkpoint show, by component."""
    linf = checkpoint.norm == "linf"
    own = round(checkpoint.levels * checkpoint.eps, 6)
    return {
        "about": {"value": checkpoint.about},
        "eps": {
            "maximum": round(checkpoint.levels * checkpoint.max_eps, 6),
            "value": own,
            "step": 0.5 if linf else own / 20,
            "minimum": 0,
            "label": f"eps ({checkpoint.norm}{', in 255ths' if linf else ''})",
            "info": ("How far each pixel value may move." if linf else "How far the whole picture may move.")
            + f" The checkpoint was trained for {own:g}.",
        },
        "mix": {
            "minimum": 0,
            "maximum": 1,
            "value": 0,
            "step": 0.05,
            "visible": checkpoint.has_dial,
            "label": "mix, the dial between the branches",
            "info": "0: the adversarial branch, as published. 1: the clean one, which is fooled sooner.",
        },
        "label": {
            "choices": [(OWN, -1), *((name, index) for index, name in enumerate(checkpoint.labels))],
            "value": -1,
            "label": "True class, which the attack leads away from",
            "info": "Where you choose none, the attack leads away from what the model itself predicts.",
        },
    }


def answer(zoo: Zoo, name: str, path: str | None, eps: float, mix: float, label: int, steps: int) -> list[Any]:
    """Attack the image file `path`: sentence, probabilities before and after by name, three pictures, a caption.

    eps: as the slider has it, in 255ths for linf. label: a class, or -1 for the model's own prediction.

    Raises:
        ValueError: there is no picture yet, or something is out of its range; a sentence for the visitor.
    """
    if not path:
        raise ValueError("There is no picture yet: drop one, or click one of the examples.")
    checkpoint = zoo.open(name)
    outcome = attack(
        checkpoint,
        prepare(checkpoint, path),
        eps=eps / checkpoint.levels,
        mix=mix if checkpoint.has_dial else 0.0,
        steps=steps,
        label=None if label == -1 else label,
    )
    perturbation, factor = magnified(outcome)
    return [
        explain(checkpoint, outcome),
        dict(zip(checkpoint.labels, outcome.before.tolist(), strict=True)),
        dict(zip(checkpoint.labels, outcome.after.tolist(), strict=True)),
        *map(picture, (outcome.x, outcome.x_adv, perturbation)),
        f"The change, {factor:.3g} times" if outcome.eps else "No change",
    ]


def examples() -> list[Path]:
    """Pictures to click: a drawing of ours, and scikit-learn's photographs where it is installed."""
    folder = Path(tempfile.mkdtemp(prefix="timm_arat_demo_"))
    _ship().save(folder / "drawn_ship.png")
    found = [folder / "drawn_ship.png"]
    try:
        import sklearn.datasets
    except ImportError:
        return found
    photographs = Path(sklearn.datasets.__file__).parent / "images"
    return found + [path for path in (photographs / "china.jpg", photographs / "flower.jpg") if path.is_file()]


def _ship() -> Image.Image:
    image = Image.new("RGB", (256, 256), (150, 190, 225))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 165, 256, 256), fill=(40, 80, 120))  # the sea
    draw.polygon([(25, 140), (232, 140), (205, 185), (50, 185)], fill=(60, 30, 30))
    draw.rectangle((80, 105, 180, 140), fill=(235, 235, 235))
    draw.rectangle((110, 75, 150, 105), fill=(220, 220, 220))
    draw.rectangle((122, 45, 138, 75), fill=(190, 50, 40))
    return image


def _in_sentences(act: Callable[..., Any]) -> Callable[..., Any]:
    """Show the visitor what went wrong as the sentence that the error carries."""
    gr = _gradio()

    @functools.wraps(act)
    def acting(*given: Any) -> Any:
        try:
            return act(*given)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
        except Exception as error:
            traceback.print_exc()
            raise gr.Error(
                f"Something went wrong that nobody foresaw ({type(error).__name__}); the terminal says more.",
                duration=None,
                print_exception=False,
            ) from error

    return acting


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install timm_arat[demo]") from error
    return gradio

"""The page: what a visitor chooses on the left, what comes of it on the right."""

import functools
import html
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._attack import MAX_STEPS
from ._shown import answer, examples, settings
from ._zoo import Zoo

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
WAITING = "### Not attacked yet\nChoose a picture, slide eps and press **Attack**."
CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto}
.pixels img {image-rendering: pixelated}
#said h3 {font-size: 1.6em; margin: 0}
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
    # The system's fonts: gradio's own would be fetched from elsewhere.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
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


def _in_sentences(act: Callable[..., Any]) -> Callable[..., Any]:
    """Show the visitor what went wrong as the sentence that the error carries."""
    gr = _gradio()

    @functools.wraps(act)
    def acting(*given: Any) -> Any:
        try:
            return act(*given)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
        except Exception as error:  # a mistake of ours, whatever it is: gradio would show the visitor its bare text
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

"""The representation that a teacher gives to learn from."""

from torch import Tensor, nn

from ..pixels import in_pixels
from ..taps import tap, tap_dims
from ._base import precise


class Features(nn.Module):
    """Average-pooled features of a timm model's last stage.

    For a ResNet that is its penultimate representation, of which papers speak. Where a norm or a convolution follows
    the last stage (pre-activation ResNets, EfficientNets, ViTs), it is what stands before them.

    Attributes:
        network: The model behind its normalisation.
        width: Number of features.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = in_pixels(model)
        self.width = tap_dims(self.network.model)["last"]

    def forward(self, x: Tensor) -> Tensor:
        """Images NxCxHxW in [0, 1] to features NxD in float32."""
        return precise(tap(self.network.model, self.network.normalize(x))[1]["last"])

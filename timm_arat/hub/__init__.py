"""Checkpoints: a plain timm folder, its card, and the way to the Hugging Face Hub; see `export` and `publish`.

_export     a trained backbone -> config.json, model.safetensors, and the other branch's norms
_curves     robust accuracy against eps, and the dial between the branches, measured
_pictures   both as figures, accuracy by class, clean and adversarial images
_card       README.md from the template and the JSON
_cost       what the training took, for the card
_assemble   a finished run -> the folder that a Hub repository will hold
_again      what that folder takes later: results of more images, a twin
_publish    that folder -> the Hub: checked, in one commit, tagged
_agree      whether results are of the model, the images and the threat beside them
_files      the files of a checkpoint by name: what may be replaced and sent
_public, _escape  no local path and no markup of others in what is sent
_robust     `list_robust`: the checkpoints that load by name, with their numbers
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Analyse runs or models: `recipes/diagnose.py RUN_OR_MODEL [ANOTHER ...] [--images 1000] [--official true]`."""

from timm_arat.diagnose import main

main()

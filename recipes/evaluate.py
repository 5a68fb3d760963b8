"""Measure a model: `recipes/evaluate.py MODEL --data.name NAME --autoattack_images 1000 [--eps 8/255]`."""

from timm_arat.evaluation.__main__ import main

main()

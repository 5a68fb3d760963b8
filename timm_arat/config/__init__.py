"""Configuration: frozen dataclasses, read from a YAML recipe and dotted options, written back as YAML."""

from timm_arat.config.command import cli as cli
from timm_arat.config.command import is_main_process as is_main_process
from timm_arat.config.files import comparisons as comparisons
from timm_arat.config.files import find as find
from timm_arat.config.files import recipes as recipes
from timm_arat.config.reader import dump as dump
from timm_arat.config.reader import leaves as leaves
from timm_arat.config.reader import read as read

__all__ = ["cli", "comparisons", "dump", "find", "is_main_process", "leaves", "read", "recipes"]

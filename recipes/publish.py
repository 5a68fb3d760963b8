"""Publish a model: `recipes/publish.py RUN_OR_FOLDER --repo_id ORG/NAME [--dry_run true]`."""

from timm_arat.hub.__main__ import main

main()

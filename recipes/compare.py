"""Compare training methods by one protocol: `recipes/compare.py FILE.yaml [--dry_run] [--settings.any.field value]`."""

from timm_arat.compare.__main__ import main

if __name__ == "__main__":
    main()

"""Train a timm backbone robustly: `accelerate launch recipes/train.py [--config RECIPE] [--any.field value]`."""

from timm_arat.train import main

if __name__ == "__main__":
    main()

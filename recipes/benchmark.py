"""Speed and memory: `recipes/benchmark.py [--only step|attack|evaluation|limit|memory] [--output FILE.json]`."""

from timm_arat.benchmark.__main__ import main

if __name__ == "__main__":  # the memory section starts processes, which import this file
    main()

"""Settings of every test: one thread, no network, and no state left behind."""

import os

# Before torch and huggingface_hub are imported: a name that is not cached would otherwise be retried for a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

"""Settings of every test: one thread, no network, and no state left behind; a Hub where a test needs one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_hub import HubClient
from hub_server import HubServer

# Before torch and huggingface_hub are imported: a name that is not cached would otherwise be retried for a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubClient]:
    """A Hub of our own (tests/hub_server.py) and a client of it."""
    with HubServer(tmp_path / "hub", write_token="hf_write", read_token="hf_read", part_size=4 << 20) as server:
        yield HubClient(server, tmp_path)

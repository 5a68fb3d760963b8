"""The official JavaScript client and the loopback Hub agree: its protocol is not made for the Python client alone."""

import hashlib
import json
import os
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.extern
PACKAGE = "@huggingface/hub@^2"
COPY = """
import { createHash } from "node:crypto";
import { createRepo, downloadFile, fileExists, listFiles, uploadFiles } from "@huggingface/hub";

const [hubUrl, accessToken] = process.argv.slice(2);
const where = { hubUrl, accessToken };
const found = {}, files = [];
for await (const { type, path } of listFiles({ ...where, repo: "tester/model", revision: "v1", recursive: true })) {
    if (type !== "file") continue;
    const content = await downloadFile({ ...where, repo: "tester/model", revision: "v1", path });
    const bytes = Buffer.from(await content.arrayBuffer());
    found[path] = createHash("sha256").update(bytes).digest("hex");
    files.push({ path, content: new Blob([bytes]) });
}
await createRepo({ ...where, repo: "tester/copy" });
await uploadFiles({ ...where, repo: "tester/copy", files, useXet: false });
const pointer = await downloadFile({ ...where, repo: "tester/copy", path: "model.safetensors", raw: true });
console.log(JSON.stringify({
    found,
    pointer: await pointer.text(),
    exists: await fileExists({ ...where, repo: "tester/copy", path: "model.safetensors" }),
    missing: await downloadFile({ ...where, repo: "tester/copy", path: "missing" }),
}));
"""


def test_the_javascript_client_copies_a_repository_byte_for_byte(hub, tmp_path):
    npm, node = shutil.which("npm"), shutil.which("node")
    if not npm or not node:
        pytest.skip("node and npm are not installed")
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), PACKAGE]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm could not install {PACKAGE}: {done.stderr[-500:]}")

    files = {"config.json": b"{}", "a/deep er/file.txt": b"text", "model.safetensors": os.urandom(11_000_000)}
    for path, content in files.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(content)
    hub.run("""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("tester/model", private=True)
api.upload_folder(repo_id="tester/model", folder_path="model")
api.create_tag("tester/model", tag="v1")
api.delete_file("config.json", "tester/model")
""")
    (tmp_path / "copy.mjs").write_text(COPY)
    command = [node, "copy.mjs", hub.server.endpoint, "hf_write"]
    copied = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert copied.returncode == 0, copied.stderr
    told = json.loads(copied.stdout)
    sha256 = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    assert {path: told["found"][path] for path in files} == sha256
    assert f"oid sha256:{sha256['model.safetensors']}\n" in told["pointer"]
    assert told["exists"] and told["missing"] is None
    copy, model = hub.server.store.repos()
    assert copy.find("main")["files"] == model.find("v1")["files"] != model.find("main")["files"]

"""The demo as a visitor meets it, in headless Chromium; `DEMO_SCREENSHOT=docs/demo.png` keeps a picture of the page.

`uv run --with gradio --with playwright pytest -m browser -n 0`, with Debian's chromium.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from timm_arat.demo.__main__ import write_space

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EMBEDDED = "resnet20_cifar_arat.cifar10_linf8"
SECONDS = 300  # until the page is there: torch and timm are imported meanwhile, on a machine that may be busy


@pytest.fixture(scope="module")
def playwright_api():
    pytest.importorskip("gradio", reason="the page needs gradio: pip install timm_arat[demo]")
    api = pytest.importorskip("playwright.sync_api", reason="this test needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    api.expect.set_options(timeout=60_000)
    return api


@pytest.fixture(scope="module")
def served(playwright_api, tmp_path_factory):
    """The address of the page, by the command."""
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    port = _free_port()
    yield from _serve([sys.executable, "-m", "timm_arat.demo", "--port", str(port)], port, log)


@pytest.fixture
def page(playwright_api, served):
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        elsewhere = []
        page.on("request", lambda request: _local(request.url) or elsewhere.append(request.url))
        page.goto(served)
        page.locator("#attack").wait_for()
        yield page
        browser.close()
        assert not elsewhere, "the page asks for files of other servers"


def test_a_visitor_attacks_an_example(page, playwright_api):
    expect = playwright_api.expect
    expect(page.locator("#said")).to_contain_text("Not attacked yet")
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name=EMBEDDED).click()
    expect(page.locator("#about")).to_contain_text("under AutoAttack")
    page.locator("#examples img").first.click()
    expect(page.locator("#picture img")).to_be_visible()

    _slide(page, "#eps", 0)
    page.locator("#attack").click()
    expect(page.locator("#said")).to_contain_text("Nothing was changed")
    assert _predicted(page, "#before") == _predicted(page, "#after")

    _slide(page, "#eps", 8)
    page.locator("#attack").click()
    expect(page.locator("#said")).to_contain_text("no pixel value moved by more than 8/255")
    expect(page.locator("#said")).to_contain_text("the model's own prediction, since no true class is chosen")
    (label, sure), (_, less) = _predicted(page, "#before"), _predicted(page, "#after")
    assert label == "ship" and less < sure
    expect(page.locator(".pixels img")).to_have_count(3)
    if path := os.environ.get("DEMO_SCREENSHOT"):
        page.wait_for_timeout(1500)  # until bars and pictures stand still
        page.mouse.move(5, 5)
        page.screenshot(path=path, full_page=True)

    _slide(page, "#mix", 1)  # the clean branch
    page.locator("#attack").click()
    expect(page.locator("#said")).to_contain_text("It was fooled")
    assert _predicted(page, "#after")[0] != _predicted(page, "#before")[0]

    page.locator("#examples img").last.click()  # an answer does not stay beside another picture
    expect(page.locator("#said")).to_contain_text("Not attacked yet")
    expect(page.locator(".pixels img")).to_have_count(0)


def test_a_visitor_drops_a_picture_and_chooses_its_class(page, playwright_api, tmp_path):
    expect = playwright_api.expect
    Image.new("RGBA", (700, 40), (200, 30, 30, 128)).save(tmp_path / "own.png")
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "own.png")
    expect(page.locator("#picture img")).to_be_visible()
    page.get_by_text("More settings").click()
    page.locator("#label input").click()
    page.get_by_role("option", name="frog").click()
    page.locator("#attack").click()
    expect(page.locator("#said")).to_contain_text("away from frog, which you chose as the true class")


def test_mistakes_are_answered_by_sentences(page, playwright_api, tmp_path):
    expect = playwright_api.expect
    page.locator("#attack").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("There is no picture yet")
    page.get_by_test_id("toast-close").click()
    Image.new("RGB", (3000, 3)).save(tmp_path / "strip.png")
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "strip.png")
    expect(page.locator("#picture img")).to_be_visible()
    page.locator("#attack").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("too long a strip")
    page.get_by_test_id("toast-close").click()
    (tmp_path / "broken.png").write_bytes((tmp_path / "strip.png").read_bytes()[:20])
    page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "broken.png")
    page.locator("#picture img").wait_for(state="attached")
    page.locator("#attack").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("this picture cannot be read")


def test_the_folder_of_a_space_serves_the_same_page(playwright_api, tmp_path):
    folder, port = write_space(tmp_path / "space", EMBEDDED), _free_port()
    environment = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}  # as a Space sets them
    serving = _serve([sys.executable, "app.py"], port, tmp_path / "log.txt", cwd=folder, **environment)
    assert "attacked on the spot" in urlopen(next(serving)).read().decode()
    serving.close()


def _slide(page, slider, value):
    page.locator(f"{slider} input[type=range]").fill(str(value))
    page.locator(f"{slider} input[type=range]").dispatch_event("pointerup")


def _predicted(page, label):
    """The first class and its probability in %, as a visitor reads them."""
    text = page.locator(label).inner_text()
    percent = re.search(r"(\d+)%", text)
    assert percent, text
    return page.locator(f"{label} h2").inner_text().strip(), int(percent[1])


def _serve(command, port, log, cwd=None, **environment):
    """Yield the address once it answers; end the server afterwards."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as file:
        server = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
        try:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                assert server.poll() is None, log.read_text()
                try:
                    urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                raise AssertionError(f"no page after {SECONDS} s: {log.read_text()}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _local(url):
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))

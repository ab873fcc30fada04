"""The page in a real Chromium: a stroke is drawn and the answer is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import requests

from tests.serving.conftest import png, until
from tests.serving.test_pyfunc import PIXELS

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SEVEN = [(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]  # parts of the paper's side

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}: CHROMIUM names its path")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser, address):
    """The page, with the model's card; what the browser complains of or asks elsewhere for fails the test."""
    page, problems = browser.new_page(viewport={"width": 1100, "height": 760}), []
    refused = "the server responded with a status of 422"  # which the page shows
    page.on("console", lambda message: refused in message.text or problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or problems.append(request.url)
    )
    page.goto(f"{address}/")
    page.wait_for_selector("#paper:visible")
    yield page
    page.close()
    assert problems == []


def answered(page):
    """Wait for an answer; returns the class and the percentage."""
    until(lambda: "ms" in page.locator("#latency").inner_text())
    return page.locator("#answer").inner_text().split()


def test_a_stroke_is_answered_while_it_is_drawn(page):
    box = page.locator("#paper").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in SEVEN]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=8)
    answered(page)  # before the stroke ends
    page.mouse.move(*points[2], steps=8)
    page.mouse.up()
    until(lambda: page.evaluate("!running && !again"))
    name, percentage = answered(page)
    assert name in "0123456789"
    assert percentage.endswith("%")
    bars = page.locator("#bars li").all_inner_texts()
    assert [bar.split()[0] for bar in bars] == list("0123456789")
    assert (
        bars[int(name)].split()[1] == percentage == max((bar.split()[1] for bar in bars), key=lambda p: float(p[:-1]))
    )
    seen = page.evaluate(
        "(() => { const i = document.getElementById('seen'); return [i.naturalWidth, i.naturalHeight] })()"
    )
    assert seen == [32, 32]
    page.click("#clear")
    assert page.locator("#seen").is_hidden()


def test_the_keyboard_draws_too(page):
    page.locator("#paper").focus()
    for key in ["ArrowRight"] * 4 + ["ArrowDown"] * 8:
        page.keyboard.press(key)
    until(lambda: page.evaluate("!running && !again"))
    assert answered(page)[0] in "0123456789"
    page.keyboard.press("Delete")
    assert page.locator("#latency").inner_text() == ""


def test_a_file_gets_the_servers_answer_and_an_unlike_one_its_warning(page, address, tmp_path):
    light = tmp_path / "light.png"
    light.write_bytes(png(255 - PIXELS[0] // 8))
    page.set_input_files("#file", light)
    found = answered(page)
    said = requests.post(
        f"{address}/predict", data=light.read_bytes(), headers={"Content-Type": "image/png"}, timeout=9
    )
    assert found[0] == said.json()["predictions"][0]["class"]
    assert page.locator("#warning").inner_text().startswith("This image is unlike the training images: brighter")
    page.set_input_files("#file", __file__)  # no image
    until(lambda: "not an image" in page.locator("#answer").inner_text())


def test_the_card_names_the_model(page, model):
    card = page.locator("#card").inner_text()
    assert model.card.run_id[:12] in card
    assert model.card.weights_sha256[:12] in card
    assert f"{100 * model.card.accuracy.value:.2f}% on 359 test images" in card


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, address):
    phone = browser.new_page(viewport={"width": 360, "height": 740}, has_touch=True)
    phone.goto(f"{address}/")
    phone.wait_for_selector("#paper:visible")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    phone.touchscreen.tap(180, 300)
    assert answered(phone)[0] in "0123456789"
    phone.close()

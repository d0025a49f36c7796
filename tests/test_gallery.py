"""The gallery, as a browser shows it: the slider, the switch, every image, phones, and the dark."""

import io
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image, ImageChops

from common import results

ROOT = Path(__file__).parents[1]
METHODS = ["nearest", "bilinear", "bicubic", "Lanczos", "linear filter"]
METHODS += ["fidelity", "fidelity, self-ensemble", "GAN", "original"]
SLOW = 60_000  # ms, on a machine that does other things


class Tags(HTMLParser):
    """Collects all tags and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_but_what_lies_beside_it() -> None:
    text = (ROOT / "figs" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w", text), "an outside host"
    tags = Tags(text).tags
    for tag, attributes in tags:
        assert tag != "img" or attributes["alt"]
        assert tag not in ("link", "iframe")
        for name in ("src", "href"):
            if (target := attributes.get(name)) and not target.startswith("#"):
                assert (ROOT / "figs" / unquote(target)).is_file(), target
    ids = Counter(attributes["id"] for _, attributes in tags if "id" in attributes)
    assert max(ids.values()) == 1 and ids.keys() >= set(results.HEADLINES)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a gallery of the committed figures, and of some apart, as if of a stand-in."""
    figs = tmp_path_factory.mktemp("gallery") / "figs"
    shutil.copytree(ROOT / "figs", figs, ignore=shutil.ignore_patterns("builtin", "quick", "evaluate"))
    for name in ("gan_upscale", "gan_upscale.json", "GAN_upscaling_final.png"):
        copy = shutil.copytree if (figs / name).is_dir() else shutil.copy
        (figs / "builtin").mkdir(exist_ok=True)
        copy(figs / name, figs / "builtin" / name)
    results.publish(figs)
    return (figs / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as player:
        try:
            browser = player.chromium.launch(executable_path=shutil.which("chromium"))
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Shown:
    """A gallery in a tab of the browser, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, **how: Any) -> None:
        self.faults: list[str] = []
        self.page = browser.new_page(**how)
        self.page.set_default_timeout(SLOW)
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", lambda request: self.faults.append(request.url))
        self.page.on("request", lambda request: self.faults.extend(re.findall("^(?!file:).*", request.url)))
        self.page.goto(address)
        self.stage = self.page.locator(".stage").first

    def border(self) -> int:
        """Per cent of the stage, from its left, where the right image is cut off."""
        clip = "image => getComputedStyle(image).clipPath"
        (percent,) = re.findall(r"([\d.]+)%\)$", self.stage.locator("img.right").evaluate(clip)) or [0]
        assert float(percent) == float(self.stage.locator("input").input_value())
        return round(float(percent))

    def choose(self, side: str, method: str) -> None:
        self.page.get_by_role("radio", name=f"{side}: {method}", exact=True).first.check()
        image = self.stage.locator(f"img.{side}")
        assert f"/{method}.webp" in unquote(
            image.evaluate("async image => (await image.decode(), image.src)")
        )
        assert image.get_attribute("alt").endswith(f", {method}")
        assert self.stage.locator(f"b.{side}").inner_text() == method

    def pixels(self) -> Image.Image:
        return Image.open(io.BytesIO(self.stage.screenshot(timeout=SLOW))).convert("RGB")


@pytest.fixture
def shown(browser: Any, gallery: str) -> Iterator[Shown]:
    tab = Shown(browser, gallery, viewport={"width": 1400, "height": 1000})
    yield tab
    tab.page.close()
    assert not tab.faults


@pytest.mark.slow
def test_every_image_loads(shown: Shown) -> None:
    load = """async image => {
        image.loading = "eager"
        await image.decode()
        return image.naturalWidth
    }"""
    images = shown.page.locator("img").all()
    assert len(images) > 30
    for image in images:
        assert image.evaluate(load) > 100, image.get_attribute("src")


@pytest.mark.slow
def test_the_slider_follows_the_mouse(shown: Shown) -> None:
    box = shown.stage.bounding_box()
    middle = box["y"] + box["height"] / 2
    assert shown.border() == 50
    shown.page.mouse.move(box["x"] + 0.5 * box["width"], middle)
    shown.page.mouse.down()
    for part in (0.4, 0.3, 0.2):
        shown.page.mouse.move(box["x"] + part * box["width"], middle)
        assert abs(shown.border() - 100 * part) <= 1
    shown.page.mouse.up()
    shown.page.mouse.click(box["x"] + 0.8 * box["width"], middle)
    assert abs(shown.border() - 80) <= 1
    shown.choose("left", "bicubic")
    shown.choose("right", "Lanczos")
    before = shown.pixels()
    shown.choose("right", "original")
    difference = ImageChops.difference(before, shown.pixels()).point(lambda by: 255 * (by > 8))
    left, _, right, _ = difference.getbbox()
    assert 0.79 * before.width < left < 0.83 * before.width < 0.95 * before.width < right


@pytest.mark.slow
def test_the_slider_and_the_switch_obey_the_keyboard(shown: Shown) -> None:
    press, seen = shown.page.keyboard.press, "part => getComputedStyle(part).outlineStyle"
    shown.page.get_by_role("navigation").get_by_role("link").last.focus()
    press("Tab")
    assert shown.page.evaluate("document.activeElement.name") == "border"
    assert shown.stage.evaluate(seen) == "solid", "one sees where the keyboard is"
    for key, border in (("ArrowRight", 51), ("ArrowLeft", 50), ("Home", 0), ("ArrowRight", 1), ("End", 100)):
        press(key)
        assert shown.border() == border
    press("Tab")
    assert shown.page.evaluate("document.activeElement.name") == "photo"
    press("ArrowRight")
    assert shown.stage.locator("img.left").get_attribute("alt") == "Photo 2, nearest"
    press("Tab")
    press("ArrowDown")
    assert shown.stage.locator("b.left").inner_text() == "bilinear"
    assert shown.page.locator(":focus").evaluate(seen) == "solid"
    summary = shown.page.locator("summary")
    summary.focus()
    press("Enter")
    assert not summary.locator("xpath=..").locator("img").is_visible(), "the animation can be stopped"


@pytest.mark.slow
def test_the_switch_shows_every_method_of_every_photo(shown: Shown) -> None:
    names = shown.page.locator(".compare").first.locator("tbody th").all_inner_texts()
    assert names == METHODS
    for method in METHODS:
        shown.choose("left", method)
        shown.choose("right", method)
    shown.choose("left", "nearest")
    photos = []
    for photo in shown.page.locator(".compare").first.locator(".photos label").all():
        photo.click()
        photos.append(shown.pixels().resize((8, 8)).tobytes())
    assert len(set(photos)) == len(photos) == 6
    apart = shown.page.locator("#apart .compare .stage img.left")
    assert apart.get_attribute("alt") == "Photo 1, nearest", "each slider has its own switch"
    assert unquote(apart.get_attribute("src")) == "builtin/gan_upscale/nearest.webp"


LUMINANCE = """part => {
    const linear = x => (x /= 255) <= .04 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4
    const light = colour => {
        const [r, g, b] = colour.match(/\\d+/g).map(linear)
        return .2126 * r + .7152 * g + .0722 * b
    }
    return [getComputedStyle(part).color, getComputedStyle(document.body).backgroundColor].map(light)
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_it_fits_every_screen_in_light_and_dark(browser: Any, gallery: str, width: int, scheme: str) -> None:
    how = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "reduced_motion": "reduce"}
    shown = Shown(browser, gallery, **how)
    scrolls = "page => [page.scrollWidth, page.clientWidth]"
    assert shown.page.locator("html").evaluate(scrolls) == [width, width]
    for part in ("h1", "p", "nav a", "figcaption", "code", "caption", ".numbers td"):
        text, paper = shown.page.locator(part).first.evaluate(LUMINANCE)
        assert (text > paper) == (scheme == "dark")
        assert (max(text, paper) + 0.05) / (min(text, paper) + 0.05) > 4.5, f"{part} can hardly be read"
    assert not shown.page.locator("details img").is_visible(), "nothing moves for who asked for that"
    cut = "cells => cells.some(cell => cell.scrollWidth > cell.clientWidth + 1)"
    assert not shown.page.locator(".numbers, .numbers td, figcaption").evaluate_all(cut)
    shown.page.close()
    assert not shown.faults

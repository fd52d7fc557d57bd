"""The documentation's site as a reader sees it: in a browser, without a network.

`make docs-test` builds it and runs this. It takes Chromium, as in Debian's packages chromium and
chromium-driver.
"""

import contextlib
import re
import shutil
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.site

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
SCREENSHOTS = SITE.parent / "screenshots"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
DESK = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
# What a page shows; a formula stands in `.math` until MathJax has set it.
LOOK = """
const formulas = [...document.querySelectorAll(".math")];
const images = [...document.querySelectorAll("article img")];
const cells = [...document.querySelectorAll(".cell")];
const shown = x => x.getClientRects().length;
return {
  sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  unset: formulas.filter(x => !x.querySelector("mjx-container")).map(x => x.textContent),
  wrong: [...document.querySelectorAll("mjx-merror, .problematic")].map(x => x.textContent),
  formulas: formulas.length,
  blank: images.filter(x => shown(x) && !x.naturalWidth).map(x => x.src),
  unnamed: images.filter(x => !x.alt || /[.](png|svg)$/.test(x.alt)).map(x => x.src),
  images: images.filter(shown).length,
  outputs: cells.filter(x => x.querySelector(".cell_output")).length,
};
"""
READY = "return window.MathJax?.startup?.promise?.then(() => true) ?? true"


def _pages():
    found = sorted(SITE.rglob("*.html"))
    assert found, f"no page in {SITE}: run `make docs`"
    return found


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver  # pyright: ignore[reportMissingImports]

    options, driver = webdriver.ChromeOptions(), shutil.which("chromedriver")
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    assert driver and options.binary_location, (
        "Chromium is missing: on Debian, apt-get install chromium chromium-driver"
    )
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")  # no network
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with contextlib.closing(_Browser(webdriver.Chrome(options=options, service=service))) as opened:
        yield opened


class _Browser:
    def __init__(self, driver):
        self.driver = driver
        self.close = driver.quit

    def open(self, path, query="", screen=DESK):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.get(f"{path.as_uri()}{query}")
        self.driver.execute_script(READY)
        return self.driver.execute_script(LOOK)

    def complaints(self):
        logged = self.driver.get_log("browser")
        return [x["message"] for x in logged if x["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def seen(browser):
    """What each page shows on a desk and on a phone."""
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    SCREENSHOTS.mkdir(parents=True)
    found = {}
    for page in _pages():
        name = page.relative_to(SITE).as_posix()
        for kind, screen in (("desk", DESK), ("phone", PHONE)):
            found[name, kind] = browser.open(page, screen=screen)
            found[name, kind]["complaints"] = browser.complaints()
            picture = SCREENSHOTS / f"{name.replace('/', '-')}-{kind}.png"
            browser.driver.save_screenshot(picture)
    return found


@pytest.mark.parametrize("kind", ["complaints", "blank", "unnamed", "unset", "wrong", "sideways"])
def test_no_page_has_a_fault(seen, kind):
    assert {place: facts[kind] for place, facts in seen.items() if facts[kind]} == {}


def test_formulas_pictures_and_outputs_stand_where_the_prose_has_them(seen):
    for name in ("how_it_works.html", "reference.html", "weighing.html"):
        assert seen[name, "desk"]["formulas"], name
    tutorials = [name for name, kind in seen if name.startswith("tutorials/") and kind == "desk"]
    assert len(tutorials) == 5
    for name in ("how_it_works.html", *tutorials):
        assert seen[name, "desk"]["images"], name
    for name in tutorials:
        assert seen[name, "desk"]["outputs"], name


def test_every_link_leads_to_a_page_and_an_anchor():
    from bs4 import BeautifulSoup  # pyright: ignore[reportMissingImports]

    parsed = {page: BeautifulSoup(page.read_text(), "html.parser") for page in _pages()}
    anchors = {
        page: {str(x["id"]) for x in tree.find_all(id=True)} for page, tree in parsed.items()
    }
    broken, followed = [], 0
    for page, tree in parsed.items():
        for link in tree("a", href=True):
            url = urllib.parse.urlsplit(str(link["href"]))
            if url.scheme or url.netloc:
                continue
            path, anchor = urllib.parse.unquote(url.path), urllib.parse.unquote(url.fragment)
            target = (page.parent / path).resolve() if path else page
            followed += link.find_parent("article") is not None
            inside = target.is_relative_to(SITE) and target.is_file()
            if not inside or (anchor and anchor not in anchors.get(target, ())):
                broken.append((page.relative_to(SITE).as_posix(), link["href"]))
    assert not broken and followed > 100


@pytest.mark.parametrize(
    "word, page",
    [("Surrogate", "reference"), ("natural gradient", "hybrid"), ("QuantumLayer", "reference")],
)
def test_the_search_finds(browser, word, page):
    from selenium.webdriver.support.ui import WebDriverWait  # pyright: ignore[reportMissingImports]

    browser.open(SITE / "search.html", f"?q={urllib.parse.quote(word)}")
    result = f"return !!document.querySelector('#search-results li a[href*=\"{page}.html\"]')"
    assert WebDriverWait(browser.driver, 20).until(lambda driver: driver.execute_script(result))
    assert not browser.complaints()


def test_a_click_makes_it_light_or_dark_and_both_can_be_read(browser):
    browser.open(SITE / "index.html")
    colors = """
    [...document.querySelectorAll(".theme-toggle")].find(x => x.getClientRects().length).click();
    const style = getComputedStyle(document.body);
    return [style.color, style.backgroundColor];
    """
    seen = {tuple(browser.driver.execute_script(colors)) for _ in range(3)}
    assert len(seen) == 2
    for text, background in seen:
        light, dark = sorted((_luminance(text), _luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG's contrast


def _luminance(color):
    channels = [int(x) / 255 for x in re.findall(r"\d+", color)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))

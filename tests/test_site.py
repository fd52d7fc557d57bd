"""The documentation's site as a reader sees it: in a browser, without a network.

`make docs-test` builds it and runs this. It takes Chromium, as in Debian's packages chromium and
chromium-driver.
"""

import contextlib
import shutil
import urllib.parse
from pathlib import Path

import pytest

pytestmark = pytest.mark.site

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
SCREENSHOTS = SITE.parent / "screenshots"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
DESK = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
# What a page shows; a formula stands in `.math` until MathJax has set it.
LOOK = """
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const formulas = [...document.querySelectorAll(".math")];
return {
  sideways: wide,
  unset: formulas.filter(x => !x.querySelector("mjx-container")).map(x => x.textContent),
  wrong: [...document.querySelectorAll("mjx-merror, .problematic")].map(x => x.textContent),
  formulas: formulas.length,
  images: [...document.images].filter(x => x.getClientRects().length && !x.naturalWidth)
    .map(x => x.src),
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
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
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
        facts = browser.open(page)
        facts["complaints"] = browser.complaints()
        browser.driver.save_screenshot(SCREENSHOTS / f"{name.replace('/', '-')}.png")
        facts["phone"] = browser.open(page, screen=PHONE)["sideways"]
        browser.driver.save_screenshot(SCREENSHOTS / f"{name.replace('/', '-')}-phone.png")
        browser.complaints()
        found[name] = facts
    return found


@pytest.mark.parametrize("kind", ["complaints", "images", "unset", "wrong", "sideways", "phone"])
def test_no_page_has_a_fault(seen, kind):
    assert {name: facts[kind] for name, facts in seen.items() if facts[kind]} == {}


def test_formulas_stand_where_the_prose_has_them(seen):
    for name in ("how_it_works.html", "reference.html", "weighing.html"):
        assert seen[name]["formulas"], name


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
            followed += 1
            if not target.exists() or (anchor and anchor not in anchors.get(target, {anchor})):
                broken.append((page.relative_to(SITE).as_posix(), link["href"]))
    assert not broken and followed > 1000


@pytest.mark.parametrize("word", ["Surrogate", "natural gradient", "QuantumLayer"])
def test_the_search_finds(browser, word):
    from selenium.webdriver.support.ui import WebDriverWait  # pyright: ignore[reportMissingImports]

    browser.open(SITE / "search.html", f"?q={urllib.parse.quote(word)}")
    results = "return [...document.querySelectorAll('#search-results li a')].map(x => x.href)"
    found = WebDriverWait(browser.driver, 20).until(lambda driver: driver.execute_script(results))
    assert any("reference.html" in x or "tutorials" in x for x in found), found
    assert not browser.complaints()


def test_it_is_light_and_dark(browser):
    browser.open(SITE / "index.html")
    color = (
        "document.body.dataset.theme = arguments[0];"
        "return getComputedStyle(document.body).backgroundColor"
    )
    light, dark = (browser.driver.execute_script(color, x) for x in ("light", "dark"))
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(19, 20, 22)")

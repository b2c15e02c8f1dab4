"""The page of an adapted student in a real browser: narrow, wide, dark, and by keyboard alone."""

import shutil

import pytest

import refbert
from jobs.memory.student_memory import student_run
from jobs.sections import ServeConfig
from tests.integration.jobs.adapting.memory import TEXTS
from tests.integration.jobs.service.conftest import address_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG = "https://example.org/" + "a" * 90
ASKED = f"the kettle of Dan is {LONG}"

LIMITS = {"narrow": 390, "wide": 1280}

WIDER = """[...document.querySelectorAll("body *")].filter(
    element => element.getBoundingClientRect().right > innerWidth + 0.5).map(element => element.outerHTML.slice(0, 80))"""

CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return channels(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const seen = [...document.querySelectorAll("h1, h2, p, li b, li span, small, label, button, summary, a")];
  return {
    paper: luminance(getComputedStyle(document.body).backgroundColor),
    least: Math.min(...seen.filter((element) => element.offsetParent).map((element) => {
      const [light, dark] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => b - a);
      return (light + 0.05) / (dark + 0.05);
    })),
  };
}"""


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def address(memory):
    """Where the student is served, whose memory holds a word longer than a narrow page."""
    memory.add([*TEXTS[:70], f"the kettle of Ann is {LONG}"])
    memory.adapt()
    config = memory.config.model_copy(update={"serve": ServeConfig(memory_check_s=0.5)})
    config, folder = student_run(config, str(memory.folder))
    with address_of(config, str(folder)) as address:
        yield address


@pytest.fixture
def opened(browser, address):
    """Open the page at a width, light or dark."""
    pages = []

    def open_page(width=LIMITS["wide"], scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        assert not page.faults
        page.close()


def ask(page, text=ASKED):
    page.fill("#text", text)
    page.click("button[type=submit]")
    page.wait_for_selector("#results:not([hidden])", timeout=30_000)


def test_nothing_is_wider_than_a_narrow_page(opened):
    page = opened(LIMITS["narrow"])
    ask(page)
    assert LONG in page.inner_text("#references")
    assert page.evaluate("document.documentElement.scrollWidth") == LIMITS["narrow"]
    assert page.evaluate(WIDER) == []


def test_the_answer_without_references_stands_beside_those_that_were_read_with_their_weights(opened, memory, store_url):
    page = opened()
    ask(page)
    stored = [*TEXTS[:70], LONG]
    with refbert.load(memory.folder, store_url) as reader:
        tokens = reader.tokenize([ASKED])
        weights = reader.answer(tokens, reader.look_up([ASKED], tokens))[1].weights[0].tolist()
    shown = page.locator("#references li").all_inner_texts()
    assert [line.split()[0] for line in shown] == [f"{weight:.2f}" for weight in weights]
    assert all(any(text in line for text in stored) for line in shown)
    assert not page.is_visible("#attention")  # nothing attends
    read, without = (
        page.locator(f"section[aria-labelledby={name}-title]").bounding_box() for name in ("reference", "without")
    )
    assert read["y"] == pytest.approx(without["y"], abs=1)
    assert read["x"] + read["width"] < without["x"]
    assert "moves by a cosine distance of" in page.inner_text("#without")


def test_every_text_is_read_easily_in_light_and_dark(opened):
    for scheme, darkest, brightest in (("light", 0.8, 1.0), ("dark", 0.0, 0.05)):
        page = opened(scheme=scheme)
        ask(page)
        found = page.evaluate(CONTRASTS)
        assert darkest <= found["paper"] <= brightest
        assert found["least"] >= 4.5  # WCAG AA


def test_the_page_is_operated_by_keyboard_alone(opened):
    page = opened()
    keys = page.keyboard
    keys.press("Tab")
    keys.press("Control+A")
    keys.type("the lamp of Dan is old")
    keys.press("Control+Enter")
    page.wait_for_selector("#results:not([hidden])", timeout=30_000)
    before = page.inner_text("#references")
    assert "the lamp of" in before
    assert "the bicycle of" not in before
    keys.press("Control+A")
    keys.type("the bicycle of Dan is broken")
    keys.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # one sees where one is
    keys.press("Enter")
    page.wait_for_function("(before) => document.getElementById('references').innerText !== before", arg=before)
    assert "bicycle" in page.inner_text("#references")
    keys.press("Tab")
    keys.press("Enter")
    assert page.is_visible("#second")
    keys.press("Tab")
    keys.type("a second text")
    assert page.input_value("#second") == "a second text"

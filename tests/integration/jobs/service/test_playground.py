"""The page at / in a real headless browser: it asks the service and shows what was read."""

import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=10000",
]  # fmt: skip


@pytest.fixture(scope="module")
def page(serving, listen, tmp_path_factory):
    """The page's document after its scripts have run on a text."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")

    def dump(student=None, query="?text=The+film+is+slow%2C+%3Cb%3Etoo%3C%2Fb%3E+long."):
        with listen(serving(), student) as address:
            profile = tmp_path_factory.mktemp("profile")
            command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"{address}/{query}"]
            return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout

    return dump


def test_the_page_shows_references_attention_and_the_answer_without_them(page):
    document = page()
    assert "memory answers" in document
    assert 'class="rung live">live<' in document
    assert document.count("<li>") == 10  # five nearest texts, with a reference and without
    assert "background: rgba(var(--heat)" in document or "background:rgba(var(--heat)" in document
    assert "Of this attention" in document
    assert "ms in all" in document
    assert "moves by a cosine distance of" in document
    assert 'id="error" role="alert" hidden' in document
    assert "<b>too</b>" not in document  # a text is shown as text


def test_the_page_shows_a_classifiers_scores_with_references_and_without(page, classifier):
    document = page(classifier)
    assert ">Prediction<" in document
    assert document.count("<td>good</td>") == document.count("<td>bad</td>") == 1


def test_the_page_shows_error_messages(page):
    document = page(query="?text=%20%20")
    assert "text 0 is empty" in document
    assert 'id="results" aria-live="polite" hidden' in document

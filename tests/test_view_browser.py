"""The viewer in a real browser. `make test-browser` runs these; they are skipped, with the
reason, where there is no Chromium or no playwright.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.engine.recording import packed
from llada_plugins.files import gzip_lines
from llada_plugins.reports.recorded import read_runs
from llada_plugins.reports.viewer import viewer
from llada_plugins.sampling.trace import KEPT, MASKED, Pass
from tests.chromium import playwright, started
from tests.test_view import HOSTILE, line, written

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with started() as made:
        yield made


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Two runs on three questions, two of them in common; one answer is right, one wrong."""
    folder = tmp_path_factory.mktemp("view")
    other = dict(run="two", sampler={"gen_length": 3, "steps": 2}, text="five")
    written(folder, line(0), line(1), line(2, prompt="Which?"), line(0, **other), line(1, **other))
    rows = [
        {
            "doc_id": 0,
            "arguments": {"gen_args_0": {"arg_0": each["prompt"]}},
            "resps": [[each["text"]]],
            "metrics": ["acc"],
            "acc": right,
        }
        for each, right in ((line(0), 1), (line(0, **other), 0))
    ]
    for number, row in enumerate(rows):
        (folder / f"samples_zoo_{number}.jsonl").write_text(json.dumps(row))
    path = folder / "view.html"
    path.write_text(viewer(read_runs([folder])), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file) -> Iterator[object]:
    """The page; what it asked for, said or failed at is empty in the end."""
    tab = browser.new_page(viewport={"width": 1200, "height": 800})
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url))
    tab.goto(file.as_uri())
    tab.wait_for_selector(".panel .token")
    yield tab
    assert said == [file.as_uri()]
    assert tab.evaluate("window.owned") is None
    tab.close()


def texts(tab, selector: str) -> list[str]:
    return tab.locator(selector).all_inner_texts()


def test_hostile_text_is_shown_and_never_run(opened):
    tokens = texts(opened, ".panel >> nth=0 >> .token")
    assert tokens == ["four", " dogs", HOSTILE[1]]
    assert "<script>" in opened.locator("#prompt pre").inner_text()
    assert "␛[31mred" in opened.locator("#prompt pre").inner_text()
    assert "[U+202E]" in opened.locator("#prompt pre").inner_text()
    assert opened.locator("#prompt img, .panel img, .panel script").count() == 0


def test_the_slider_goes_through_the_steps_and_marks_what_was_masked_again(opened):
    opened.locator("#slider").focus()
    opened.keyboard.press("Home")
    assert texts(opened, ".panel >> nth=0 >> .token") == ["░"] * 3
    opened.keyboard.press("ArrowRight")
    assert texts(opened, ".panel >> nth=0 >> .token") == ["four", " cats", "░"]
    opened.keyboard.press("ArrowRight")
    second = opened.locator(".panel >> nth=0 >> .token >> nth=1")
    assert second.inner_text() == "░" and "back" in second.get_attribute("class")
    assert 'masked again " cats"' in texts(opened, ".panel .now")[0]
    assert opened.locator("#slider").get_attribute("aria-valuetext") == "step 2 of 3"


def test_a_corrected_token_is_listed_and_its_line_leads_to_the_step(opened):
    told = opened.locator(".panel >> nth=0 >> li button")
    assert told.inner_text() == '" cats" → masked again → " dogs" (position 1, step 2)'
    told.click()
    assert opened.locator("#slider").input_value() == "2"


def test_play_goes_to_the_end_and_stops(opened):
    opened.locator("#slider").fill("0")
    opened.locator("#play").click()
    assert opened.locator("#play").inner_text() == "Pause"
    playwright.expect(opened.locator("#slider")).to_have_value("3")
    playwright.expect(opened.locator("#play")).to_have_text("Play")


def test_filters_and_search_leave_the_questions_that_fit(opened):
    def left(choice: str, words: str = "") -> list[str]:
        opened.locator("#filter").select_option(choice)
        opened.locator("#search").fill(words)
        return [text.split("\n")[0].strip() for text in texts(opened, "#rows .row")]

    assert [text[:5] for text in left("all")] == ["zoo 0", "zoo 1", "zoo 2"]
    assert [text[:7] for text in left("differs")] == ["zoo 0 ✓"]
    assert len(left("right")) == len(left("wrong")) == 1
    assert len(left("changed")) == 3
    assert [text[:5] for text in left("all", "which")] == ["zoo 2"]
    assert left("wrong", "which") == []
    assert opened.locator("#found").inner_text() == "0 of 3 questions"


def test_the_keyboard_alone_chooses_a_question_and_reads_a_token(opened):
    opened.locator("#list").focus()
    opened.keyboard.press("End")
    playwright.expect(opened.locator(".panel")).to_have_count(1)
    assert opened.locator('#rows [aria-selected="true"]').inner_text().startswith("zoo 2")
    assert opened.locator("#list").get_attribute("aria-activedescendant") == "question-2"
    opened.locator(".token >> nth=4").focus()  # the first four are the legend's
    opened.keyboard.press("ArrowRight")
    told = opened.locator("#token").inner_text()
    assert told.startswith('Position 1: " dogs" (token 3), since step 3, confidence 0.750')


def test_colours_follow_the_confidence(opened):
    opened.locator("#colour").select_option("score")
    classes = [
        opened.locator(f".panel >> nth=0 >> .token >> nth={place}").get_attribute("class")
        for place in range(3)
    ]
    assert [name.split()[1] for name in classes] == ["c8", "c7", "c6"]  # tenths, from 0
    assert texts(opened, ".scale span") == ["0", "", "1"]


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window_and_text_has_contrast(browser, file, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.goto(file.as_uri())
    tab.wait_for_selector(".panel .token")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ratios = tab.evaluate(CONTRAST)
    assert min(ratios.values()) >= 4.5, ratios  # WCAG 2.1, 1.4.3
    tab.close()


# of text on what lies behind it, by what it is: (L + 0.05) / (l + 0.05) of relative luminances
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const colour = numbers(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = {};
  const kinds = [".dim", ".right", ".wrong", "h1", ".row", ".panel .token", "li button", "select"];
  for (const kind of kinds) {
    for (const node of document.querySelectorAll(kind)) {
      const pair = [light(numbers(getComputedStyle(node).color)), light(behind(node))];
      pair.sort((a, b) => b - a);
      found[kind] = Math.min(found[kind] ?? 99, (pair[0] + 0.05) / (pair[1] + 0.05));
    }
  }
  return found;
}"""


def test_a_thousand_answers_of_128_steps_open_at_once_and_draw_few_rows(browser, tmp_path):
    """The time is printed, not asserted; what makes it short is: few elements."""
    generator = np.random.default_rng(0)
    for number in range(1000):
        events = [random_pass(generator, block) for block in range(4)]
        lines = [packed(events, place) for place in range(4)]
        pieces = {str(token): f"word{token} " for token in range(500)}
        made = line(number, events=lines, pieces=pieces, answer=[1] * 128)
        gzip_lines.append(tmp_path / SUFFIX, json.dumps(made))
    path = tmp_path / "view.html"
    path.write_text(viewer(read_runs([tmp_path])), encoding="utf-8")
    tab = browser.new_page()
    began = time.perf_counter()
    tab.goto(path.as_uri())
    tab.wait_for_selector(".panel .token")
    print(f"{path.stat().st_size / 1e6:.1f} MB opened in {time.perf_counter() - began:.2f} s")
    assert tab.locator("#found").inner_text() == "1000 of 1000 questions"
    for share in (0.5, 1.0):
        tab.locator("#list").evaluate(f"list => list.scrollTop = {share} * list.scrollHeight")
        tab.wait_for_timeout(100)
        assert tab.locator("#rows .row").count() < 60
    assert texts(tab, "#rows .row")[-1].startswith("zoo 999")
    tab.close()


def random_pass(generator: np.random.Generator, block: int) -> Pass:
    """32 steps that each unmask one of 32 positions."""
    order = generator.permutation(32)
    masked = order[None] >= np.arange(32)[:, None]  # (S, W)
    kept = order[None] == np.arange(32)[:, None]
    flags = (masked * MASKED + kept * KEPT).astype(np.uint8)
    score = np.where(masked, generator.random((32, 32)), np.inf).astype(np.float16)
    tokens = np.broadcast_to(generator.integers(0, 500, 32), (32, 32)).astype(np.int32)
    return Pass(block, block * 32, tokens, score, None, flags, np.zeros(32, np.float32))

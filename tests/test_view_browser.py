"""The viewer in a real browser. `make test-browser` runs these; they are skipped, with the
reason, where there is no Chromium or no playwright.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.viewer import write_answers
from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.reports.recorded import read_runs
from llada_plugins.reports.render import SIZE, legend_below, markdown, pyplot, save
from llada_plugins.reports.report_page import NAME, write_page
from llada_plugins.reports.viewer import viewer
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
    policy = np.array([[0.25, 0.5, 0.5], [0.25, 0.5, 0.5], [0.95, 0.05, 0.5]], np.float16)
    last = line(2, prompt="Which?", policy=policy)
    written(folder, line(0), line(1), last, line(0, **other), line(1, **other))
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
    opened.clock.install()  # the page's time stands still, however busy the machine is
    opened.clock.pause_at(opened.evaluate("Date.now()") + 1)
    opened.locator("#slider").fill("0")
    opened.locator("#play").click()
    assert opened.locator("#play").inner_text() == "Pause"
    opened.clock.run_for(10_000)
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


@pytest.mark.parametrize(
    "colour, levels, ends",
    [
        ("step", ["c2", "c7", "c4"], ["first step", "", "last step"]),  # tenths of the frames
        ("score", ["c8", "c7", "c6"], ["0", "", "1"]),  # the last that was known of each
        ("policy", ["c9", "c0", "c5"], ["0", "", "1"]),
        ("none", [None] * 3, ["", "", ""]),
    ],
)
def test_tokens_are_coloured_by_step_confidence_and_policy(opened, colour, levels, ends):
    opened.locator("#list").focus()
    opened.keyboard.press("End")
    playwright.expect(opened.locator(".panel")).to_have_count(1)
    opened.locator("#colour").select_option(colour)
    tokens = opened.locator(".panel .token").all()
    classes = [each.get_attribute("class").split() for each in tokens]
    found = [[name for name in each if name[0] == "c" and name[1:].isdigit()] for each in classes]
    assert found == [[level] if level else [] for level in levels]
    assert texts(opened, ".scale span") == ends
    backgrounds = [each.evaluate("e => getComputedStyle(e).backgroundColor") for each in tokens]
    assert len(set(backgrounds)) == len(set(levels))


def test_a_score_that_was_not_written_down_has_no_scale(opened):
    opened.locator("#colour").select_option("policy")
    assert texts(opened, ".scale span") == ["not written down", "", ""]


def test_an_address_names_a_question_and_a_step(opened, file):
    opened.evaluate("location.hash = '#question=1&step=2'")
    playwright.expect(opened.locator('#rows [aria-selected="true"]')).to_contain_text("zoo 1")
    playwright.expect(opened.locator("#slider")).to_have_value("2")
    opened.locator("#list").focus()
    opened.keyboard.press("Home")  # another question begins with its last step
    playwright.expect(opened.locator('#rows [aria-selected="true"]')).to_contain_text("zoo 0")
    playwright.expect(opened.locator("#slider")).to_have_value("3")


def test_arrows_go_through_the_steps_after_a_button_was_pressed(opened):
    opened.locator("#play").click()
    opened.locator("#play").click()
    before = int(opened.locator("#slider").input_value())
    opened.keyboard.press("ArrowLeft" if before else "ArrowRight")
    assert int(opened.locator("#slider").input_value()) == (before - 1 if before else 1)
    opened.locator("#search").focus()
    opened.keyboard.press("Home")  # in a field the keys are the field's
    assert int(opened.locator("#slider").input_value()) == (before - 1 if before else 1)


def test_screen_readers_are_told_each_step_but_not_while_it_plays(opened):
    now = opened.locator(".panel .now").first
    assert now.get_attribute("role") == "status" and now.get_attribute("aria-live") == "polite"
    opened.clock.install()  # its time stands still
    opened.clock.pause_at(opened.evaluate("Date.now()") + 1)
    opened.locator("#slider").fill("0")
    opened.locator("#play").click()
    assert now.get_attribute("aria-live") == "off"
    opened.clock.run_for(10_000)
    playwright.expect(opened.locator("#play")).to_have_text("Play")
    assert now.get_attribute("aria-live") == "polite"
    assert now.inner_text().startswith("After step 3 of 3: 0 masked")
    names = opened.evaluate(
        "[...document.querySelectorAll('input, select, button, [role], section')]"
        ".filter(e => e.checkVisibility())"
        ".map(e => e.ariaLabel || e.labels?.[0]?.innerText || e.innerText)"
    )
    assert all(name.strip() for name in names)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The page of a report with a wide table and a plot."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    figure, axes = pyplot().subplots(figsize=SIZE)
    axes.plot([1, 2, 4], label="squares")
    legend_below(axes)
    save(figure, folder / "squares.png", "How squares grow")
    header = [f"a column with a long name {number}" for number in range(7)]
    told = markdown(header, [[f"{number / 3:.3f}" for number in range(7)] for _ in range(40)])
    write_page(folder, "A report", f"A sentence about it.\n\n{told}", {"numbers": [1, 2]})
    return folder / NAME


RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]  # of axe


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["viewer", "report"])
def test_axe_finds_nothing_that_wcag_forbids(browser, file, report, page, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    if page == "report":
        tab.goto(report.as_uri())
        tab.locator("summary").click()
    else:
        tab.goto(file.as_uri() + "#question=0&step=2")
        tab.wait_for_selector(".panel .token.back")
        tab.locator("#colour").select_option("score")
    found = axe.Axe().run(tab, options={"runOnly": RULES}).response
    told = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]]
    assert told == []
    assert len(found["passes"]) > 10
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab.close()


def test_a_report_on_paper_is_light_and_cuts_no_table_off(browser, report):
    tab = browser.new_page(viewport={"width": 700, "height": 1000}, color_scheme="dark")
    tab.goto(report.as_uri())
    tab.emulate_media(media="print")
    colours = "b => [getComputedStyle(b).color, getComputedStyle(b).backgroundColor]"
    assert tab.locator("body").evaluate(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert tab.evaluate("document.documentElement.scrollWidth") == 700
    assert tab.locator("table").evaluate("t => t.getBoundingClientRect().right") <= 700
    image = tab.locator("img")
    assert image.get_attribute("alt") == "How squares grow"
    assert image.evaluate("i => i.naturalWidth > 600 && i.getBoundingClientRect().width <= 700")
    tab.close()


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


def test_a_thousand_answers_are_shown_with_the_elements_of_forty(browser, tmp_path):
    """Times are `benchmarks.viewer`'s business; what makes them short is that nothing grows."""
    elements = []
    for num in (40, 1000):
        folder = tmp_path / str(num)
        write_answers(folder / SUFFIX, num, 128, seed=0)
        path = folder / "view.html"
        path.write_text(viewer(read_runs([folder])), encoding="utf-8")
        tab = browser.new_page(viewport={"width": 1200, "height": 800})
        tab.add_init_script(COUNTED)
        tab.goto(path.as_uri())
        tab.wait_for_selector(".panel .token")
        assert tab.locator("#found").inner_text() == f"{num} of {num} questions"
        elements.append(tab.evaluate("document.getElementsByTagName('*').length"))
        for share in (0.5, 1.0):
            tab.locator("#list").evaluate(f"list => list.scrollTop = {share} * list.scrollHeight")
            there = tab.locator("#rows .row", has_text=f"random {min(int(share * num), num - 1)} ")
            playwright.expect(there).to_be_visible()
            assert tab.locator("#rows .row").count() < 40
        assert texts(tab, "#rows .row")[-1].startswith(f"random {num - 1}")
        assert tab.evaluate("window.unpacked") == 1  # of the answer that is shown
        tab.close()
    assert elements[0] == elements[1]


COUNTED = """
window.unpacked = 0;
const unpacking = DecompressionStream;
window.DecompressionStream = function (kind) { window.unpacked++; return new unpacking(kind); };
"""

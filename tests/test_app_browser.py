"""The playground in a real browser. `make test-browser` runs these; they are skipped, with the
reason, where there is no Chromium, no playwright or no Gradio.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llada_plugins.playground import serving
from llada_plugins.playground.asking import Models
from llada_plugins.playground.form import controls, controls_of_methods
from llada_plugins.playground.serving import AppConfig, served
from llada_plugins.reports.recorded import read_runs
from llada_plugins.settings.table import find
from llada_plugins.tasks import sudoku
from tests.chromium import playwright, started
from tests.test_app import direct
from tests.test_view import HOSTILE

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="gradio is not installed")

PUZZLES = [problem.puzzle for problem in sudoku.problems("test", 2)]
expect = playwright.expect


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with started() as made:
        yield made


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, Models]]:
    """The address of a playground on the tiny model, and its models."""
    made: list[Models] = []
    with pytest.MonkeyPatch.context() as patch:

        def keep(*asked, **more) -> Models:
            made.append(Models(*asked, **more))
            return made[0]

        patch.setattr(serving, "Models", keep)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        with served(AppConfig(port=0), {"gen_length": 16, "device": "cpu"}) as url:
            yield url, made[0]


def page(browser, url: str, **options):
    tab = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
    tab.goto(url)
    tab.wait_for_selector("#prompt textarea", timeout=60_000)
    return tab


@pytest.fixture
def opened(browser, server) -> Iterator[object]:
    """The page; it asked nobody but its server, and nothing in it failed."""
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    asked: list[str] = []
    failed: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failed.append(str(error)))
    tab.on("console", lambda said: failed.append(said.text) if said.type == "error" else None)
    tab.goto(server[0])
    tab.wait_for_selector("#prompt textarea", timeout=60_000)
    yield tab
    elsewhere = [url for url in asked if not url.startswith((server[0], "data:", "blob:"))]
    assert (elsewhere, failed) == ([], [])
    assert tab.evaluate("window.owned") is None
    tab.close()


def enter(tab, name: str, value: str) -> None:
    tab.locator(f"#{name} :is(input, textarea)").first.fill(value)


def ask(tab, prompt: str) -> None:
    enter(tab, "prompt", prompt)
    tab.locator("#answer").click()


def finished(tab) -> str:
    """What the status says when all is done."""
    expect(tab.locator("#status .told")).to_contain_text("forward,")
    return tab.locator("#status .told").inner_text()


def slowly(tab) -> None:
    """Let every step wait, so that it can be seen."""
    tab.locator("#pause input[type=number]").fill("0.3")


def test_an_answer_comes_out_of_its_masks_and_is_the_engines(opened, server):
    slowly(opened)
    ask(opened, PUZZLES[0])
    expect(opened.locator("#first .masked").first).to_be_visible()
    expect(opened.locator("#first .stands").first).to_be_visible()
    assert "16 tokens, 16 forwards, 1.00 tokens a forward" in finished(opened)
    assert opened.locator("#first .masked").count() == 0
    assert opened.locator("#first .playground").inner_text() == direct(PUZZLES[0])


def test_the_slider_of_the_steps_goes_back_to_the_masks(opened):
    ask(opened, PUZZLES[0])
    finished(opened)
    steps = opened.frame_locator("#steps iframe")
    expect(steps.locator(".panel .token")).to_have_count(16)
    steps.locator("#slider").focus()
    opened.keyboard.press("Home")
    assert steps.locator(".panel .token").all_inner_texts() == ["░"] * 16
    opened.keyboard.press("ArrowRight")
    assert steps.locator(".panel .token").all_inner_texts().count("░") == 15


def test_the_trajectory_that_is_saved_is_the_viewers(opened, tmp_path):
    ask(opened, PUZZLES[0])
    finished(opened)
    for button, name in (("trajectory", "trajectories.jsonl.gz"), ("page", "view.html")):
        with opened.expect_download() as download:
            opened.locator(f"#save-{button}").click()
        download.value.save_as(tmp_path / name)
    (run,) = read_runs([tmp_path / "trajectories.jsonl.gz"])
    assert run.answers[0].line["prompt"] == PUZZLES[0]
    assert (tmp_path / "view.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_two_settings_stand_side_by_side(opened):
    opened.locator("#compare input").check()
    enter(opened, "second-steps", "4")
    ask(opened, PUZZLES[1])
    told = finished(opened)
    assert "first setting: 16 tokens, 16 forwards" in told
    assert "second setting: 16 tokens, 4 forwards" in told
    assert opened.locator("#second .playground").inner_text()
    expect(opened.frame_locator("#steps iframe").locator(".panel")).to_have_count(2)


def test_a_method_fills_in_its_options_and_answers(opened):
    choose(opened, "first", "llada_ups")
    opened.locator("#first-others button").first.click()
    expect(opened.locator("#first-revise input")).to_be_checked()
    ask(opened, PUZZLES[0])
    assert "llada_ups gen_length=16" in finished(opened)


def choose(tab, which: str, method: str) -> None:
    """Let a setting be of this method; what it begins with is filled in."""
    tab.locator(f"#{which}-method input").click()
    tab.get_by_role("option", name=method, exact=True).click()
    told = f"{which} setting: the options that {method} begins with"
    expect(tab.locator("#status .told")).to_have_text(told)
    expect(tab.locator("#answer")).to_be_enabled()


def test_nothing_is_asked_before_what_was_chosen_is_filled_in(opened):
    opened.route("**/queue/join**", lambda route: None)  # a server that is far
    expect(opened.locator("#answer")).to_be_enabled()
    opened.locator("#first-method input").click()
    opened.get_by_role("option", name="llada_prm", exact=True).click()
    expect(opened.locator("#answer")).to_be_disabled()
    opened.unroute("**/queue/join**")  # which lets those that are held go on
    told = "first setting: the options that llada_prm begins with"
    expect(opened.locator("#status .told")).to_have_text(told)
    expect(opened.locator("#answer")).to_be_enabled()


def test_the_options_of_a_method_are_shown_where_it_is_chosen_and_nowhere_else(opened):
    expect(opened.locator("#first-llada_prm-method")).to_have_count(0)
    choose(opened, "first", "llada_prm")
    expect(opened.locator("#first-llada_prm-method")).to_be_visible()
    expect(opened.locator("#first-llada_ups-ups")).to_have_count(0)
    opened.locator("#first-llada_prm-others button").first.click()
    expect(opened.locator("#first-llada_prm-prm")).to_be_visible()
    for control in controls_of_methods()["llada_prm"]:
        told = opened.locator(f"#first-llada_prm-{control.name}").inner_text()
        assert control.help in " ".join(told.split())
    choose(opened, "first", "llada_ups")
    expect(opened.locator("#first-llada_ups-ups")).to_be_visible()
    expect(opened.locator("#first-llada_prm-method")).to_have_count(0)


def test_two_settings_of_one_method_are_compared_by_its_own_options(opened, tmp_path):
    choose(opened, "first", "llada_prm")
    opened.locator("#compare input").check()
    choose(opened, "second", "llada_prm")
    enter(opened, "second-llada_prm-num_candidates_per_block", "3")
    ask(opened, PUZZLES[0])
    told = finished(opened)
    assert "llada_prm gen_length=16" in told
    assert "llada_prm num_candidates_per_block=3 gen_length=16" in told
    with opened.expect_download() as download:
        opened.locator("#save-trajectory").click()
    download.value.save_as(tmp_path / "trajectories.jsonl.gz")
    runs = read_runs([tmp_path / "trajectories.jsonl.gz"])
    assert [run.answers[0].line["method_options"] for run in runs] == [
        {},
        {"num_candidates_per_block": 3},
    ]
    enter(opened, "second-llada_prm-num_candidates_per_block", "0")
    opened.locator("#answer").click()
    expect(opened.get_by_role("alert")).to_have_text(
        "error: second setting: num_candidates_per_block must be at least 1, got 0"
    )


@pytest.mark.parametrize("mode", ["prompt", "infill", "chat"])
def test_the_example_of_a_shipped_model_is_answered_in_every_mode(opened, mode):
    opened.locator("#mode").get_by_label(mode, exact=True).check()
    opened.locator("#example").click()
    expect(opened.locator("#prompt textarea")).not_to_have_value("")
    opened.locator("#answer").click()
    finished(opened)
    if mode == "chat":  # of which the tiny model knows nothing
        expect(opened.locator("#conversation .role")).to_have_count(2)
        expect(opened.locator("#first .playground")).to_have_count(0)
        return
    (problem,) = sudoku.problems("test", 1)
    shown = opened.locator("#first .playground").inner_text()
    answer = shown.removeprefix(problem.puzzle) if mode == "infill" else shown
    assert sudoku.is_valid(problem.puzzle, answer)


def test_a_preset_fills_in_its_options(opened):
    name = "llada-8b-instruct/gsm8k"
    opened.locator("#first-preset input").fill(name)
    opened.get_by_role("option", name=name, exact=True).click()
    expect(opened.locator("#status .told")).to_have_text(f"first setting: as {name} was published")
    length = opened.locator("#first-gen_length :is(input, textarea)")
    expect(length).to_have_value(str(find(name).options["gen_length"]))


def test_a_conversation_goes_on_until_a_new_one(opened):
    opened.locator("#mode").get_by_label("chat").check()
    expect(opened.locator("#system")).to_be_visible()
    for number in (1, 2):
        ask(opened, f"turn {number}")
        expect(opened.locator("#conversation .role")).to_have_count(2 * number)
    opened.locator("#forget").click()
    expect(opened.locator("#conversation .role")).to_have_count(0)


def test_hostile_text_is_shown_and_never_run(opened):
    opened.locator("#mode").get_by_label("chat").check()
    hostile = "".join(HOSTILE[:-1]).replace("\0", "") + "${window.owned=1} {{value}}"
    ask(opened, hostile)
    expect(opened.locator("#conversation .role")).to_have_count(2)
    shown = opened.locator("#conversation").inner_text()
    assert "<script>window.owned = 1</script>" in shown
    assert "␛[31mred" in shown and "[U+202E]" in shown
    assert "${window.owned=1} {{value}}" in shown
    assert opened.locator("#conversation :is(img, script)").count() == 0


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("prompt", " ", "error: the prompt is empty: type a question"),
        ("prompt", "data:image/png;base64,iVBORw0KGgo=", "error: the prompt is a file (image/png)"),
        ("prompt", "x" * 1_000_001, "error: the prompt has 1,000,001 characters"),
        ("first-steps", "0", "error: steps must be at least 1, got 0"),
        ("first-steps", "2.5", "error: steps must be a whole number, got '2.5'"),
        ("first-threshold", "<b>x</b>", "error: threshold must be a number, got '<b>x</b>'"),
    ],
    ids=["empty", "picture", "long", "steps", "half a step", "markup"],
)
def test_a_mistake_is_told_in_one_line_and_the_page_goes_on(opened, name, value, told):
    enter(opened, "prompt", PUZZLES[0])
    enter(opened, name, value)
    opened.locator("#answer").click()
    expect(opened.get_by_role("alert")).to_contain_text(told)
    enter(opened, name, "" if name != "prompt" else PUZZLES[0])
    opened.locator("#answer").click()
    finished(opened)


def test_a_picture_that_is_pasted_changes_nothing(opened):
    opened.locator("#prompt textarea").focus()
    opened.evaluate(
        """() => {
          const data = new DataTransfer();
          const bytes = new Uint8Array([137, 80, 78, 71]);
          data.items.add(new File([bytes], "a.png", { type: "image/png" }));
          document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
        }"""
    )
    assert opened.locator("#prompt textarea").input_value() == ""
    ask(opened, PUZZLES[0])
    finished(opened)


def test_two_tabs_wait_for_each_other_and_each_has_its_own_answer(browser, server):
    first, second = page(browser, server[0]), page(browser, server[0])
    slowly(first)
    ask(first, PUZZLES[0])
    expect(first.locator("#first .masked").first).to_be_visible()
    ask(second, PUZZLES[1])
    finished(second)
    for tab, puzzle in ((first, PUZZLES[0]), (second, PUZZLES[1])):
        finished(tab)
        assert tab.locator("#first .playground").inner_text() == direct(puzzle)
        tab.close()


def busy() -> bool:
    return any(thread.name == "playground job" for thread in threading.enumerate())


def idle_within(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while busy() and time.monotonic() < end:
        time.sleep(0.05)
    return not busy()


@pytest.mark.parametrize(
    "mode, way",
    [
        ("prompt", "closed"),
        ("prompt", "stopped"),
        ("infill", "closed"),
        ("chat", "closed"),
        ("compare", "closed"),
        ("compare", "stopped"),
    ],
)
def test_a_closed_tab_or_a_press_of_stop_ends_its_job(browser, server, mode, way):
    tab = page(browser, server[0])
    tab.locator("#pause input[type=number]").fill("2")
    enter(tab, "first-gen_length", "512")  # 17 minutes of pauses
    if mode == "compare":
        tab.locator("#compare input").check()
        enter(tab, "second-steps", "4")
    else:
        tab.locator("#mode").get_by_label(mode, exact=True).check()
    ask(tab, f"{PUZZLES[0]}<|infill:512|>" if mode == "infill" else PUZZLES[0])
    expect(tab.locator("#first .masked").first).to_be_visible()
    assert busy()
    if way == "closed":
        tab.close()
    else:
        tab.locator("#stop").click()
        expect(tab.locator("#status .told")).to_have_text("stopped")
    assert idle_within(60)
    after = page(browser, server[0])
    ask(after, PUZZLES[1])
    finished(after)
    after.close()


def test_help_is_the_text_of_the_field_letter_by_letter(opened):
    opened.locator("#first-others button").first.click()
    expect(opened.locator("#first-seed")).to_be_visible()
    for control in controls():
        told = opened.locator(f"#first-{control.name}").inner_text()
        assert control.help in " ".join(told.split())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_wcag_forbids(browser, server, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = page(browser, server[0], color_scheme=scheme)
    tab.locator("#first-others button").first.click()
    expect(tab.locator("#first-seed")).to_be_visible()
    tab.locator("#compare input").check()
    choose(tab, "second", "llada_prm")
    tab.locator("#second-llada_prm-others button").first.click()
    expect(tab.locator("#second-llada_prm-prm")).to_be_visible()
    enter(tab, "second-steps", "8")
    ask(tab, PUZZLES[0])
    finished(tab)
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    found = axe.Axe().run(tab, options={"runOnly": rules}).response
    told = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]]
    assert told == []
    assert len(found["passes"]) > 10
    tab.close()


def test_nothing_is_wider_than_a_telephone(browser, server):
    tab = page(browser, server[0])
    tab.set_viewport_size({"width": 400, "height": 800})
    choose(tab, "first", "llada_prm")
    tab.locator("#first-llada_prm-others button").first.click()
    tab.locator("#compare input").check()
    enter(tab, "second-steps", "8")
    ask(tab, PUZZLES[0])
    finished(tab)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    too_wide = """() => [...document.querySelectorAll("button, input, textarea, p, h2, iframe")]
        .filter(each => each.checkVisibility() && each.getBoundingClientRect().right > 400)
        .map(each => each.outerHTML.slice(0, 200))"""
    assert tab.evaluate(too_wide) == []
    tab.close()


def test_nothing_that_was_asked_stays_on_the_disk(server):
    """What Gradio keeps for saving is in the folder that goes with the server."""
    left = Path(tempfile.gettempdir()).glob("llada-playground-*")
    assert [str(folder) for folder in left if folder.is_dir()] == [os.environ["GRADIO_TEMP_DIR"]]


def test_what_is_selected_is_marked_and_filled_in(opened):
    (problem,) = sudoku.problems("test", 1)
    opened.locator("#mode label", has_text="infill").click()
    expect(opened.locator("#mark")).to_be_visible()
    enter(opened, "prompt", f"{problem.puzzle}?")
    box = opened.locator("#prompt textarea")
    box.evaluate("box => box.setSelectionRange(box.value.length - 1, box.value.length)")
    opened.locator("#mark").click()
    expect(box).to_have_value(f"{problem.puzzle}<|infill|>")
    ask(opened, f"{problem.puzzle}{problem.solution[:4]}<|infill:4|>{problem.solution[8:]}")
    assert "4 tokens, 4 forwards" in finished(opened)
    shown = opened.locator("#first .playground").inner_text()
    assert sudoku.is_valid(problem.puzzle, shown.removeprefix(problem.puzzle))


def test_a_text_without_a_span_is_told_in_one_line(opened):
    opened.locator("#mode label", has_text="infill").click()
    ask(opened, PUZZLES[0])
    expect(opened.locator("#status .told")).to_contain_text("nothing is to be filled in")

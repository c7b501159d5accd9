"""Looking at trajectories: the page, the terminal and pictures, with text that would like to
do more than be shown. What the page does in a browser: test_view_browser.py.
"""

from __future__ import annotations

import base64
import gzip
import importlib
import io
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import viewer as benchmark
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.engine.recording import FORMAT, VERSION, packed
from llada_plugins.engine.request import QuestionId, Request
from llada_plugins.engine.visible import visible
from llada_plugins.files import gzip_lines
from llada_plugins.reports.colours import colours
from llada_plugins.reports.page import figure, page, source, table
from llada_plugins.reports.recorded import read_runs
from llada_plugins.reports.report_page import from_markdown
from llada_plugins.reports.steps_in_terminal import show
from llada_plugins.reports.viewer import viewer
from llada_plugins.sampling.trace import EDITED, KEPT, MASKED, REMASKED, Pass
from llada_plugins.tasks import sudoku
from llada_plugins.view import main
from tests.commands import python
from tests.report_pages import Elements, check_report_page

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "<script>window.owned = 1</script>",
    "</script><img src=x onerror='window.owned = 1'>",
    "\x1b[31mred\x1b[2J",
    "\u202etxt.exe\u2066",
    "a\nb\tc\0",
    "$x_1$ & \"quotes\" 'and' \\u003c",
    "\ud800",
]
WORDS = {1: "four", 2: " cats", 3: " dogs", **dict(enumerate(HOSTILE, 4))}


def line(doc_id: int = 0, words: dict[int, str] = WORDS, policy=None, **fields) -> dict:
    """An answer of three tokens: the second is masked again and ends as another.

    policy: (3, 3) of a policy stream.
    """
    flags = np.array(
        [
            [MASKED | KEPT, MASKED | KEPT, MASKED],
            [0, REMASKED, MASKED | KEPT],
            [0, MASKED | KEPT, 0],
        ],
        np.uint8,
    )
    proposed = np.array([[1, 2, 4], [1, 2, 5], [1, 3, 5]], np.int32)
    score = np.array(
        [[0.875, 0.5, 0.125], [np.inf, 0.25, 0.625], [np.inf, 0.75, np.inf]], np.float16
    )
    made = Pass(0, 0, proposed, score, policy, flags, np.full(3, 0.01, np.float32))
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": "one",
        "method": "llada_ups",
        "method_options": {},
        "checkpoint": "tiny",
        "sampler": {"gen_length": 3},
        "source": "ups",
        "block_length": 3,
        "task": "zoo",
        "doc_id": doc_id,
        "repeat": 0,
        "prompt": "How many? " + "".join(HOSTILE[:-1]),
        "prompt_tokens": 9,
        "text": "four dogs" + words[5],
        "answer": [1, 3, 5],
        "num_tokens": 3,
        "num_forwards": 3,
        "num_prm_calls": 0,
        "seconds": 0.03,
        "cut": False,
        "pieces": {str(token): word for token, word in words.items()},
        "events": [packed([made], 0)],
        **fields,
    }


def written(folder: Path, *lines: dict) -> Path:
    for each in lines:
        gzip_lines.append(folder / SUFFIX, json.dumps(each))
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two runs with two questions in common, and one of the first alone."""
    other = dict(run="two", sampler={"gen_length": 3, "steps": 2})
    return written(tmp_path, line(0), line(1), line(2), line(0, **other), line(1, **other))


def test_a_page_names_no_other_file_and_forbids_every_request(runs):
    content = viewer(read_runs([runs]))
    elements = Elements(content)
    linked = ("src", "href", "action", "srcset", "data", "poster")
    assert not [name for _, attributes in elements.found for name in attributes if name in linked]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", content)
    policy = next(
        attributes["content"]
        for _, attributes in elements.found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'") and "connect-src" not in policy


def test_the_policy_allows_the_one_script_of_the_page(runs):
    import hashlib

    content = viewer(read_runs([runs]))
    [script] = re.findall(r"<script>(.*?)</script>", content, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in content
    elements = Elements(content)
    assert not [name for _, each in elements.found for name in each if name.startswith("on")]


def test_hostile_text_is_data_in_the_page_and_no_element(runs):
    elements = Elements(viewer(read_runs([runs]), title=HOSTILE[0]))
    assert [tag for tag, _ in elements.found].count("script") == 3
    assert "img" not in [tag for tag, _ in elements.found]
    index = json.loads(elements.texts["index"])
    assert index["questions"][0]["prompt"] == line()["prompt"]
    assert index["questions"][0]["answers"][0]["text"] == line()["text"]


def test_answers_to_one_question_stand_side_by_side_and_unpack_to_what_was_written(runs):
    elements = Elements(viewer(read_runs([runs])))
    index, lines = json.loads(elements.texts["index"]), elements.texts["lines"].split()
    assert [run["name"] for run in index["runs"]] == ["steps=default", "steps=2"]
    answers = [[bool(each) for each in question["answers"]] for question in index["questions"]]
    assert answers == [[True, True], [True, True], [True, False]] and len(lines) == 5
    first = index["questions"][2]["answers"][0]
    assert first["corrected"] == 1 and first["verdict"] is None
    unpacked = json.loads(gzip.decompress(base64.b64decode(lines[first["line"]])))
    assert unpacked["events"] == line(2)["events"]


def test_every_colour_of_the_pages_stands_in_one_place_for_light_and_dark():
    styles = source("page.css") + source("view.css")
    declared = re.findall(r"^ *(--\w+): (.*);", styles, re.M)
    names = [name for name, _ in declared]
    assert len(names) == len(set(names)) > 10
    assert all(re.fullmatch(r"light-dark\(#\w{6}, #\w{6}\)", value) for _, value in declared)
    assert dict(declared) == {
        f"--{name}": f"light-dark({each.light}, {each.dark})" for name, each in colours().items()
    }
    # what is drawn without a style sheet has them from there
    for file in (ROOT / "llada_plugins").glob("[rp]*/*.py"):
        assert not re.search(r"#[0-9a-f]{6}\b", file.read_text(encoding="utf-8")), file


def contrast(one: str, other: str) -> float:
    """Of two colours #rrggbb: WCAG 2.1's (L + 0.05) / (l + 0.05) of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_on_every_colour_that_a_token_may_have(scheme):
    found = {name: getattr(each, scheme) for name, each in colours().items()}
    behind = {f"c{level}": ["ink"] for level in range(10)}
    behind |= {"mask": ["dim", "bad"], "paper": ["ink", "dim", "link", "good", "bad"]}
    behind |= {"panel": ["ink", "dim", "link"], "c2": ["ink", "dim", "good", "bad"]}  # chosen row
    for paper, words in behind.items():
        for name in words:
            assert contrast(found[name], found[paper]) >= 4.5, (name, paper)


# ---- the terminal


def test_the_terminal_tells_what_was_masked_again_and_no_code_reaches_it(runs, capsys):
    assert main([str(runs), "--question", "zoo:1"]) == 0
    out = capsys.readouterr().out
    assert "after step   2  four░</script>" in out
    assert "masked again: ' cats' at 1, finally ' dogs'" in out
    assert all(symbol == "\n" or symbol.isprintable() for symbol in out)
    assert out.count("zoo 1, not graded") == 2


def test_what_was_replaced_is_told_apart_from_what_was_masked_again(tmp_path, capsys):
    """The second token is replaced by one, and then by another."""
    flags = np.array([[MASKED | KEPT] * 2, [0, EDITED], [0, EDITED]], np.uint8)
    proposed = np.array([[1, 1], [1, 2], [1, 3]], np.int32)
    made = Pass(0, 0, proposed, np.ones((3, 2), np.float16), None, flags, np.zeros(3, np.float32))
    folder = written(tmp_path, line(events=[packed([made], 0)], answer=[1, 3]))
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "after step   2  four cats    replaced: 'four' at 1 by ' cats', finally ' dogs'" in out
    assert "after step   3  four dogs    replaced: ' cats' at 1 by ' dogs'\n" in out
    assert "masked again" not in out


def test_a_terminal_with_rich_shows_colours_and_no_code_of_the_models(runs):
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    words = {**WORDS, 5: "\x1b[2J[bold]"}
    [run, *_] = read_runs([written(runs / "more", line(words=words))])
    show(run.answers[0], "name", out)
    assert "␛[2J[bold]" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


@pytest.mark.parametrize(
    "symbol", map(chr, [*range(32), *range(0x7F, 0xA0), 0x202E, 0x2066, 0xD800])
)
def test_what_would_act_on_a_terminal_is_written_out(symbol):
    shown = visible(f"a{symbol}b")
    assert shown.isprintable() and shown.startswith("a") and shown.endswith("b") and len(shown) > 2


def test_other_text_is_shown_as_it_is():
    assert visible("żółw 🐢 \\n [bold]") == "żółw 🐢 \\n [bold]"


# ---- pictures


@pytest.mark.parametrize(
    "kind",
    [
        ".svg",
        pytest.param(".png", marks=pytest.mark.slow),
        pytest.param(".gif", marks=pytest.mark.slow),
    ],
)
def test_a_picture_is_drawn_of_one_question_and_equal_answers_make_equal_files(runs, kind):
    if kind != ".svg":
        pytest.importorskip("matplotlib")
    made = []
    for name in ("one", "two"):
        path = runs / f"{name}{kind}"
        assert main([str(runs), "--picture", str(path), "--question", "0"]) == 0
        made.append(path.read_bytes())
        if kind == ".gif":
            from PIL import Image

            assert Image.open(path).n_frames == 4  # the masks, and three steps
    assert made[0] == made[1]


def svg_of(folder: Path, *words: str) -> ElementTree.Element:
    path = folder / "drawn.svg"
    assert main([str(folder), *words, "--picture", str(path)]) == 0
    return ElementTree.parse(path).getroot()


def words_in(drawn: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in drawn.iter(f"{SVG}text")]


def test_hostile_text_in_a_picture_is_text(tmp_path):
    lines = [line(words=dict.fromkeys(WORDS, hostile), run=hostile) for hostile in HOSTILE]
    for number, each in enumerate(lines):
        drawn = svg_of(written(tmp_path / str(number), each))
        kinds = {element.tag.removeprefix(SVG) for element in drawn.iter()}
        assert kinds == {"svg", "title", "rect", "text"}
        assert all(words.isprintable() for words in words_in(drawn))


def test_a_picture_strikes_out_what_was_masked_again(tmp_path):
    drawn = svg_of(written(tmp_path, line()))
    struck = [each for each in drawn.iter(f"{SVG}text") if "text-decoration" in each.attrib]
    assert [each.text for each in struck] == ["·cats"]
    dashed = [each for each in drawn.iter(f"{SVG}rect") if "stroke-dasharray" in each.attrib]
    assert len(dashed) == 1 + 2  # two in the legend
    assert words_in(drawn)[:2] == [
        "llada_ups, tiny: question zoo 0, not graded",
        "3 tokens, 3 forwards, 1.00 tokens a forward",
    ]


def test_a_run_with_a_long_name_still_tells_question_and_verdict(tmp_path):
    other = dict(run="two", sampler={"gen_length": 3, "steps": 2, "temperature": 0.123456})
    drawn = svg_of(written(tmp_path, line(), line(checkpoint="a_long_name" * 3, **other)))
    titles = [each.text for each in drawn.iter(f"{SVG}text") if each.get("y") == "16"]
    assert len(titles) == 2 and all(each.endswith("…") for each in titles)
    assert all(each.startswith("question zoo 0, not graded: ") for each in titles)


def test_a_long_answer_is_drawn_without_its_words_and_fits(tmp_path):
    length, steps = 700, 3
    flags = np.full((steps, length), MASKED, np.uint8)
    flags[-1] |= KEPT
    score = np.full((steps, length), 0.5, np.float16)
    tokens = np.full((steps, length), 1, np.int32)
    made = Pass(0, 0, tokens, score, None, flags, np.zeros(steps, np.float32))
    drawn = svg_of(written(tmp_path, line(events=[packed([made], 0)], answer=[1] * length)))
    assert "four" not in words_in(drawn)
    assert int(drawn.get("width")) < 2200
    places = [float(each.get("x")) for each in drawn.iter(f"{SVG}rect") if each.get("x")]
    assert max(places) < int(drawn.get("width"))


@pytest.mark.floats
def test_the_picture_of_the_readme_is_what_its_command_in_the_docs_draws(tmp_path):
    problem = sudoku.problems("test", 119)[118]
    record = dict(record="trajectory", record_file=str(tmp_path / SUFFIX))
    engine = Engine("llada_ups", gen_length=16, steps=8, device="cpu", **record)
    request = Request(problem.puzzle, engine.sampler, id=QuestionId("sudoku4", 118, 0))
    [(_, completion)] = engine.generate([request])
    row = {
        "doc_id": 118,
        "arguments": {"gen_args_0": {"arg_0": problem.puzzle}},
        "resps": [[completion.text]],
        "metrics": ["acc"],
        "acc": int(sudoku.is_valid(problem.puzzle, completion.text)),
    }
    (tmp_path / "samples_sudoku4_0.jsonl").write_text(json.dumps(row))
    svg_of(tmp_path, "--question", "sudoku4:118")
    docs = Path(__file__).parents[1] / "docs"
    drawn = (tmp_path / "drawn.svg").read_text(encoding="utf-8")
    assert drawn == (docs / "unmasking.svg").read_text(encoding="utf-8"), "run make picture"
    assert "--picture docs/unmasking.svg" in (docs / "view.md").read_text(encoding="utf-8")


# ---- reports' pages


def test_tables_and_captions_escape_what_they_are_given():
    made = page("a < b", table([HOSTILE[0]], [[HOSTILE[1]], [2.5]]) + figure(b"", HOSTILE[1]))
    elements = Elements(made)
    assert [tag for tag, _ in elements.found].count("script") == 0
    assert [attributes.get("alt") for tag, attributes in elements.found if tag == "img"] == [
        HOSTILE[1]
    ]
    assert '<td class="number">2.5</td>' in made


def test_a_reports_markdown_becomes_tables_and_paragraphs():
    told = "# A title\n\n| a | <b> |\n|---|---|\n| 1 | x |\n| 2.50 | y |\n\nlast <i>"
    made = [*from_markdown(told)]
    assert made[0] == "<p>A title</p>" and made[2] == "<p>last &lt;i&gt;</p>"
    assert made[1].count("<tr>") == 3 and '<th scope="col">&lt;b&gt;</th>' in made[1]
    assert '<td class="number">2.50</td>' in made[1]


@pytest.mark.parametrize(
    "door, words, plots, rows",
    [
        ("effective_rank", ["--num_prompts", "2"], 1, 4),
        pytest.param(
            "analyze",
            ["--num_prompts", "2", "--steps", "2", "--html"],
            2,
            9,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ups_report", ["--num", "8", "--noise_draws", "4"], 4, 6, marks=pytest.mark.slow
        ),
    ],
)
def test_a_report_is_one_page_with_its_plots_tables_and_command(
    tmp_path, monkeypatch, door, words, plots, rows
):
    pytest.importorskip("matplotlib")
    program = ["-m", f"llada_plugins.{door}", "--output", str(tmp_path / "out"), *words]
    program += [] if "--html" in words else ["--html"]
    monkeypatch.setattr(sys, "orig_argv", ["python3", *program])
    importlib.import_module(f"llada_plugins.{door}").main(program[2:])
    command = f"python -m llada_plugins.{door} --output {tmp_path / 'out'}"
    page = tmp_path / "out" / "report.html"
    check_report_page(page, plots=plots, rows=rows, words=[command])


# ---- mistakes


def told(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert str(ended.value.code).startswith("error: ") and "\n" not in str(ended.value.code)
    return str(ended.value.code)


def test_mistakes_end_the_command_with_one_line(runs, capsys):
    place = str(runs)
    assert "no such file or folder" in told(capsys, place + "x")
    assert "RUN" in told(capsys)
    assert "exclude each other" in told(capsys, place, "--html", "a.html", "--picture", "a.png")
    assert "must end in one of .png, .svg, .gif" in told(capsys, place, "--picture", "a.jpg")
    assert "has all of them" in told(capsys, place, "--html", "a.html", "--question", "1")
    assert "no run answered it; there are zoo:0" in told(capsys, place, "--question", "9")
    assert "no run answered it" in told(capsys, place, "--question", "ark:1")


def test_a_damaged_file_is_shown_with_a_word_of_what_is_missing(runs, capsys):
    path = runs / SUFFIX
    path.write_bytes(path.read_bytes()[:-5])
    assert main([str(runs), "--html", str(runs / "new" / "view.html")]) == 0
    said = capsys.readouterr()
    assert "1 places held no whole line" in said.err and "4 answers" in said.out
    assert (runs / "new" / "view.html").is_file()


# ---- no browser


def test_without_chromium_its_benchmark_says_what_to_install(tmp_path, monkeypatch):
    pytest.importorskip("playwright")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(SystemExit, match="error: none of chromium, .*: apt-get install chromium$"):
        benchmark.main([])


@pytest.mark.slow
def test_without_chromium_the_tests_of_pages_are_skipped_with_the_reason(tmp_path):
    words = ["-m", "pytest", "-q", "-rs", "-m", "browser", "tests/test_view_browser.py"]
    done = python(*words, cwd=ROOT, PATH=str(tmp_path), CHROMIUM="")
    assert "SKIPPED" in done.stdout and "none of chromium," in done.stdout, done.stdout
    assert "failed" not in done.stdout

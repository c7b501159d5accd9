"""The playground without a browser: its form, its jobs, what it shows, and how mistakes are told.
What the page does in a browser: test_app_browser.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from llada_plugins import app, infilling
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.engine.request import Completion, Request
from llada_plugins.methods.table import METHODS
from llada_plugins.playground import drawing
from llada_plugins.playground.asking import MOST, Models, Question, Setting
from llada_plugins.playground.form import (
    ABSENT,
    MAIN,
    controls,
    controls_of_methods,
    given,
    num_controls,
    paired,
    preset_names,
    shown,
    with_preset,
    with_preset_of,
)
from llada_plugins.playground.job import Job, State
from llada_plugins.playground.showing import Shown, answered
from llada_plugins.reports.recorded import read_runs
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.settings.table import all_presets
from llada_plugins.tasks import sudoku
from tests.test_view import HOSTILE

PUZZLE = sudoku.problems("test", 1)[0].puzzle


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    file = tmp_path_factory.mktemp("app") / SUFFIX
    options = dict(record="trajectory", record_file=str(file), overlong="error")
    return Models("llada", dict(gen_length=16, device="cpu", **options))


def setting(models: Models, method: str = "llada", /, **entered: str | bool) -> Setting:
    """What the form says; entered: of decoding, or of the method's own options."""
    sampler, own = shown(models.of(method).sampler), shown(models.begins(method))
    assert not entered.keys() - sampler.keys() - own.keys()
    return Setting(
        method,
        {**sampler, **{name: entered[name] for name in entered if name in sampler}},
        {**own, **{name: entered[name] for name in entered if name in own}},
    )


def direct(prompt: str, method: str = "llada") -> str:
    """What an engine of its own answers."""
    engine = Engine(method, gen_length=16, device="cpu")
    ((_, completion),) = engine.generate([Request(prompt, engine.sampler)])
    return completion.text


def last(models: Models, folder: Path, question: Question, *settings: Setting) -> Shown:
    *_, end = answered(models, question, settings, folder)
    return end


# --- the form -------------------------------------------------------------------------


def test_the_form_has_every_option_of_decoding_with_the_help_of_its_field():
    declared = {field.name: field.metadata["help"] for field in fields(SamplerConfig)}
    assert {control.name: control.help for control in controls()} == declared
    main = [name for name in MAIN if name in declared]
    assert [control.name for control in controls()[: len(main)]] == main


def test_the_form_has_every_option_of_every_method_with_the_help_of_its_field():
    for name, method in METHODS.items():
        found = {each.name: each.help for each in controls_of_methods().get(name, ())}
        assert found == {each.name: each.metadata["help"] for each in fields(method.options)}
    known = {each.name for every in controls_of_methods().values() for each in every}
    assert set(MAIN) <= known | {each.name for each in controls()}


def test_what_is_shown_and_not_touched_leaves_the_sampler_as_it_is(models):
    for method in ("llada", "llada_ups", "llada_prm"):
        engine = models.of(method)
        assert given(engine.sampler, shown(engine.sampler)) == {}
        assert given(engine.method_options, shown(engine.method_options)) == {}


def test_what_is_entered_is_read_as_the_option_is_declared(models):
    engine = models.of("llada")
    entered = dict(steps="8", threshold="0.5", temperature="0.0", cache="none", early_stop=False)
    entered |= dict(strict="true", gen_length="32")
    found = given(engine.sampler, {**shown(engine.sampler), **entered})
    assert found == dict(
        steps=8, threshold=0.5, cache="none", early_stop=False, strict=True, gen_length=32
    )


def test_an_option_of_the_command_line_is_taken_back_by_an_empty_field(tmp_path):
    options = dict(gen_length=16, threshold=0.9, device="cpu")
    engine = Models("llada", options).of("llada")
    untouched = shown(engine.sampler)
    assert untouched["threshold"] == "0.9"
    found = given(engine.sampler, {**untouched, "threshold": ABSENT})
    assert engine.sampler_for(found).threshold is None


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("steps", "2.5", "steps must be a whole number, got '2.5'"),
        ("steps", "many", "steps must be a whole number, got 'many'"),
        ("gen_length", ABSENT, "gen_length must be a whole number, got None"),
        ("temperature", "nan", "temperature must be a number, got 'nan'"),
    ],
)
def test_a_value_that_its_option_does_not_take_is_told(models, name, value, told):
    engine = models.of("llada")
    with pytest.raises(ValueError) as error:
        given(engine.sampler, {**shown(engine.sampler), name: value})
    assert str(error.value) == told


def test_every_published_setting_fills_the_form_with_its_options(models):
    engine = models.of("llada")
    names = preset_names(None)
    assert sorted(names) == sorted(all_presets())
    for name in names:
        options = all_presets()[name].options
        if any(options.get(key) for key in ("preset", "sampling_method")):
            continue
        try:
            filled = with_preset(engine, name)
        except ValueError:  # of another family
            continue
        for option in options.keys() & {field.name for field in fields(SamplerConfig)}:
            # a choice of true and false is in small letters
            assert str(filled[option]).lower() == str(options[option]).lower()


def test_settings_of_the_checkpoint_come_first():
    name = next(iter(all_presets()))
    own = all_presets()[name].pretrained
    first = [all_presets()[each].pretrained == own for each in preset_names(own)]
    assert first == sorted(first, reverse=True) and first[0]


def test_the_values_of_a_row_of_controls_go_to_their_options():
    values = [str(number) for number in range(num_controls())]
    sampler, of_methods = paired(values)
    assert list(sampler) == [each.name for each in controls()]
    assert {name: list(each) for name, each in of_methods.items()} == {
        name: [each.name for each in every] for name, every in controls_of_methods().items()
    }
    assert [
        *sampler.values(),
        *(v for each in of_methods.values() for v in each.values()),
    ] == values
    for wrong in (values[1:], [*values, "x"]):
        with pytest.raises(ValueError, match="controls"):
            paired(wrong)


# --- answers --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["llada", "llada_ups", "llada_ala", "llada_prm"])
def test_an_answer_is_the_engines_own_and_can_be_looked_at(models, tmp_path, method):
    states = list(answered(models, Question(prompt=PUZZLE), [setting(models, method)], tmp_path))
    (run,) = read_runs([states[-1].files.trajectory])
    (answer,) = run.answers
    assert run.options["model"] == method
    assert states[-1].answers[0] == drawing.done(Completion(direct(PUZZLE, method), 0, 0, 0.0))
    assert answer.line["prompt"] == PUZZLE and answer.line["num_forwards"] > 0
    assert "srcdoc=" in states[-1].steps and states[-1].files.page.is_file()


def test_two_settings_are_decoded_one_after_the_other_and_shown_side_by_side(models, tmp_path):
    settings = setting(models), setting(models, steps="8")
    end = last(models, tmp_path, Question(prompt=PUZZLE), *settings)
    assert all(end.answers)
    assert "first setting: 16 tokens, 16 forwards" in end.status
    assert "second setting: 16 tokens, 8 forwards" in end.status
    runs = read_runs([end.files.trajectory])
    assert [run.options.get("steps") for run in runs] == [None, 8]
    assert runs[0].answers[0].key == runs[1].answers[0].key


def test_two_settings_of_a_method_differ_in_its_own_options_which_are_written_down(
    models, tmp_path
):
    window = dict(method="window", num_refinement_samples="2", max_prm_calls="4")
    settings = setting(models, "llada_prm"), setting(models, "llada_prm", **window)
    end = last(models, tmp_path, Question(prompt=PUZZLE), *settings)
    engine = Engine(
        "llada_prm",
        gen_length=16,
        device="cpu",
        method="window",
        num_refinement_samples=2,
        max_prm_calls=4,
    )
    ((_, completion),) = engine.generate([Request(PUZZLE, engine.sampler)])
    assert end.answers[1] == drawing.done(completion)
    told = "llada_prm method=window num_refinement_samples=2 max_prm_calls=4 gen_length=16"
    assert told in end.status and f"{completion.num_prm_calls} PRM calls" in end.status
    runs = read_runs([end.files.trajectory])
    written = dict(method="window", num_refinement_samples=2, max_prm_calls=4)
    assert [run.answers[0].line["method_options"] for run in runs] == [{}, written]
    one, other = (models.of(each.method, each.own) for each in settings)
    assert one.prepared.judge.scorer is other.prepared.judge.scorer


def test_engines_of_changed_options_are_forgotten_for_newer_ones(models):
    def of(threshold):
        return models.of("llada_prm", dict(backmasking_threshold=threshold))

    first = of("0.1")
    assert of("0.1") is first and of("0.2") is not first and of("0.1") is first
    of("0.3")
    assert of("0.1") is first
    of("0.4"), of("0.5")
    assert of("0.1") is not first


def test_options_of_the_first_method_begin_as_the_command_line_says():
    options = dict(gen_length=16, device="cpu", num_candidates_per_block=3, max_prm_calls=9)
    models = Models("llada_prm", options)
    begins = shown(models.begins("llada_prm"))
    assert (
        begins["num_candidates_per_block"] == "3" and begins["num_demasking_candidates"] == ABSENT
    )
    changed = models.of("llada_prm", {**begins, "max_prm_calls": ABSENT}).method_options
    assert (changed.num_candidates_per_block, changed.max_prm_calls) == (3, None)
    assert models.of("llada_prm", begins) is models.first
    with_it = with_preset_of(models.begins("llada_prm"), next(iter(all_presets())))
    assert with_it == begins  # no published setting says anything of them


def test_a_conversation_goes_on_with_the_first_settings_answer(models, tmp_path):
    question = Question(prompt="one", chat=True, system="be brief")
    end = last(models, tmp_path, question, setting(models))
    assert [turn["role"] for turn in end.turns] == ["user", "assistant"]
    assert end.answers == ("", "") and end.turns[-1]["content"]  # shown once, as a turn
    following = Question(prompt="two", chat=True, system="be brief", earlier=end.turns)
    (tmp_path / "two").mkdir()
    end = last(models, tmp_path / "two", following, setting(models))
    (run,) = read_runs([end.files.trajectory])
    assert run.answers[0].line["prompt"] == models.first.render_chat(following.turns)
    assert [turn["role"] for turn in end.turns] == ["user", "assistant"] * 2


# --- jobs -----------------------------------------------------------------------------


def test_what_is_shown_of_a_job_ends_with_its_newest_state():
    def work(show):
        for token in range(50):
            show(State(0, (token,)))

    seen = [state.tokens[0] for state in Job(work)]
    assert seen == sorted(set(seen)) and seen[-1] == 49


def test_leaving_a_job_stops_its_work_before_the_next_state():
    begun, ended = threading.Event(), threading.Event()

    def work(show):
        try:
            while True:
                show(State(0, (1,)))
                begun.set()
        finally:
            ended.set()

    states = iter(Job(work))
    next(states)
    assert begun.wait(20)
    states.close()
    assert ended.wait(20)


def test_what_a_job_raises_is_raised_where_it_is_looked_at():
    def work(show):
        show(State(0, (1,)))
        raise ValueError("too long")

    with pytest.raises(ValueError, match="too long"):
        list(Job(work))


def test_an_answer_that_is_left_frees_the_model_for_the_next(models, tmp_path):
    states = answered(models, Question(prompt=PUZZLE), [setting(models)], tmp_path, pause=0.2)
    for state in states:
        if state.answers[0]:
            break
    states.close()
    (tmp_path / "next").mkdir()
    end = last(models, tmp_path / "next", Question(prompt=PUZZLE), setting(models))
    assert "16 forwards" in end.status
    (run,) = read_runs([end.files.trajectory])
    assert len(run.answers) == 1


# --- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, told",
    [
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
        (
            "x" * 10_000_000,
            r"the prompt has 10,000,000 characters, and at most 1,000,000 are taken",
        ),
        ("data:image/png;base64,iVBORw0KGgo=", r"the prompt is a file \(image/png\)"),
        ("\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "the prompt holds NUL characters"),
        ({"path": "a.png"}, "the prompt must be text, got dict"),
    ],
    ids=["empty", "blank", "10 MB", "data URL", "PNG", "file"],
)
def test_what_is_no_prompt_is_refused_before_it_is_tokenised(prompt, told):
    with pytest.raises(ValueError, match=told):
        Question(prompt=prompt)
    assert MOST == 1_000_000


def test_a_prompt_beyond_the_context_is_refused_and_not_cut(models, tmp_path):
    with pytest.raises(ValueError, match="does not fit|do not fit|context"):
        last(models, tmp_path, Question(prompt="1" * 5000), setting(models))


@pytest.mark.parametrize(
    "entered, told",
    [
        (dict(steps="0"), "second setting: steps must be at least 1, got 0"),
        (dict(confidence_source="ups"), "needs an unmasking-policy stream"),
        ({}, "both settings decode alike: change an option of one of them"),
    ],
)
def test_a_mistake_of_the_second_setting_is_told_before_the_first_decodes(
    models, tmp_path, monkeypatch, entered, told
):
    monkeypatch.setattr(models.first, "denoise", None)
    with pytest.raises(ValueError, match=told):
        last(models, tmp_path, Question(prompt=PUZZLE), setting(models), setting(models, **entered))


@pytest.mark.parametrize(
    "method, entered, told",
    [
        ("llada_prm", dict(backmasking_threshold="2"), "backmasking_threshold must be between 0"),
        ("llada_prm", dict(num_candidates_per_block="x"), "must be a whole number, got 'x'"),
        (
            "llada_prm",
            dict(question_pattern="("),
            "question_pattern='\\('.* is no regular expression",
        ),
        ("llada_prm", dict(prm="/nowhere"), "/nowhere"),
        ("llada_ups", dict(ups="/nowhere"), "/nowhere"),
        (
            "llada_ala",
            dict(router="/nowhere"),
            "llada_ala needs a router: /nowhere is not a folder",
        ),
    ],
)
def test_a_mistake_in_a_methods_own_options_is_one_line(models, tmp_path, method, entered, told):
    settings = setting(models), setting(models, method, **entered)
    with pytest.raises((ValueError, OSError), match=f"second setting: .*{told}") as error:
        last(models, tmp_path, Question(prompt=PUZZLE), *settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["prm", "prm_dtype", "question_pattern"])
def test_who_gets_a_public_link_names_no_files_and_chooses_no_memory(option):
    models = Models("llada", dict(gen_length=16, device="cpu"), public=True)
    with pytest.raises(ValueError, match=f"{option} is for who runs the playground alone"):
        models.of("llada_prm", {option: "float16"})
    assert models.of("llada_prm", dict(max_prm_calls="3")).method_options.max_prm_calls == 3


def test_a_method_that_there_is_not_is_told(models):
    with pytest.raises(ValueError, match="method must be one of llada, llada_ups"):
        models.of("gpt")


@pytest.mark.parametrize("words", HOSTILE[:-1])
def test_hostile_text_is_written_out(words):
    for drawn in (drawing.lines(words), drawing.framed(words), drawing.status(words)):
        assert "\x1b" not in drawn.replace(words, "") or words not in drawn
        assert "<script>" not in drawn and "<img" not in drawn
    assert not set("${}`@\x1b\u202e\0") & set(drawing.lines(words))


def test_no_template_language_finds_anything_in_what_is_shown():
    told = drawing.harmless("${alert(1)} {{value}} {{{value}}} `x` @children")
    assert not set("${}`@") & set(told)


def exit_line(*argv: str) -> str:
    with pytest.raises(SystemExit) as exited:
        app.main(argv)
    assert "\n" not in str(exited.value)
    return str(exited.value)


def test_a_port_in_use_is_told_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr("llada_plugins.playground.serving.Models", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert exit_line("--port", port).startswith(f"error: port {port} of 127.0.0.1 cannot be")


def test_gradio_missing_is_told_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    told = "error: the playground needs gradio: pip install 'llada-plugins[app]'"
    assert exit_line("--port", "0") == told


@pytest.mark.parametrize(
    "words, told",
    [
        (["--port", "99999"], "port must be from 0 to 65535, got 99999"),
        (["--record", "trajectory"], "record has no effect: the playground records every answer"),
        (["--prot", "1"], "unknown llada option 'prot' (did you mean 'port'?)"),
        (["--model", "gpt"], "model must be one of llada, llada_ups, llada_ala, llada_prm"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, told):
    assert told in exit_line(*words)


@pytest.mark.slow  # imports Gradio
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_what_was_asked_is_deleted_when_the_process_is_asked_to_end(tmp_path, number, status):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "llada_plugins.app", "--port", "0", "--device", "cpu"]
    # a proxy that answers nothing is not asked for the page
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, "TMPDIR": str(tmp_path), **proxy}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        # a job in the background ignores SIGINT, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stdout.readline().startswith("http://127.0.0.1:")
            assert list(tmp_path.glob("llada-playground-*"))
            process.send_signal(number)
            assert process.wait(60) == status
        finally:
            process.kill()  # else the block would wait for it
    assert list(tmp_path.glob("llada-playground-*")) == []


@pytest.mark.parametrize("door", [app, infilling], ids=["app", "infilling"])
def test_ctrl_c_while_a_model_is_loaded_is_no_traceback(door, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(door, "run", interrupted)
    assert door.main(["--text", "<|infill|>"] if door is infilling else []) == 130
    assert capsys.readouterr().err == "\n"


@pytest.mark.slow  # imports Gradio
def test_the_page_has_a_component_for_every_option_of_both_settings(models):
    pytest.importorskip("gradio")
    from llada_plugins.playground.page import build

    parts = build(models).get_config_file()["components"]
    found = {part["props"].get("elem_id"): part["props"] for part in parts}
    expected = {control.name: control.help for control in controls()}
    for name, every in controls_of_methods().items():
        expected |= {f"{name}-{control.name}": control.help for control in every}
    for name, told in expected.items():
        for which in ("first", "second"):
            assert found[f"{which}-{name}"]["info"] == told
    assert asdict(models.first.sampler)["gen_length"] == 16


# --- infilling ------------------------------------------------------------------------


def test_a_text_with_marked_spans_is_shown_whole_with_its_spans_filled_in(models, tmp_path):
    (problem,) = sudoku.problems("test", 1)
    text = f"{PUZZLE}{problem.solution[:4]}<|infill:4|>{problem.solution[8:]}"
    filled = Engine(gen_length=16, device="cpu").infill(text)
    end = last(models, tmp_path, Question(prompt=text, infill=True), setting(models))
    assert end.answers[0] == drawing.done(Completion(filled.text, 0, 0, 0.0))
    assert "4 tokens, 4 forwards" in end.status


def test_a_prompt_without_a_span_is_refused_where_spans_are_to_be_filled_in(models, tmp_path):
    with pytest.raises(ValueError, match="nothing is to be filled in"):
        last(models, tmp_path, Question(prompt=PUZZLE, infill=True), setting(models))

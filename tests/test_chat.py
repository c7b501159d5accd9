"""The chat: what is asked of the engine, what the terminal shows, and how every way out ends."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llada_plugins import chat, infilling
from llada_plugins.engine.conversation import Conversation
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.engine.request import Completion
from llada_plugins.engine.terminal import Screen, wrap
from llada_plugins.tasks import sudoku

PUZZLES = [problem.puzzle for problem in sudoku.problems("test", 2)]
PLAIN = ["--chat", "false", "--gen_length", "16", "--device", "cpu"]
COMMAND = [sys.executable, "-m", "llada_plugins.chat", *PLAIN]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def displayed(written: str) -> list[str]:
    """The lines that a terminal shows after `written`: carriage return, cursor up and
    erase below, as ECMA-48 has them.
    """
    lines, row, column = [""], 0, 0
    for code, count, symbol in re.findall(r"(\x1b\[(\d*)[AJ])|([\s\S])", written):
        if code.endswith("A"):
            row -= int(count)
            assert row >= 0
        elif code.endswith("J"):
            lines[row:] = [lines[row][:column]]
        elif symbol == "\r":
            column = 0
        elif symbol == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        else:
            lines[row] = lines[row][:column] + symbol + lines[row][column + 1 :]
            column += 1
    return lines


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(gen_length=16, device="cpu")


def direct(prompt: str, method: str = "llada", **options) -> str:
    asked = Engine(method, **{"gen_length": 16, "device": "cpu", **options})
    ((_, completion),) = asked.generate([Request(prompt, asked.sampler)])
    return completion.text


# --- answers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, method, options",
    [
        ([], "llada", {}),
        (
            ["--sampling_method", "fixed_length", "--remasking", "random", "--steps", "8"],
            "llada",
            dict(sampling_method="fixed_length", remasking="random", steps=8),
        ),
        (
            ["--sampling_method", "semi_ar_padding", "--block_length", "4"],
            "llada",
            dict(sampling_method="semi_ar_padding", block_length=4),
        ),
        (
            ["--sampling_method", "semi_ar_origin", "--block_length", "4"],
            "llada",
            dict(sampling_method="semi_ar_origin", block_length=4),
        ),
        (["--model", "llada_ups", "--steps", "8"], "llada_ups", dict(steps=8)),
        (["--model", "llada_ala", "--steps", "8"], "llada_ala", dict(steps=8)),
        (["--model", "llada_prm"], "llada_prm", {}),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_a_prompt_is_answered_as_the_engine_answers_it(capsys, flags, method, options):
    assert chat.main(["--prompt", PUZZLES[0], *PLAIN, *flags]) == 0
    assert capsys.readouterr().out == direct(PUZZLES[0], method, **options) + "\n"


@pytest.mark.parametrize("command", ["chat", "infilling"])
def test_nothing_in_a_text_acts_on_a_terminal_and_a_pipe_gets_it_as_it_is(
    command, monkeypatch, capsys
):
    hostile = "\x1b[31m\x07\u202ea\tb\r\nc\u200b<|infill:2|>"
    shown = "␛[31m␇[U+202E]a\tb␍\nc[U+200B]"

    def run() -> str:
        if command == "infilling":
            assert infilling.main(["--text", hostile, "--device", "cpu"]) == 0
        else:
            monkeypatch.setattr(Conversation, "ask", lambda *_: Completion(hostile, 1, 1, 0.0))
            assert chat.main(["--prompt", "1", *PLAIN]) == 0
        return str(getattr(sys.stdout, "getvalue", lambda: capsys.readouterr().out)())

    assert run().startswith(hostile.split("<")[0])
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert run().split("\x1b[J")[-1].startswith(shown)


def test_a_terminal_that_draws_nothing_again_gets_the_answer_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert chat.main(["--prompt", PUZZLES[0], *PLAIN]) == 0
    assert sys.stdout.getvalue() == direct(PUZZLES[0]) + "\n"


def test_piped_lines_are_turns_and_the_output_is_the_answers(capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(f"{PUZZLES[0]}\n\n/reset\n{PUZZLES[1]}\n/exit\nnever asked\n")
    )
    assert chat.main(PLAIN) == 0
    assert capsys.readouterr().out.splitlines() == [direct(puzzle) for puzzle in PUZZLES]


def test_a_conversation_is_rendered_with_all_its_turns_until_reset(engine, monkeypatch):
    asked: list[str] = []
    generate = engine.generate
    monkeypatch.setattr(
        engine, "generate", lambda requests: asked.append(requests[0].prompt) or generate(requests)
    )
    talk = Conversation(engine, chat=True, system="be brief")
    first = talk.ask("one").text
    talk.ask("two")
    talk.reset()
    talk.ask("three")
    system = {"role": "system", "content": "be brief"}
    turns = [
        system,
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    again = [system, {"role": "user", "content": "three"}]
    assert asked == [engine.render_chat(each) for each in (turns[:2], turns, again)]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("too long")])
def test_a_turn_that_does_not_end_is_forgotten(engine, monkeypatch, failure):
    def fail(canvas, window):
        raise failure

    talk = Conversation(engine, chat=True)
    talk.ask("one")
    before = list(talk.messages)
    with monkeypatch.context() as patch, pytest.raises(type(failure)):
        patch.setattr(engine, "denoise", fail)
        talk.ask("two")
    assert talk.messages == before and talk.ask("two").text is not None


def test_a_tokenizer_without_template_is_said_once_and_turns_stand_alone(
    tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    options = ["--pretrained", str(folder), "--gen_length", "8", "--device", "cpu"]
    assert chat.main(options) == 0
    shown = capsys.readouterr()
    assert shown.err.count("no chat template: every line is a prompt of its own") == 1
    assert shown.out == "".join(
        direct(line, pretrained=str(folder), gen_length=8) + "\n" for line in ("one", "two")
    )
    for extra in (["--chat", "true"], ["--system", "be brief"]):
        with pytest.raises(SystemExit, match="error: chat and system need a chat template"):
            chat.main([*options, *extra])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--prompt", " "], "prompt is empty"),
        (["--model", "lladda"], "model must be one of llada, llada_ups"),
        (
            ["--prompt", "x", "--treshold", "0.9"],
            "unknown llada option 'treshold' (did you mean 'threshold'?)",
        ),
        (
            ["--prompt", "x", "--sampling_method", "semi_ar"],
            "sampling_method must be one of 'fixed_length', 'semi_ar_padding', ",
        ),
        (["--prompt", "x", "--remasking", "high"], "remasking must be one of low_confidence"),
        (["--prompt", "two", "words"], "'words' belongs to no flag"),
        (["--system", "be brief", "--chat", "false"], "system has no effect with chat=false"),
        (
            ["--prompt", "a\udcff"],
            r"not UTF-8 text: byte 0xff, or lone surrogate \udcff at character ",
        ),
        (["--prompt", "x" * 4096], "exceed the context of 4096 tokens"),
        (["--pretrained", "./absent"], "no such folder"),
    ],
)
def test_a_mistake_ends_with_one_line(flags, message):
    with pytest.raises(SystemExit) as exit_info:
        chat.main([*flags, "--device", "cpu"])
    line = str(exit_info.value.code)
    assert line.startswith("error: ") and message in line and "\n" not in line


def test_help_lists_the_options_of_the_chat_and_of_the_model(capsys):
    with pytest.raises(SystemExit) as exit_info:
        chat.main(["--model", "llada_prm", "--help"])
    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert all(
        flag in text
        for flag in (
            "--prompt",
            "--no-stream",
            "--sampling_method",
            "--remasking",
            "--pretrained",
            "--prm",
        )
    )


# --- the terminal ---------------------------------------------------------------------


def test_a_drawing_takes_the_place_of_the_one_before_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((11, 4)))
    out = Terminal("$ chat\n")
    out.seek(0, io.SEEK_END)
    screen = Screen(out)
    screen.draw("░" * 25)
    assert displayed(out.getvalue()) == ["$ chat", "░" * 10, "░" * 10, "░" * 5]
    screen.draw("ab\n\x1b[Acd\te")
    # a model cannot steer the terminal
    assert displayed(out.getvalue()) == ["$ chat", "ab", " [Acd e"]
    screen.draw("\n".join("12345"))
    # never more than fits, else it could not be taken back
    assert displayed(out.getvalue()) == ["$ chat", "3", "4", "5"]
    screen.clear()
    assert displayed(out.getvalue()) == ["$ chat", ""]


@pytest.mark.parametrize(
    "string, columns, lines",
    [
        ("", 5, [""]),
        ("abc", 3, ["abc"]),
        ("abcd", 3, ["abc", "d"]),
        ("a\n\nb", 3, ["a", "", "b"]),
        ("日本語", 4, ["日本", "語"]),
        ("e\u0301" * 3, 3, ["e\u0301" * 3]),
    ],
)
def test_lines_never_exceed_the_terminal(string, columns, lines):
    assert wrap(string, columns) == lines


def test_masks_are_drawn_as_symbols_and_nothing_behind_the_end_token(engine):
    word = engine.tokenizer.encode("naïve", add_special_tokens=False)
    mask, end = engine.special.mask, engine.special.eos
    assert chat.picture(engine, [*word, mask, mask, *word]) == "naïve░░naïve"
    assert chat.picture(engine, [mask, *word, end, *word, mask]) == "░naïve"
    assert chat.picture(engine, []) == ""


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--sampling_method", "semi_ar_origin", "--block_length", "4"],
        ["--block_length", "4", "--cache", "dual"],
        ["--cfg_scale", "0.5"],
        ["--model", "llada_ups", "--steps", "8"],
        ["--model", "llada_prm"],
    ],
    ids=str,
)
def test_the_stream_shows_every_state_and_changes_no_answer(capsys, monkeypatch, flags):
    chat.main(["--prompt", PUZZLES[0], *PLAIN, *flags])
    expected = capsys.readouterr().out
    frames: list[str] = []
    draw = Screen.draw
    monkeypatch.setattr(
        Screen, "draw", lambda self, string: frames.append(string) or draw(self, string)
    )
    for extra, streams in (([], True), (["--no-stream"], False)):
        out = Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        frames.clear()
        chat.main(["--prompt", PUZZLES[0], *PLAIN, *flags, *extra])
        assert displayed(out.getvalue()) == [expected.rstrip("\n"), ""]
        assert bool(frames) == streams == ("\x1b" in out.getvalue())
        if streams:
            assert set(frames[0]) == {chat.MASK} and all(chat.MASK in frame for frame in frames)
            if "--model" not in flags:  # the other two methods mask tokens again
                assert all(
                    old in (chat.MASK, new)
                    for before, after in zip(frames, frames[1:])
                    for old, new in zip(before, after)
                )


def test_at_the_prompt_ctrl_c_leaves_with_130_and_the_end_of_input_with_0(monkeypatch, capsys):
    def interrupted(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert chat.main(PLAIN) == 130
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    assert chat.main(PLAIN) == 0


def test_on_a_terminal_a_failed_turn_leads_back_to_the_prompt_and_in_a_pipe_to_status_1(
    monkeypatch, capsys
):
    lines = "x" * 4090 + f"\n{PUZZLES[0]}\n"
    monkeypatch.setattr(sys, "stdin", Terminal(lines))
    assert chat.main(PLAIN) == 0
    shown = capsys.readouterr()
    assert "exceed the context of 4096 tokens" in shown.err
    assert "/reset" in shown.err
    assert direct(PUZZLES[0]) in shown.out
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    with pytest.raises(SystemExit, match="exceed the context"):
        chat.main(PLAIN)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"], ids=["UTF-8 locale", "C locale"])
def test_a_piped_line_that_is_not_utf_8_ends_with_one_line(monkeypatch, errors):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8", errors=errors)
    )
    with pytest.raises(
        SystemExit,
        match=r"^error: not UTF-8 text: byte 0xff, or .* at character \d+, after '.*a': give UTF-8 "
        "text$",
    ):
        chat.main(PLAIN)


def read_until(master: int, pattern: str, seconds: float = 120) -> None:
    """Read what the program writes until all of it matches."""
    written, end = "", time.monotonic() + seconds
    while not re.search(pattern, written):
        assert time.monotonic() < end, written[-500:]
        if select.select([master], [], [], 1)[0]:
            written += os.read(master, 65536).decode(errors="replace")


def leave(program: subprocess.Popen) -> int:
    """Ctrl-C until the program ends: one that falls between readline's prompt and its
    wait for a key is seen at the next.
    """
    for _ in range(5):
        program.send_signal(signal.SIGINT)
        try:
            return program.wait(timeout=15)
        except subprocess.TimeoutExpired:
            pass
    raise AssertionError("the program ignores Ctrl-C")


@pytest.mark.slow
def test_ctrl_c_drops_the_answer_in_work_and_then_leaves_the_program():
    master, slave = pty.openpty()
    # a shell that starts the tests in the background has them, and so the program,
    # ignore Ctrl-C; one in a terminal does not
    program = subprocess.Popen(
        [*COMMAND, "--gen_length", "1024"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(slave)
    try:
        read_until(master, "> ")
        os.write(master, (PUZZLES[0] + "\n").encode())
        read_until(master, chat.MASK)
        program.send_signal(signal.SIGINT)  # what a terminal does on Ctrl-C
        read_until(master, r"interrupted, the turn is forgotten[\s\S]*> ")
        assert leave(program) == 130
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
        os.close(master)

"""What a power failure leaves: the files as they were when they were last forced onto the disk."""

from __future__ import annotations

import os
import pickle
import sqlite3
import threading
from pathlib import Path

import pytest

from llada_plugins.files.atomic import force, whole_folder, write_whole
from llada_plugins.files.background import Background


class Disk:
    """Takes down what every file held, and every folder named, when it was forced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forced: dict[str, object] = {}
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, opened: int) -> None:
        self._fsync(opened)
        path = Path(os.readlink(f"/proc/self/fd/{opened}"))
        self.forced[str(path)] = set(os.listdir(path)) if path.is_dir() else path.read_bytes()


@pytest.fixture
def disk(monkeypatch) -> Disk:
    return Disk(monkeypatch)


# ---- files and folders that are whole or absent


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, disk, monkeypatch):
    path, replace, before = tmp_path / "file", Path.replace, []
    path.write_text("old")

    def replaced(partial: Path, target: Path) -> None:
        before.append(disk.forced[str(partial)])
        replace(partial, target)
        disk.forced.clear()

    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(path, "new")
    assert before == [b"new"] and disk.forced == {str(tmp_path): {"file"}}


def test_a_folder_is_on_the_disk_before_its_name_is(tmp_path, disk, monkeypatch):
    replace, before = Path.replace, {}

    def replaced(partial: Path, target: Path) -> None:
        own = {Path(name): value for name, value in disk.forced.items()}
        before.update({str(name.relative_to(partial)): own[name] for name in own})
        replace(partial, target)
        disk.forced.clear()

    monkeypatch.setattr(Path, "replace", replaced)
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("text")
        (partial / "link").symlink_to("nowhere")
    assert before == {".": {"inner", "link"}, "inner": {"file"}, "inner/file": b"text"}
    assert disk.forced == {str(tmp_path): {"folder"}}


def test_a_folder_that_cannot_be_forced_is_left_to_its_file_system(tmp_path, monkeypatch):
    def refuses(number: int) -> None:
        raise OSError(number, "no such call")

    monkeypatch.setattr(os, "fsync", lambda opened: refuses(22))
    write_whole(tmp_path / "file", "text")
    monkeypatch.setattr(os, "fsync", lambda opened: refuses(5))  # an error of the disk
    with pytest.raises(OSError, match="no such call"):
        force(tmp_path)


# ---- work in the background


def test_who_asks_while_work_goes_on_gets_one_call_more():
    begun, go, calls = threading.Semaphore(0), threading.Semaphore(0), []

    def work() -> None:
        begun.release()
        go.acquire()
        calls.append(None)

    background = Background(work)
    background.ask()
    begun.acquire()
    for _ in range(9):
        background.ask()
    go.release(2)
    background.wait()
    assert len(calls) == 2


def test_who_asks_waits_for_a_call_that_is_late(monkeypatch):
    calls: list[None] = []
    monkeypatch.setattr("llada_plugins.files.background.PATIENCE", -1)
    background = Background(lambda: calls.append(None))
    for number in range(1, 4):
        background.ask()
        assert len(calls) == number


@pytest.mark.parametrize("way", ["ask", "wait"])
def test_an_error_in_the_background_is_raised_once_by_who_comes_next(way):
    background = Background(lambda: (_ for _ in ()).throw(OSError("the disk is full")))
    background.ask()
    background._last.result()
    with pytest.raises(OSError, match="the disk is full"):
        getattr(background, way)()
    background.wait()


# ---- answers of OpenCompass


def test_every_answer_of_opencompass_is_forced_and_then_the_predictions(tmp_path, disk):
    pytest.importorskip("opencompass")
    from llada_plugins.harness.opencompass_journal import Journal, journal_of
    from tests.test_opencompass_journal import ANSWER, REQUESTS

    predictions = tmp_path / "rows.json"
    journal, place = Journal("one"), str(journal_of(predictions))
    journal.open(predictions)
    assert disk.forced == {str(tmp_path): {Path(place).name}}
    for number, request in enumerate(REQUESTS, 1):
        journal.keep(request, ANSWER)
        journal._disk.wait()
        assert disk.forced[place].count(b"\n") == 1 + number  # after the line of who answers
    predictions.write_text("{}")
    disk.forced.clear()
    journal.close()
    assert disk.forced[str(predictions)] == b"{}"
    assert {Path(place).name, "rows.json"} <= disk.forced[str(tmp_path)]
    assert not Path(place).exists()


# ---- answers of lm-eval


@pytest.fixture
def cache(tmp_path):
    """An lm-eval cache of a model with the fingerprint {"steps": 4}: its hook."""
    pytest.importorskip("lm_eval")
    return opened(tmp_path / "cache.db", '{"steps": 4}')


def opened(path: Path, fingerprint: str):
    """The hook of a --use_cache file."""
    from sqlitedict import SqliteDict

    from llada_plugins.harness.lmeval_cache import tied

    return tied(SqliteDict(str(path), autocommit=True), fingerprint)


def rows(path: Path) -> dict[str, object]:
    """What another process reads."""
    with sqlite3.connect(path) as database:
        return {
            key: pickle.loads(value) for key, value in database.execute("select * from unnamed")
        }


def test_lm_evals_database_waits_for_the_disk(cache):
    """SQLite's name for "the content is on the disk before a transaction ends" is 2, full."""
    assert cache.entries.conn.select_one("pragma synchronous") == (2,)


def test_what_is_kept_while_the_disk_is_busy_is_one_transaction(cache, tmp_path):
    entries, write, calls = cache.entries, cache.entries._write, []
    entries.settle()
    go = threading.Semaphore(0)
    entries._disk._work = lambda: (go.acquire(), calls.append(dict(entries._waiting)), write())
    for number in range(600):
        entries.keep({f"answer {number}": str(number)})
    go.release(2)
    entries.settle()
    assert 1 <= len(calls) <= 2 and max(map(len, calls)) >= 599
    assert len(rows(tmp_path / "cache.db")) == 1 + 600


def test_an_answer_and_its_costs_are_there_together(cache, tmp_path):
    from lm_eval.api.instance import Instance

    statements = []
    execute = cache.entries.conn.execute
    cache.entries.settle()
    cache.entries.conn.execute = lambda *given: (statements.append(given[0]), execute(*given))
    request = Instance("generate_until", {}, ("prompt", {}), 0)
    cache.keep_answer(request, 0, "text", {"tokens": 4})
    cache.entries.settle()
    assert sum(each.startswith("replace") for each in statements) == 1
    again = opened(tmp_path / "cache.db", '{"steps": 4}')
    assert again.finished(request, 0) == ("text", {"tokens": 4})


def test_lm_eval_writes_no_value_a_second_time(cache):
    cache.add_partial("loglikelihood", ("a", "b"), (-1.0, False))
    cache.entries.settle()
    [key] = (key for key in cache.entries if "fingerprint" not in key)
    cache.entries[key] = "it would be this"
    cache.entries[key] = (-2.0, False)
    assert cache.entries[key] == (-1.0, False)


def test_an_entry_that_the_disk_refuses_ends_the_run(cache):
    cache.entries.settle()
    cache.entries.conn.execute("drop table unnamed")
    cache.entries.keep({"key": "text"})
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        cache.entries.settle()


# ---- files of lm-eval that are not what they should be


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table unnamed (key text primary key, value blob)")
        database.execute("insert into unnamed values ('hash', ?)", [pickle.dumps("text")])


def test_a_file_of_another_model_is_refused_with_the_reason(tmp_path, cache):
    cache.entries.settle()
    with pytest.raises(ValueError, match=r"other options: steps was 4, is 8: give another file"):
        opened(tmp_path / "cache.db", '{"steps": 8}')
    foreign(tmp_path / "foreign.db")
    with pytest.raises(ValueError, match="other options: it does not say by which: give another"):
        opened(tmp_path / "foreign.db", '{"steps": 4}')


def test_an_option_that_the_file_does_not_know_and_is_none_now_makes_no_difference(tmp_path, cache):
    cache.entries.settle()
    hook = opened(tmp_path / "cache.db", '{"newer": null, "of": {}, "steps": 4}')
    hook.entries.keep({"key": "text"})
    with pytest.raises(ValueError, match="other options: newer was None, is 2: give another file"):
        opened(tmp_path / "cache.db", '{"newer": 2, "steps": 4}')


@pytest.mark.parametrize("damage", ["cut in half", "a page", "no database", "a folder"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    pytest.importorskip("lm_eval")
    from llada_plugins.harness.lmeval_entries import check_file

    path = tmp_path / "cache.db"
    check_file(path)  # there is none
    with sqlite3.connect(path) as database:
        database.execute("create table unnamed (key text primary key, value blob)")
        rows = ((str(number), bytes(500)) for number in range(100))
        database.executemany("insert into unnamed values (?, ?)", rows)
    check_file(path)
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        at = 3 * 4096
        spoilt = {
            "cut in half": content[: len(content) // 2],
            "a page": content[:at] + b"\x07" * 4096 + content[at + 4096 :],
            "no database": b"no database",
        }
        path.write_bytes(spoilt[damage])
    with pytest.raises((ValueError, OSError), match=r"--use_cache: \S+/cache.db ") as raised:
        check_file(path)
    said = str(raised.value)
    assert "\n" not in said and ("cannot be used" if damage == "a folder" else "damaged") in said


def test_a_damaged_file_is_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    evaluator = pytest.importorskip("lm_eval.evaluator")
    from llada_plugins import lmeval_models

    loaded: list[object] = []
    monkeypatch.setattr(lmeval_models, "Engine", lambda *given, **options: loaded.append(given))
    (tmp_path / "cache_rank0.db").write_text("no database")
    with pytest.raises(ValueError, match="cache_rank0.db is damaged or of another kind"):
        evaluator.simple_evaluate("llada", "steps=4", ["any"], use_cache=str(tmp_path / "cache"))
    assert not loaded


class Code:
    """A pickle that runs a command when it is read as pickles are."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("value", [pickle.dumps(Code()), b"\x80torn", b""])
def test_an_entry_is_read_without_running_it(tmp_path, cache, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    cache.entries.settle()
    with sqlite3.connect(tmp_path / "cache.db") as database:
        database.execute("insert into unnamed values ('key', ?)", [value])
    with pytest.raises(ValueError, match="an entry cannot be read"):
        cache.entries["key"]
    assert not Path("ran").exists()


def test_a_new_file_is_empty_or_absent(tmp_path):
    pytest.importorskip("lm_eval")
    from llada_plugins.harness.lmeval_entries import check_file

    (tmp_path / "cache.db").touch()
    check_file(tmp_path / "cache.db")

"""What the doctor finds, in folders of metadata that stand for broken environments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llada_plugins import doctor
from llada_plugins.files import installation
from llada_plugins.reports.doctor import (
    check_conflicts,
    check_extras,
    check_hardware,
    check_installation,
    check_requirements,
    check_versions,
)
from llada_plugins.reports.doctor_harnesses import (
    FINDER,
    Ask,
    asked,
    check_lm_eval,
    check_opencompass,
)
from llada_plugins.reports.finding import FAIL, NOTE, OK, Finding

VALUE = "llada_plugins.lmeval_models:LLaDA"
UNKNOWN = {"models": {}, "errors": {"llada": "ValueError('Supported model names: hf, vllm')"}}


@pytest.fixture
def site_packages(tmp_path, monkeypatch) -> Path:
    """A folder in front of sys.path, where the metadata of a test go before the real ones."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(folder: Path, name: str, version: str, *lines: str, entry_points: str = "") -> None:
    """The metadata of a distribution; lines: further fields, such as Requires-Dist."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    fields = "".join(f"{line}\n" for line in lines)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{fields}"
    )
    (info / "entry_points.txt").write_text(entry_points)


def ours(folder: Path, *lines: str) -> None:
    install(
        folder,
        "llada-plugins",
        "9.9",
        "Requires-Python: >=3.10",
        *lines,
        entry_points=f"[lm_eval.models]\nllada = {VALUE}\n",
    )


def failures(findings) -> list[Finding]:
    return [finding for finding in findings if finding.state == FAIL]


def test_pyarrow_that_needs_another_numpy_is_found(site_packages):
    install(site_packages, "pyarrow", "26.0.1")
    install(site_packages, "numpy", "1.26.4")
    (found,) = check_conflicts()
    assert (found.state, found.remedy) == (FAIL, "pip install 'pyarrow<26'")
    assert "26.0.1 needs NumPy 2" in found.text and "NumPy is 1.26.4" in found.text


def test_pyarrow_with_the_numpy_that_it_needs_is_no_conflict(site_packages):
    install(site_packages, "pyarrow", "26.0.1")
    install(site_packages, "numpy", "2.4.6")
    assert list(check_conflicts()) == []


def test_the_full_mmengine_over_the_lite_one_is_found(site_packages):
    install(site_packages, "mmengine-lite", "0.11.0rc3")
    assert not failures(check_conflicts())
    install(site_packages, "mmengine", "0.10.7")
    (found,) = check_conflicts()
    assert found.state == FAIL
    assert "0.10.7 lies over the files of mmengine-lite" in found.text
    assert "pip uninstall -y mmengine" in found.remedy


@pytest.mark.parametrize("version", ["4.45.0", None])
def test_a_requirement_that_is_missing_or_too_old_is_found(site_packages, version):
    name = "llada-test-requirement"
    ours(site_packages, f"Requires-Dist: {name}>=4.46", 'Requires-Dist: other; extra == "train"')
    if version:
        install(site_packages, name, version)
    (found,) = check_requirements()
    assert (found.state, found.remedy) == (FAIL, f"pip install '{name}>=4.46'")
    assert found.text.startswith(version or "not installed")


def test_an_extra_that_is_not_whole_is_a_note_with_its_install_line(site_packages):
    ours(
        site_packages,
        "Requires-Dist: torch",
        "Provides-Extra: grading",
        "Provides-Extra: all",
        'Requires-Dist: llada-test-absent; extra == "grading"',
        'Requires-Dist: llada-plugins[grading]; extra == "all"',
    )
    (found,) = check_extras()
    assert (found.state, found.text) == (NOTE, "llada-test-absent absent")
    assert found.remedy == "if needed: pip install 'llada-plugins[grading]'"


def test_an_optional_package_that_is_too_old_says_what_is_needed(site_packages):
    ours(
        site_packages,
        "Provides-Extra: grading",
        'Requires-Dist: llada-test-old>=2; extra == "grading"',
    )
    install(site_packages, "llada-test-old", "1.9")
    (found,) = check_extras()
    assert (found.state, found.text) == (NOTE, "llada-test-old 1.9 (needs >=2)")


def test_a_word_that_means_nothing_is_refused_in_one_line():
    with pytest.raises(SystemExit, match="^error: unrecognized arguments: now; see --help$"):
        doctor.main(["now"])


def test_a_version_that_was_not_tested_is_a_note_beside_the_tested_one(site_packages):
    pinned = installation.tested()["safetensors"]
    ours(site_packages, "Requires-Dist: safetensors")
    install(site_packages, "safetensors", "0.0.1")
    (found,) = check_versions()
    assert found.state == NOTE
    assert f"0 of 1 packages as tested; others: safetensors 0.0.1 (tested {pinned})" in found.text


def test_a_version_built_for_some_gpu_is_the_tested_one(site_packages):
    ours(site_packages, "Requires-Dist: torch")
    install(site_packages, "torch", f"{installation.tested()['torch']}+cu130")
    (found,) = check_versions()
    assert (found.state, found.text) == (OK, "1 of 1 packages as tested")


def test_a_python_that_is_not_supported_is_found(site_packages):
    install(site_packages, "llada-plugins", "9.9", "Requires-Python: <3.0")
    (found,) = failures(check_installation())
    assert found.subject == "Python" and "but <3.0 is needed" in found.text


def answering(answer: object) -> Ask:
    """A harness that gives this answer."""
    return lambda harness: answer


def test_a_start_up_file_that_the_build_step_did_not_write_is_named(site_packages):
    ours(site_packages)
    info = site_packages / "llada_plugins-9.9.dist-info"
    (info / "direct_url.json").write_text('{"dir_info": {"editable": true}, "url": "file:///src"}')
    ask = answering({**UNKNOWN, "reads_entry_points": False})
    (found,) = failures(check_lm_eval(ask))
    assert f"{site_packages / 'llada_plugins_lm_eval.pth'} is missing" in found.text
    assert found.remedy.startswith("pip install -v --no-deps -e /src; until then llada-eval")


def test_a_start_up_file_is_not_missed_where_lm_eval_reads_entry_points(site_packages):
    ours(site_packages)
    ask = answering({"models": {"llada": VALUE}, "errors": {}, "reads_entry_points": True})
    assert not failures(check_lm_eval(ask))


def test_a_name_that_another_package_took_is_found(site_packages):
    ours(site_packages)
    taken = {"models": {"llada": "dllm.eval:LLaDA"}, "errors": {}, "reads_entry_points": False}
    (found,) = failures(check_lm_eval(answering(taken)))
    assert "dllm.eval:LLaDA" in found.text and "uninstall that package" in found.remedy


def test_a_start_up_file_in_a_folder_that_is_only_on_the_path_is_named(site_packages, monkeypatch):
    ours(site_packages)
    (site_packages / "llada_plugins_lm_eval.pth").touch()
    others = [each for each in sys.meta_path if type(each).__name__ != FINDER]
    monkeypatch.setattr(sys, "meta_path", others)
    ask = answering({**UNKNOWN, "reads_entry_points": False})
    (found,) = failures(check_lm_eval(ask))
    assert "does not process" in found.text and found.remedy.startswith("llada-eval")


def test_an_error_within_our_model_is_told_where_nothing_else_is_wrong(site_packages):
    ours(site_packages)
    (found,) = failures(check_lm_eval(answering({**UNKNOWN, "reads_entry_points": True})))
    assert UNKNOWN["errors"]["llada"] in found.text


def test_a_harness_that_cannot_be_imported_is_told_with_the_reason(site_packages):
    ours(site_packages)
    for check in (check_lm_eval, check_opencompass):
        (found,) = failures(check(answering("ImportError: pyarrow requires NumPy 2")))
        assert "ImportError: pyarrow requires NumPy 2" in found.text


def test_the_last_line_of_a_failure_is_the_reason():
    assert asked("nothing") == (
        "AttributeError: module 'llada_plugins.reports.doctor_harnesses' has no attribute "
        "'ask_nothing'"
    )


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(monkeypatch, capsys):
    def check_broken():
        raise RuntimeError("no such thing")
        yield

    fine = Finding(OK, "fine", "as it should be")
    monkeypatch.setattr("llada_plugins.reports.doctor.CHECKS", (check_broken, lambda: iter([fine])))
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "FAIL broken          could not be looked at: RuntimeError('no such thing')" in said
    assert "ok   fine" in said and said.endswith("1 broken: see FAIL\n")


def test_a_whole_environment_ends_with_status_0(monkeypatch, capsys):
    monkeypatch.setattr("llada_plugins.reports.doctor.CHECKS", (check_installation, check_hardware))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("nothing is broken\n")


def test_the_doctor_starts_where_torch_does_not_and_every_failure_has_that_reason(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open it')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    finished = subprocess.run(
        [sys.executable, "-m", "llada_plugins.doctor"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    broken = [line for line in finished.stdout.splitlines() if line.startswith(FAIL)]
    assert (finished.returncode, finished.stderr) == (1, "")
    assert [line.split()[1] for line in broken] == ["torch", "lm_eval", "opencompass"]
    assert all("libcudart.so.13: cannot open it" in line for line in broken)


@pytest.mark.slow
def test_both_harnesses_of_this_environment_find_our_models(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "llada_plugins.doctor"], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " finds llada, llada_ala, llada_prm, llada_ups\n" in finished.stdout
    assert " builds llada_plugins.opencompass_models.LLaDA\n" in finished.stdout
    assert len(finished.stdout.splitlines()) <= 24 and finished.stderr == ""  # one screen

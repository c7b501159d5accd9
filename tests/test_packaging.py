"""What pip installs, how stock lm-eval finds our models in it, and that nothing of ours
can break anybody's Python.
"""

from __future__ import annotations

import configparser
import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata as installed
from pathlib import Path
from typing import NamedTuple

import pytest
from lm_eval.api import registry
from lm_eval.api.model import LM
from packaging.requirements import Requirement

from llada_plugins import configs
from llada_plugins._lm_eval_hook import register
from llada_plugins.files.installation import shipped

ROOT = Path(__file__).parents[1]
PTH = "llada_plugins_lm_eval.pth"
BUILD_FILES = (
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "_ship.py",
    "constraints.txt",
    PTH,
)
PACKAGES = ("llada_plugins", "training")
SHIPPED = ("configs", "constraints.txt")  # in a wheel they lie in llada_plugins/_shipped


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The finished command, with its output; PYTHONPATH is dropped, because it could
    lead to the checkout.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )


def output(*command: str | Path, cwd: Path) -> str:
    finished = run(*command, cwd=cwd)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout.strip()


def files_below(folder: Path, *names: str) -> set[str]:
    """The files below those of the folder's entries, as POSIX paths relative to it."""
    found = [path for name in names for path in [folder / name, *(folder / name).rglob("*")]]
    files = [path for path in found if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix() for path in files}


# -- the names in lm-eval's registry


def write_metadata(folder: Path, name: str, entry_points: str) -> None:
    """What importlib.metadata needs to see a distribution with these entry points of
    lm_eval.models in the folder.
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lm_eval.models]\n{entry_points}\n")


@pytest.fixture
def models(monkeypatch):
    """lm-eval's registry of models, empty, as in a version that does not read entry
    points itself.
    """
    empty = registry.Registry("model", base_cls=LM)
    monkeypatch.setattr(registry, "model_registry", empty)
    monkeypatch.delattr(registry, "load_plugins", raising=False)
    return empty


@pytest.fixture
def metadata(tmp_path, monkeypatch) -> Path:
    """A folder in front of sys.path that holds our distribution's metadata with one
    sound and one broken entry point.
    """
    write_metadata(
        tmp_path,
        "llada_plugins",
        "llada = llada_plugins.lmeval_models:LLaDA\nllada_broken = llada_plugins.absent:Model",
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_registering_twice_equals_registering_once(models, metadata):
    register()
    once = dict(models.items())
    register()
    assert dict(models.items()) == once
    assert once["llada"] == "llada_plugins.lmeval_models:LLaDA"


def test_a_broken_entry_point_only_fails_when_its_name_is_asked_for(models, metadata):
    register()
    with pytest.raises(ModuleNotFoundError, match="llada_plugins.absent"):
        registry.get_model("llada_broken")
    assert "llada" in models


def test_foreign_entry_points_are_neither_registered_nor_in_the_way(models, metadata):
    write_metadata(metadata, "other", "llada_foreign = other:Model\nthis line is no entry point")
    register()
    assert "llada" in models and "llada_foreign" not in models


def test_a_name_that_is_taken_stays_as_it_is(models, metadata):
    models.register("llada", target="other:Model")
    register()
    assert dict(models.items())["llada"] == "other:Model"


def test_a_class_that_another_package_registers_later_takes_the_name(models, metadata):
    register()
    other = registry.register_model("llada")(type("Other", (LM,), {}))
    assert models.get("llada") is other


def test_nothing_is_registered_where_lm_eval_reads_entry_points_itself(
    models, metadata, monkeypatch
):
    monkeypatch.setattr(registry, "load_plugins", lambda: None, raising=False)
    register()
    assert len(models) == 0


# -- the start-up file, in a Python of its own with a stand-in for lm-eval


@pytest.fixture
def startup(tmp_path) -> Path:
    """A site folder with the start-up file, our hook and a stand-in lm_eval.models
    without a registry.
    """
    for package in ("lm_eval", "llada_plugins"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "lm_eval" / "models.py").write_text("own = 'its own models'\n")
    shutil.copy(ROOT / PTH, tmp_path)
    for module in ("_lm_eval_hook.py", "cli.py"):
        shutil.copy(ROOT / "llada_plugins" / module, tmp_path / "llada_plugins")
    return tmp_path


def start(
    site_folder: Path, code: str = "import lm_eval.models; print(lm_eval.models.own)"
) -> subprocess.CompletedProcess[str]:
    """Python started with the folder as its only site folder, twice, as the interpreter
    of a virtual environment does it.
    """
    twice = f"import site; [site.addsitedir({str(site_folder)!r}) for _ in range(2)]; "
    return run(sys.executable, "-S", "-c", twice + code, cwd=site_folder)


def test_a_registration_that_fails_leaves_a_warning_and_a_working_lm_eval(startup):
    finished = start(startup)
    assert (finished.returncode, finished.stdout.strip()) == (0, "its own models")
    assert finished.stderr.startswith("llada_plugins: lm-eval models not registered")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "hook", ["def find(:", "def find(*arguments): raise RuntimeError", "", None], ids=str
)
def test_a_hook_that_cannot_run_breaks_neither_start_up_nor_lm_eval(startup, hook):
    if hook is None:
        shutil.rmtree(startup / "llada_plugins")
    else:
        (startup / "llada_plugins" / "_lm_eval_hook.py").write_text(hook)
    finished = start(startup)
    assert (finished.returncode, finished.stdout.strip(), finished.stderr) == (
        0,
        "its own models",
        "",
    )


def test_the_start_up_line_imports_nothing_of_ours_and_adds_one_finder(startup):
    finished = start(
        startup,
        "import sys; print([type(f).__name__ for f in sys.meta_path].count('LLaDAPluginsFinder'), "
        "'llada_plugins' in sys.modules)",
    )
    assert (finished.stdout.strip(), finished.stderr) == ("1 False", "")
    assert (ROOT / PTH).read_text().count("\n") == 1


COMMAND = "from llada_plugins.cli import main; main()"


def said_in_one_line(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1, finished.stderr
    assert "python -m llada_plugins.doctor" in finished.stderr
    return finished.stderr


def test_the_command_without_lm_eval_says_how_to_install_it(startup):
    write_metadata(startup, "llada_plugins", "")
    shutil.rmtree(startup / "lm_eval")
    said = said_in_one_line(start(startup, COMMAND))
    assert "lm-eval is not installed: pip install 'llada-plugins[lmeval]'" in said


def test_the_command_with_an_lm_eval_that_fails_says_why(startup):
    write_metadata(startup, "llada_plugins", "")
    (startup / "lm_eval" / "models.py").write_text("raise ImportError('pyarrow requires NumPy 2')")
    said = said_in_one_line(start(startup, COMMAND))
    assert "lm-eval cannot be imported: pyarrow requires NumPy 2" in said


def test_the_command_of_a_package_that_is_not_installed_says_so(startup):
    assert "is imported, but not installed" in said_in_one_line(start(startup, COMMAND))


# -- what is asked for and what is pinned


def requirements() -> list[Requirement]:
    """Every requirement of setup.cfg, extras included, except the extra that collects
    our own extras.
    """
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    found = [Requirement(line) for text in lines for line in text.split("\n") if line]
    return [requirement for requirement in found if requirement.name != "llada-plugins"]


def canonical(requirement: Requirement) -> str:
    return requirement.name.lower().replace("_", "-")


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonical(pin): pin
        for pin in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} is no exact version"
    return specifier.version


def test_mmengine_is_left_to_opencompass():
    assert not {"mmengine", "mmengine-lite"} & {
        canonical(requirement) for requirement in requirements()
    }


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    pinned = pins()
    for requirement in requirements():
        assert requirement.specifier.contains(
            version(pinned[canonical(requirement)]), prereleases=True
        ), requirement


def test_constraints_are_exact_versions_that_hold_both_harnesses():
    pinned = {name: version(pin) for name, pin in pins().items()}
    assert pinned["torch"] == "2.13.0"
    assert int(pinned["pyarrow"].split(".")[0]) < 26  # 26 needs NumPy 2
    assert int(pinned["numpy"].split(".")[0]) < 2  # OpenCompass's own bound


# -- the configs that come with the package


@pytest.mark.parametrize(
    "words, folder",
    [
        ([], "configs"),
        (["lmeval"], "configs/lmeval"),
        (["opencompass"], "configs/opencompass"),
        (["accelerate"], "configs/accelerate"),
    ],
)
def test_the_configs_command_prints_the_folder_asked_for(words, folder, capsys):
    assert configs.main(words) == 0
    assert Path(capsys.readouterr().out.strip()) == ROOT / folder


def test_a_copy_of_the_configs_holds_every_file_of_them(tmp_path, capsys):
    destination = tmp_path / "new" / "mine"
    assert configs.main(["copy", str(destination)]) == 0
    assert capsys.readouterr().out == f"{destination}\n"
    assert files_below(destination, ".") == files_below(ROOT / "configs", ".")
    for file in files_below(destination, "."):
        assert (destination / file).read_bytes() == (ROOT / "configs" / file).read_bytes()


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["lmevl"],
            "unknown word 'lmevl' (did you mean 'lmeval'?); known: accelerate, copy, lmeval, ",
        ),
        (["copy"], "copy needs the folder to copy to"),
        (["copy", "{full}"], "is not empty"),
        (["copy", "{full}/file"], "is a file"),
        (["copy", str(ROOT / "configs" / "new")], "which is to be copied: give a folder elsewhere"),
        (["lmeval", "x"], "only copy takes a second word"),
        (["--folder"], "unrecognized arguments: --folder"),
    ],
    ids=str,
)
def test_the_configs_command_refuses_in_one_line_and_writes_nothing(words, message, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as refused:
        configs.main([word.format(full=tmp_path) for word in words])
    said = str(refused.value)
    assert said.startswith("error: ") and message in said and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not (ROOT / "configs" / "new").exists()


def test_an_installation_without_its_configs_says_so(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()  # another package's, in site-packages
    monkeypatch.setattr("llada_plugins.files.installation.PACKAGE", tmp_path / "llada_plugins")
    with pytest.raises(FileNotFoundError, match="this installation is not whole"):
        shipped("configs")


# -- real installs into a fresh environment


class Environment(NamedTuple):
    """A virtual environment: its interpreter, its site-packages and its folder of commands."""

    python: Path
    site_packages: Path
    scripts: Path

    def pip(self, *arguments: str | Path, cwd: Path) -> str:
        return output(self.python, "-m", "pip", *arguments, cwd=cwd)

    def installed(self) -> set[str]:
        """Names of what lies in site-packages and among the commands."""
        return {
            path.name for folder in (self.site_packages, self.scripts) for path in folder.iterdir()
        } - {"__pycache__"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    """A fresh environment with the running one's packages (pip and setuptools too),
    except ours and every start-up file.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    site_packages = Path(
        output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    )
    view = folder / "dependencies" / "site-packages"  # mmengine takes all else for built in
    view.mkdir(parents=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = "llada" in entry.name or entry.name in PACKAGES
        if not ours and entry.suffix != ".pth" and entry.name != "__pycache__":
            (view / entry.name).symlink_to(entry)
    (site_packages / "dependencies.pth").write_text(f"{view}\n")
    return Environment(python, site_packages, scripts)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what is built, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("sources")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, folder)
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def wheel_files(sources: Path) -> set[str]:
    """What the wheel of the sources has to hold beside its metadata."""
    shipped = {f"llada_plugins/_shipped/{file}" for file in files_below(sources, *SHIPPED)}
    return {PTH, *files_below(sources, *PACKAGES), *shipped}


def test_the_build_step_lists_every_file_of_the_wheel(sources):
    code = """
from setuptools.dist import Distribution
distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files()
step = distribution.get_command_obj("build_py")
step.build_lib = ""
step.ensure_finalized()
print(*step.get_outputs(include_bytecode=False), sep="\\n")
"""
    listed = output(sys.executable, "-W", "ignore", "-c", code, cwd=sources).splitlines()
    files = {Path(file).as_posix() for file in listed if ".egg-info" not in file}
    assert files == wheel_files(sources)


@pytest.fixture(scope="module")
def wheel(sources, environment, tmp_path_factory) -> Path:
    """The wheel of the source distribution of the sources."""
    folder = tmp_path_factory.mktemp("dist")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    output(environment.python, "-c", build, folder, cwd=sources)
    (archive,) = folder.glob("*.tar.gz")
    environment.pip(
        "wheel",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        archive,
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_the_start_up_file_and_every_file_of_the_packages(wheel, sources):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert archive.read(PTH) == (ROOT / PTH).read_bytes()
    assert names == wheel_files(sources)


INSTALLS = {  # how -> what pip is told beside the source
    "wheel": [],
    "editable": ["--no-build-isolation"],
    "strict": ["--no-build-isolation", "--config-settings", "editable_mode=strict"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", INSTALLS)
def test_installed_package_is_found_by_stock_lm_eval_and_uninstalls_without_a_trace(
    kind, environment, sources, wheel, tmp_path
):
    before = environment.installed()
    source = [wheel] if kind == "wheel" else ["--editable", sources]
    environment.pip("install", "--no-index", "--no-deps", *INSTALLS[kind], *source, cwd=tmp_path)

    origin = output(
        environment.python,
        "-c",
        "import llada_plugins; print(llada_plugins.__file__)",
        cwd=tmp_path,
    )
    home = environment.site_packages if kind == "wheel" else sources
    assert Path(origin).resolve().is_relative_to(home)
    folder = Path(output(environment.python, "-m", "llada_plugins.configs", cwd=tmp_path))
    assert files_below(folder.parent, *SHIPPED) == files_below(ROOT, *SHIPPED)
    assert (environment.site_packages / PTH).read_bytes() == (ROOT / PTH).read_bytes()
    found = output(
        environment.python,
        "-c",
        "from lm_eval.api.registry import get_model; "
        "print(*(get_model(name).__module__ for name in ('llada', 'dummy')))",
        cwd=tmp_path,
    )
    assert found == "llada_plugins.lmeval_models lm_eval.models.dummy"
    assert "--model" in output(environment.scripts / "llada-eval", "run", "--help", cwd=tmp_path)

    environment.pip("uninstall", "--yes", "llada-plugins", cwd=tmp_path)
    assert environment.installed() == before
    assert not list(environment.site_packages.rglob("*llada*"))
    assert run(environment.python, "-c", "import llada_plugins", cwd=tmp_path).returncode == 1


@pytest.fixture
def installed_wheel(environment, wheel, tmp_path) -> Iterator[Environment]:
    """The fresh environment with our wheel in it."""
    environment.pip("install", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    yield environment
    environment.pip("uninstall", "--yes", "llada-plugins", cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_alone_evaluates_its_configs_in_both_harnesses(installed_wheel, tmp_path):
    configs_of = (installed_wheel.python, "-m", "llada_plugins.configs")
    lmeval = output(*configs_of, "lmeval", cwd=tmp_path)
    table = output(
        installed_wheel.python,
        "-m",
        "lm_eval",
        "--model",
        "llada",
        "--tasks",
        "sudoku4",
        "--include_path",
        lmeval,
        "--limit",
        "4",
        "--batch_size",
        "4",
        cwd=tmp_path,
    )
    assert "|sudoku4|" in table

    config = Path(output(*configs_of, cwd=tmp_path)) / "eval_llada.py"
    output(installed_wheel.python, "-m", "opencompass.cli.main", config, "--debug", cwd=tmp_path)
    (summary,) = (tmp_path / "outputs" / "opencompass").rglob("summary_*.csv")
    ((dataset, _, metric, _, *scores),) = csv.reader(summary.read_text().splitlines()[1:])
    assert (dataset, metric) == ("sudoku4", "accuracy")
    assert all(float(score) > 50 for score in scores)


@pytest.mark.slow
def test_the_doctor_finds_an_editable_install_whose_build_step_failed(
    environment, sources, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(sources, broken)
    (broken / PTH).unlink()  # so the build step raises, which setuptools keeps to itself
    environment.pip(
        "install",
        "--no-index",
        "--no-deps",
        *INSTALLS["editable"],
        "--editable",
        broken,
        cwd=tmp_path,
    )
    finished = run(environment.python, "-m", "llada_plugins.doctor", cwd=tmp_path)
    environment.pip("uninstall", "--yes", "llada-plugins", cwd=tmp_path)

    said = finished.stdout.splitlines()
    (failure,) = [number for number, line in enumerate(said) if line.startswith("FAIL")]
    assert finished.returncode == 1
    assert f"{PTH} is missing, so the build step of this installation did not run" in said[failure]
    remedy = f"do: pip install -v --no-deps -e {broken}; until then llada-eval"
    assert said[failure + 1].strip().startswith(remedy)


def test_the_manual_lists_every_direct_dependency_with_its_version_and_licence():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:`(\w+)`)? *\| (\S+) \| (\S+) \| ([^|]+) \| [^|]+ \|$", page, re.M)
    listed = {(extra, package) for extra, package, _, _ in rows}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    wanted = {
        (extra, re.split(r"[\[<>=]", line)[0])
        for extra, lines in groups.items()
        if extra not in ("all", "dev", "docs")
        for line in lines.split("\n")
        if line
    }
    assert {package for _, package in wanted} == {package for _, package in listed}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-").split()
    for _, package, version, licence in rows:
        pin = f"{package}=={version}".lower().replace("_", "-")
        assert pin in [each.rstrip(";") for each in pins], package
        stated = installed.metadata(package)
        said = f"{stated.get('License-Expression')} {stated.get('License')}"
        if known := re.findall(r"Apache|MIT|BSD|MPL", said[:200]):
            assert all(name in licence for name in known), (package, said[:200])

"""Build step of setup.cfg: what the wheel holds beside the modules of its packages.

- `llada_plugins_lm_eval.pth` lies at the root of site-packages. package_data can put a file there
  too, but only in wheels; an editable install would be without it.
- `configs/` and `constraints.txt` lie at the root of the repository, where commands and configs
  name them, and in the wheel in `llada_plugins/_shipped/`. An editable install reads them where
  they are (llada_plugins/configs.py finds either).
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools.command.build_py import build_py as _build_py

PTH = "llada_plugins_lm_eval.pth"
SHIPPED = ("configs", "constraints.txt")
PLACE = os.path.join("llada_plugins", "_shipped")


def shipped_files() -> list[str]:
    """The files below SHIPPED, relative to the root of the repository."""
    found = [path for name in SHIPPED for path in [Path(name), *sorted(Path(name).rglob("*"))]]
    return [str(path) for path in found if path.is_file() and "__pycache__" not in path.parts]


class build_py(_build_py):
    """setuptools' build_py that also copies these files.

    They are listed among the outputs, so that pip uninstalls them.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # install_lib is the unpacked editable wheel
            self._copy(PTH, os.path.join(self.get_finalized_command("install").install_lib, PTH))
            return
        for target, source in {os.path.join(self.build_lib, PTH): PTH, **self._shipped()}.items():
            self._copy(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:  # then they are the keys of get_output_mapping
            return outputs
        return [*outputs, os.path.join(self.build_lib, PTH), *self._shipped()]

    def get_output_mapping(self) -> dict[str, str]:
        """Outputs and their sources; a strict editable install links one to the other."""
        return {**super().get_output_mapping(), **self._shipped()}

    def _shipped(self) -> dict[str, str]:
        return {os.path.join(self.build_lib, PLACE, file): file for file in shipped_files()}

    def _copy(self, source: str, target: str) -> None:
        self.mkpath(os.path.dirname(target))
        self.copy_file(source, target, preserve_mode=False)

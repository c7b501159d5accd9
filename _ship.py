"""Build step of setup.cfg: put `llada_plugins_lm_eval.pth` at the root of site-packages, for wheels and for editable installs.

package_data can put a file there too, but only in wheels; an editable install would be without it.
"""
import os

from setuptools.command.build_py import build_py as _build_py

PTH = "llada_plugins_lm_eval.pth"


class build_py(_build_py):
    """setuptools' build_py that also copies the .pth file and lists it among the outputs, so that pip uninstalls it."""

    def run(self) -> None:
        super().run()
        # in editable mode install_lib is the unpacked editable wheel; otherwise build_lib becomes the wheel's root
        root = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        self.mkpath(root)
        self.copy_file(PTH, os.path.join(root, PTH), preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, os.path.join(self.build_lib, PTH)]

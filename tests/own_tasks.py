"""lm-eval's command that reads the tasks of --include_path alone: not its own 14,000 files.

    python tests/own_tasks.py --model llada --tasks sudoku4 --include_path configs/lmeval

For tests that start it to see answers, not to see how it starts: 8 CPU-seconds less for
each process. Those of the stock start run `python -m lm_eval`.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys

if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m` has it, not the tests' folder
    from lm_eval.tasks import TaskManager

    TaskManager.__init__ = functools.partialmethod(  # type: ignore[assignment, method-assign]
        TaskManager.__init__, include_defaults=False
    )
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)

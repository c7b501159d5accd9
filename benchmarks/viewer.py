"""How long the viewer's page takes to open, to scroll and to go through steps, in Chromium.

    python -m benchmarks.viewer
        1,000 answers of 128 tokens in 128 steps; a minute. Needs playwright and Chromium

Random answers are written as record=trajectory writes them and made into a page. In headless
Chromium, without a GPU, it is opened, its list is scrolled from top to bottom and its slider
moved through all steps, one change a frame. Beside wall time the CPU time of the page's main
thread is told (the DevTools protocol's TaskDuration in thread ticks): what a machine that others
use too adds to the first is not in it. A frame is smooth if that is less than the 16.7 ms that a
screen of 60 Hz has.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.engine.recording import FORMAT, VERSION, packed
from llada_plugins.files import gzip_lines
from llada_plugins.options.fields import arg
from llada_plugins.reports.recorded import read_runs
from llada_plugins.reports.render import markdown
from llada_plugins.reports.viewer import viewer
from llada_plugins.sampling.trace import KEPT, MASKED, Event, Pass

from .command import check_folder, run_benchmark

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BLOCK = 32  # tokens
WORDS = 500  # that answers are made of
FRAMES = 200  # in which the list is scrolled


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is opened."""

    num: int = arg(1000, "answers")
    gen_length: int = arg(128, f"tokens of an answer, a multiple of {BLOCK}; as many steps")
    threads: int = arg(1, "CPU threads of Python; Chromium has its own")
    seed: int = arg(0, "of the answers")
    json: str | None = arg(None, "file for the results as JSON")

    def __post_init__(self) -> None:
        if self.num < 1 or self.threads < 1:
            raise ValueError(f"num and threads must be at least 1: {self.num}, {self.threads}")
        if self.gen_length < 1 or self.gen_length % BLOCK:
            raise ValueError(f"gen_length ({self.gen_length}) must be a multiple of {BLOCK}")
        check_folder("json", self.json)


def write_answers(path: Path, num: int, gen_length: int, seed: int) -> None:
    """A file of record=trajectory with so many random answers, one token a step."""
    generator = np.random.default_rng(seed)
    pieces = {str(token): f"word{token} " for token in range(WORDS)}
    for number in range(num):
        events: list[Event] = [random_pass(generator, k) for k in range(gen_length // BLOCK)]
        answer = np.concatenate([each.proposed[-1] for each in events if isinstance(each, Pass)])
        line = {
            "format": FORMAT,
            "version": VERSION,
            "run": "random",
            "method": "llada",
            "method_options": {},
            "checkpoint": "random",
            "sampler": {"gen_length": gen_length, "block_length": BLOCK},
            "source": "low_confidence",
            "block_length": BLOCK,
            "task": "random",
            "doc_id": number,
            "repeat": 0,
            "prompt": f"Question {number}: " + "how many words are there? " * 8,
            "prompt_tokens": 60,
            "text": "".join(pieces[str(token)] for token in answer),
            "answer": answer.tolist(),
            "num_tokens": gen_length,
            "num_forwards": gen_length,
            "num_prm_calls": 0,
            "seconds": 1.0,
            "cut": False,
            "pieces": pieces,
            "events": [packed(events, place) for place in range(len(events))],
        }
        gzip_lines.append(path, json.dumps(line))


def random_pass(generator: np.random.Generator, block: int) -> Pass:
    """Steps that each unmask one position of a block."""
    order = generator.permutation(BLOCK)
    steps = np.arange(BLOCK)[:, None]
    masked, kept = order[None] >= steps, order[None] == steps  # (S, W)
    flags = (masked * MASKED + kept * KEPT).astype(np.uint8)
    score = np.where(masked, generator.random((BLOCK, BLOCK)), np.inf).astype(np.float16)
    tokens = np.broadcast_to(generator.integers(0, WORDS, BLOCK), (BLOCK, BLOCK)).astype(np.int32)
    return Pass(block, block * BLOCK, tokens, score, None, flags, np.zeros(BLOCK, np.float32))


def chromium() -> str:
    """Where Chromium is: $CHROMIUM, else on the path; FileNotFoundError where it is not."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError(
            f"none of {', '.join(NAMES)} is installed: apt-get install chromium"
        )
    return found


# one change a frame; what a frame takes from one to the next, in milliseconds
CHANGED = """([frames, change]) => new Promise((done) => {
  const act = new Function("share", change), times = [];
  const next = (now) => {
    times.push(now);
    if (times.length > frames) done(times.slice(1).map((time, k) => time - times[k]));
    else { act(times.length / frames); requestAnimationFrame(next); }
  };
  requestAnimationFrame(next);
})"""
SCROLLED = "const l = document.getElementById('list'); l.scrollTop = share * l.scrollHeight;"
STEPPED = """const s = document.getElementById('slider');
  s.value = String(Math.round(share * s.max)); s.dispatchEvent(new Event('input'));"""


class Tab:
    """A page and what the DevTools protocol says of it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.devtools = page.context.new_cdp_session(page)
        self.devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def metrics(self) -> dict[str, float]:
        """CPU seconds of the main thread, elements and bytes."""
        found = self.devtools.send("Performance.getMetrics")["metrics"]
        return {each["name"]: each["value"] for each in found}

    def open(self, path: Path) -> dict[str, float]:
        """Until the first answer is shown."""
        began = time.perf_counter()
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".panel .token")
        seconds, after = time.perf_counter() - began, self.metrics()
        return {
            "wall_seconds": seconds,
            "seconds": after["TaskDuration"],
            "script_seconds": after["ScriptDuration"],
            "layout_seconds": after["LayoutDuration"] + after["RecalcStyleDuration"],
            "elements": after["Nodes"],
            "heap_bytes": after["JSHeapUsedSize"],
        }

    def changed(self, change: str, frames: int) -> dict[str, float]:
        """One change in each of so many frames."""
        before = self.metrics()["TaskDuration"]
        times = self.page.evaluate(CHANGED, [frames, change])
        seconds = self.metrics()["TaskDuration"] - before
        return {
            "milliseconds_a_frame": 1000 * seconds / frames,
            "wall_median": statistics.median(times),
            "wall_most": max(times),
            "elements": self.page.evaluate("document.getElementsByTagName('*').length"),
        }


def run(options: Options) -> dict[str, Any]:
    """Write, open, scroll, step; the result can be written as JSON."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ImportError("this benchmark needs playwright: pip install playwright") from error
    program = chromium()
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        write_answers(Path(folder) / SUFFIX, options.num, options.gen_length, options.seed)
        path = Path(folder) / "view.html"
        began = time.perf_counter()
        path.write_text(viewer(read_runs([Path(folder)])), encoding="utf-8")
        made = time.perf_counter() - began
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        tab = Tab(page)
        result = {
            "seconds_to_make": made,
            "bytes": path.stat().st_size,
            "open": tab.open(path),
            "scroll": tab.changed(SCROLLED, FRAMES),
            "steps": tab.changed(STEPPED, options.gen_length),
            "browser": browser.version,
            "options": asdict(options),
        }
        browser.close()
    return result


def table(result: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    opened = result["open"]
    told = (
        f"{result['options']['num']} answers of {result['options']['gen_length']} steps: "
        f"{result['bytes'] / 1e6:.1f} MB, made in {result['seconds_to_make']:.1f} s; "
        f"Chromium {result['browser']}"
    )
    first = markdown(
        ["open", "s", "main thread", "script", "layout and style", "heap, MB"],
        [
            [
                "until the first answer is shown",
                f"{opened['wall_seconds']:.2f}",
                f"{opened['seconds']:.2f}",
                f"{opened['script_seconds']:.2f}",
                f"{opened['layout_seconds']:.2f}",
                f"{opened['heap_bytes'] / 1e6:.0f}",
            ]
        ],
    )
    rows = [
        [
            name,
            f"{found['milliseconds_a_frame']:.1f}",
            f"{found['wall_median']:.1f}",
            f"{found['wall_most']:.1f}",
            found["elements"],
        ]
        for name, found in (("scroll", result["scroll"]), ("steps", result["steps"]))
    ]
    header = ["a frame, ms", "main thread, mean", "wall, median", "wall, most", "elements"]
    return "\n\n".join([told, first, markdown(header, rows)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "viewer", run, table, lambda result: True, argv)


if __name__ == "__main__":
    sys.exit(main())

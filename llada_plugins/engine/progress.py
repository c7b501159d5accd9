"""The progress line of the harness classes: requests done, answer tokens a second, time left."""

from __future__ import annotations

import time


class Progress:
    """A tqdm bar that counts requests; make one with `progress`."""

    def __init__(self, total: int | None, description: str, disable: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total,
            desc=description,
            unit=" requests",
            disable=disable,
            mininterval=1.0,
            dynamic_ncols=True,
        )
        self._began = time.perf_counter()
        self._num_tokens = 0

    def add(self, num_tokens: int = 0) -> None:
        """One more request is done; num_tokens: of its answer, 0 where it was scored."""
        self._num_tokens += num_tokens
        if self._num_tokens:
            rate = self._num_tokens / max(time.perf_counter() - self._began, 1e-9)
            self._bar.set_postfix_str(f"{rate:.1f} tokens/s", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()


def progress(total: int | None, description: str, disable: bool = False) -> Progress:
    """A progress line on stderr for `total` requests.

    None where the harness does not say how many will come: then no time left is told.
    """
    return Progress(total, description, disable)

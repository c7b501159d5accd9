"""Data sets of the Hugging Face hub, and folders of files, through `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset


class Hub(NamedTuple):
    """A data set of the Hugging Face hub, or a folder that `datasets` loads."""

    name: str
    config: str | None = None
    joined: bool = False  # rows are the lines of one text instead of documents

    @property
    def title(self) -> str:
        return self.name if self.config is None else f"{self.name}/{self.config}"


def looks_like_a_path(text: str) -> bool:
    """Whether it names a file or folder, be it there or not, rather than a data set of the hub."""
    path = Path(text).expanduser()
    return (
        path.exists()
        or text.startswith((".", "/", "~"))
        or path.suffix in (".txt", ".jsonl", ".json")
        or text.count("/") > 1
    )


def load(hub: Hub, split: str | None, option: str) -> tuple[str, Dataset]:
    """A split's name and its rows.

    split: None is validation, or test where there is no other. option: where the name
    comes from.

    Raises FileNotFoundError, or ValueError that says which splits there are.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{option} by hub name needs datasets: pip install 'llada-plugins[train]'"
        ) from error
    try:
        splits = datasets.load_dataset(hub.name, hub.config)
    except Exception as error:
        # offline, unknown name, a config to choose, gated: many types, one remedy
        reason = error.__cause__ or error
        told = f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"
        if Path(hub.name).is_dir():
            raise ValueError(
                f"{option} {hub.name}: `datasets` cannot read this folder ({told})"
            ) from error
        raise FileNotFoundError(
            f"{option} {hub.title}: no such file or folder, and the hub did not deliver it "
            f"({told}); give a file or folder, or a name where there is a network"
        ) from error
    name = split or next((each for each in ("validation", "test") if each in splits), "validation")
    if name not in splits:
        raise ValueError(
            f"{option} {hub.title} has no split {name}, but {', '.join(splits)}: choose with "
            "--train_split and --eval_split"
        )
    return name, splits[name]

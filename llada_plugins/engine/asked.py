"""What an engine is asked for: explicit options, those of a preset, and which of them counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.methods.table import METHODS
from llada_plugins.models.folder import resolve
from llada_plugins.options.fields import build, coerce, names, reject_unknown, with_origins
from llada_plugins.sampling import published
from llada_plugins.sampling.config import SamplerConfig, build_sampler
from llada_plugins.settings.table import Preset, find

from .config import HARNESS_DEFAULTS, EngineConfig

# options that stand in each other's place
SAME = {"remasking": "confidence_source", "confidence_source": "remasking"}


def option_classes(method: str) -> tuple[type, ...]:
    """The dataclasses whose fields are the options of an Engine of this method."""
    return EngineConfig, SamplerConfig, METHODS[method].options


class Folders(NamedTuple):
    """Where the files of an engine are."""

    checkpoint: Path
    adapter: Path | None
    tokenizer: Path
    add_ons: Mapping[str, Path]  # by the method's options that name them


@dataclass(frozen=True)
class Asked:
    """The options of an engine, from explicit ones and a preset's, which give way to them."""

    method: str
    explicit: Mapping[str, Any]
    preset: Preset | None = field(init=False)
    config: EngineConfig = field(init=False)
    method_options: Any = field(init=False)

    def __post_init__(self) -> None:
        """Raises ValueError on unknown names and bad values, before any file is looked at."""
        if self.explicit.get("pretrained") is None:  # harnesses pass on what nobody gave
            others = {key: each for key, each in self.explicit.items() if key != "pretrained"}
            self._set("explicit", others)
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        reject_unknown(self.explicit, [*names(*option_classes(self.method)), *published.NAMES])
        name = self.explicit.get("preset")
        self._set("preset", find(str(name)) if name is not None else None)
        self._set("config", build(EngineConfig, {**self._defaults(EngineConfig), **self.explicit}))
        self._set("method_options", build(METHODS[self.method].options, self.explicit))
        if not self.explicit.keys() & set(published.NAMES):
            # those that a family means otherwise are looked at when it is known
            own = coerce(SamplerConfig, self.explicit)
            told = {name: each for name, each in own.items() if name not in published.SHADOWED}
            self.built({**self._defaults(SamplerConfig), **told})

    def folders(self) -> Folders:
        """The folders that options name; what is a hub id is asked for at the hub.

        Raises FileNotFoundError where one is not there.
        """
        config = self.config
        checkpoint = resolve(config.pretrained, config.revision)
        adapter = resolve(config.peft, option="peft") if config.peft else None
        tokenizer = resolve(config.tokenizer) if config.tokenizer else checkpoint
        return Folders(checkpoint, adapter, tokenizer, dict(self._add_ons(checkpoint)))

    def _add_ons(self, checkpoint: Path) -> Iterator[tuple[str, Path]]:
        """What the method loads beside the checkpoint: named by an option, or in its folder."""
        for name, find_folder in METHODS[self.method].folders.items():
            value, beside = getattr(self.method_options, name), checkpoint / name
            if value is not None:
                yield name, find_folder(value)
            elif beside.is_dir():
                yield name, beside

    def located(self, folders: Folders) -> Any:
        """The method's options, with what was found in the place of names that are given."""
        found = {
            name: str(place)
            for name, place in folders.add_ons.items()
            if getattr(self.method_options, name) is not None
        }
        return replace(self.method_options, **found)

    def sampler(self, family: str) -> dict[str, Any]:
        """The sampler's options, under our names.

        family: whose published names are known, of the checkpoint's row in FAMILIES. Raises
        ValueError on one that it has not.
        """
        own = coerce(SamplerConfig, published.native(self.explicit, family))
        return {**self._defaults(SamplerConfig, own), **own}

    def preset_part(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the options in effect that count because the preset has them."""
        if self.preset is None:
            return {}
        defaults = self.preset.defaults
        return {
            name: value
            for name, value in options.items()
            if name in defaults and name not in self.explicit and value == defaults[name]
        }

    def built(self, options: Mapping[str, Any]) -> SamplerConfig:
        """The sampler of options that may leave the answer's length to a task.

        ValueError where no length would do; it says what of its reason is the preset's.
        """
        try:
            return build_sampler(options, HARNESS_DEFAULTS)
        except ValueError as error:
            origin = f"preset {self.config.preset}"
            raise with_origins(error, {origin: self.preset_part(options)}) from None

    def _defaults(self, kind: type, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The preset's options of this class, without those in whose place others stand."""
        if self.preset is None:
            return {}
        own = self.explicit if own is None else own
        replaced = {*own, *(SAME[name] for name in own if name in SAME)}
        known = {each.name for each in fields(kind)} - replaced
        return {name: value for name, value in self.preset.defaults.items() if name in known}

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the class is frozen

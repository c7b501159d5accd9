"""Checkouts of other decoders of LLaDA, run beside ours on the same weights and prompt.

Those are LLaDA's own, Fast-dLLM and dllm.

A checkout is recognised by its files and imported as it is. Loops without a cache get
our model in the interface that they call; caches need the checkout's own modelling
code, whose parameters become our tensors, by name. Nothing of a checkout is kept here.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

from llada_plugins import SamplerConfig, generate
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA

from .clock import Clock, Seconds, timed

NUM_BLOCKS = 2  # of a measured answer: one with masks after it, one without
STEPS_WITHOUT_CACHE = 2  # of each block; every step of a loop without a cache costs the same

# what code for other versions of its packages raises
BROKEN = (ImportError, AttributeError, TypeError, RuntimeError)

Decode = Callable[[Tensor, SamplerConfig], Tensor]  # prompt (1, P) -> prompt and answer (1, L)


class Peer(NamedTuple):
    """A checkout: its name and its loops, by the cache that they use ("none", "prefix", "dual")."""

    name: str
    loops: dict[str, Decode]


class OurModel:
    """Our model as the loops without a cache call one."""

    def __init__(self, model: LLaDA) -> None:
        self.model, self.device = model, model.device

    def __call__(self, tokens: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        # attention_mask is of ones here: one row, no padding
        return SimpleNamespace(logits=self.model(tokens))


@contextmanager
def importing(folder: Path, bare: Sequence[str] = ()) -> Iterator[None]:
    """Imports look into `folder` first.

    What came from there is forgotten afterwards, so that two checkouts do not mix.

    bare: packages whose __init__ is not run, for those that import trainers or data sets.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    for name in bare:
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            module = sys.modules[name]
            if name in bare or str(getattr(module, "__file__", None) or "").startswith(
                f"{folder}/"
            ):
                del sys.modules[name]


def with_our_weights(model_class: type, config_class: type, model: LLaDA) -> Any:
    """A checkout's own model whose parameters are our tensors."""
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in ("model_type", "architectures")
    }
    theirs_config = config_class(**config, init_device="meta")
    # transformers 5 drops it from the arguments, and their forward reads it
    theirs_config.use_cache = False
    theirs = model_class(theirs_config)
    # strict: every name must be known on both sides
    theirs.load_state_dict(model.state_dict(), assign=True)
    return theirs.eval()


def lengths(config: SamplerConfig, mask_id: int) -> dict[str, Any]:
    """The options as LLaDA's and Fast-dLLM's functions name them."""
    return dict(
        steps=config.steps,
        gen_length=config.gen_length,
        block_length=config.block,
        temperature=config.temperature,
        mask_id=mask_id,
    )


def llada(folder: Path, model: LLaDA) -> Peer:
    """generate.py of LLaDA."""
    with importing(folder):
        module = importlib.import_module("generate")
    ours, mask_id = OurModel(model), known_special_tokens(model).mask
    return Peer(
        "LLaDA",
        {"none": lambda prompt, config: module.generate(ours, prompt, **lengths(config, mask_id))},
    )


def fast_dllm(folder: Path, model: LLaDA) -> Peer:
    """llada/generate.py of Fast-dLLM, on its own modelling code."""
    with importing(folder / "llada"):
        module = importlib.import_module("generate")
        modelling = importlib.import_module("model.modeling_llada")
        theirs = with_our_weights(
            modelling.LLaDAModelLM,
            importlib.import_module("model.configuration_llada").LLaDAConfig,
            model,
        )
    functions = {
        "none": module.generate,
        "prefix": module.generate_with_prefix_cache,
        "dual": module.generate_with_dual_cache,
    }

    def loop(decode: Callable[..., Any]) -> Decode:
        return lambda prompt, config: decode(
            theirs, prompt, **lengths(config, known_special_tokens(model).mask)
        )[0]

    return Peer("Fast-dLLM", {cache: loop(decode) for cache, decode in functions.items()})


def dllm(folder: Path, model: LLaDA) -> Peer:
    """The samplers of dllm; with a cache, its port of Fast-dLLM on its own modelling code."""
    fast = "dllm.pipelines.fastdllm.llada"
    with importing(
        folder, bare=("dllm", "dllm.core", "dllm.pipelines", "dllm.pipelines.fastdllm", fast)
    ):
        plain = importlib.import_module("dllm.core.samplers.mdlm").MDLMSampler
        cached = importlib.import_module(f"{fast}.sampler").FastdLLMLLaDASampler
        modelling = importlib.import_module(f"{fast}.models.modeling_llada").FastdLLMLLaDAModelLM
        configuration = importlib.import_module(
            f"{fast}.models.configuration_llada"
        ).FastdLLMLLaDAConfig
        theirs = with_our_weights(modelling, configuration, model)
    tokenizer = SimpleNamespace(
        mask_token_id=known_special_tokens(model).mask, bos_token_id=0, eos_token_id=0
    )

    def loop(sampler: Any, **options: Any) -> Decode:
        return lambda prompt, config: sampler.sample(
            list(prompt),
            max_new_tokens=config.gen_length,
            block_size=config.block,
            steps=config.steps,
            temperature=config.temperature,
            **options,
        )

    return Peer(
        "dllm",
        {
            "none": loop(plain(OurModel(model), tokenizer)),
            **{
                cache: loop(cached(theirs, tokenizer), use_cache=cache)
                for cache in ("prefix", "dual")
            },
        },
    )


# a file that tells the checkout, and how it is loaded; the first that fits
CHECKOUTS: dict[str, Callable[[Path, LLaDA], Peer]] = {
    "llada/generate.py": fast_dllm,
    "dllm/core/samplers/mdlm.py": dllm,
    "generate.py": llada,
}


def kind(folder: Path) -> Callable[[Path, LLaDA], Peer]:
    """How this checkout is loaded; raises ValueError where it is none."""
    for file, load in CHECKOUTS.items():
        if (folder / file).is_file():
            return load
    raise ValueError(
        f"peer={str(folder)!r} is no checkout of LLaDA, Fast-dLLM or dllm: give a folder that has "
        f"{', '.join(CHECKOUTS)}"
    )


def load_peer(folder: Path, model: LLaDA) -> Peer:
    """The checkout in `folder`.

    Raises ValueError with the reason where its code does not run in this environment.
    """
    try:
        return kind(folder)(folder.absolute(), model)
    except BROKEN as error:
        raise ValueError(f"peer={str(folder)!r} cannot be loaded: {_told(error)}") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def settings(cache: str, block_length: int, temperature: float) -> dict[str, SamplerConfig]:
    """What is measured of a loop, by the name of our form.

    Greedy, and sampled where there is no cache.
    """
    common: dict[str, Any] = dict(gen_length=NUM_BLOCKS * block_length, block_length=block_length)
    if cache != "none":
        options = dict(common, steps=NUM_BLOCKS * block_length, cache=cache)
        return {f"{cache}_greedy": SamplerConfig(**options)}
    steps = NUM_BLOCKS * min(STEPS_WITHOUT_CACHE, block_length)
    return {
        "exact_greedy": SamplerConfig(**common, steps=steps),
        "exact": SamplerConfig(**common, steps=steps, temperature=temperature),
    }


def beside(
    decode: Decode, model: LLaDA, prompt: Tensor, config: SamplerConfig
) -> tuple[dict[str, Seconds], dict[str, list[int]]]:
    """One answer of theirs and then of ours: what each took, and its tokens."""
    answers: dict[str, list[int]] = {}

    def theirs() -> None:
        answers["theirs"] = decode(prompt, config)[0, prompt.shape[1] :].tolist()

    def ours() -> None:
        answers["ours"] = generate(model, prompt.tolist(), config)[0].answer

    seconds = {"theirs": timed(theirs, model.device), "ours": timed(ours, model.device)}
    return seconds, answers


def agreement(peer: Peer, model: LLaDA, prompt: Tensor, block_length: int) -> dict[str, bool]:
    """Does each loop decode our greedy tokens? Nothing of a loop that fails."""
    found = {}
    for cache, decode in peer.loops.items():
        for form, config in settings(cache, block_length, temperature=1.0).items():
            if config.temperature == 0:
                with suppress(*BROKEN):
                    _, answers = beside(decode, model, prompt, config)
                    found[f"{peer.name} {form}"] = answers["theirs"] == answers["ours"]
    return found


class Case(NamedTuple):
    """A loop of a peer under a setting, beside ours."""

    name: str  # PEER FORM
    decode: Decode
    config: SamplerConfig


class Compared:
    """What is known of a case: seconds of both sides, or why theirs failed."""

    def __init__(self, greedy: bool) -> None:
        self.seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
        # of two that sample, nothing follows
        self.same_tokens: bool | None = True if greedy else None
        self.error: str | None = None

    def add(self, seconds: dict[str, Seconds], answers: dict[str, list[int]], clock: Clock) -> None:
        """A further answer of each side."""
        for side, taken in seconds.items():
            self.seconds[side].append(getattr(taken, clock))
        if self.same_tokens is not None:
            self.same_tokens &= answers["theirs"] == answers["ours"]

    def result(self) -> dict[str, Any]:
        """For JSON: the error alone, or the seconds, their ratio and `same_tokens`."""
        if self.error is not None:
            return {"error": self.error}
        theirs, ours = map(statistics.median, self.seconds.values())
        return {**self.seconds, "same_tokens": self.same_tokens, "ratio": theirs / ours}


def compare(
    peers: Sequence[Peer],
    model: LLaDA,
    prompt: Tensor,
    block_length: int,
    temperature: float,
    repetitions: int,
    clock: Clock,
) -> dict[str, dict[str, Any]]:
    """Every loop beside ours, `Compared.result` by the name of the case."""
    cases = [
        Case(f"{peer.name} {form}", decode, config)
        for peer in peers
        for cache, decode in peer.loops.items()
        for form, config in settings(cache, block_length, temperature).items()
    ]
    found = {case.name: Compared(case.config.temperature == 0) for case in cases}
    for repetition in range(repetitions):
        for case in cases:
            if found[case.name].error is None:
                _run(case, model, prompt, clock, found[case.name], warm_up=repetition == 0)
    return {name: each.result() for name, each in found.items()}


def _run(
    case: Case, model: LLaDA, prompt: Tensor, clock: Clock, found: Compared, *, warm_up: bool
) -> None:
    """One answer of each side, into `found`; a loop that fails is not tried again."""
    try:
        if warm_up:  # the first call is slower: a few steps, not measured
            case.decode(prompt, replace(case.config, steps=2 * NUM_BLOCKS))
        seconds, answers = beside(case.decode, model, prompt, case.config)
    except BROKEN as error:
        found.error = _told(error)
        return
    found.add(seconds, answers, clock)


def table(found: dict[str, dict[str, Any]]) -> str:
    """The comparison as text."""
    words = {True: "yes", False: "NO", None: "both sample"}
    lines = [
        f"{'peer and form, an answer of two blocks':<40}{'theirs s':>10}{'ours s':>10}"
        f"{'x faster':>10}  same tokens"
    ]
    for name, each in found.items():
        if "error" in each:
            lines.append(f"{name:<40}failed: {each['error']}")
            continue
        theirs, ours = (statistics.median(each[side]) for side in ("theirs", "ours"))
        told = words[each["same_tokens"]]
        if each["same_tokens"] is False and each.get("same_in_float32"):
            told = "in float32: theirs ranks in less"
        lines.append(f"{name:<40}{theirs:>10.2f}{ours:>10.2f}{each['ratio']:>10.2f}  {told}")
    return "\n".join(lines)

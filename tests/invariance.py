"""What an answer must not depend on: one table of cells, one of variations, one comparison.

A cell is a network (a family and its attention), a method, a cache and a rule of decoding; or
a network, a method and a way to score. Rows come from the package's own tables and dataclasses,
so that a new family, method, cache or option is a row here without being written down.
test_invariance.py holds every cell to every variation, test_invariance_harness.py does so in
both harnesses, and benchmarks/invariance.py counts what is left of it in bfloat16.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch

from llada_plugins.engine.config import HARNESS_DEFAULTS
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Completion, Request
from llada_plugins.likelihood.budget import IN_ROUNDS
from llada_plugins.likelihood.estimate import LogLikelihood
from llada_plugins.likelihood.estimators import ESTIMATORS, PUBLISHED
from llada_plugins.methods.policy_head import PolicyHead, save_policy
from llada_plugins.methods.router import Router, RouterConfig, save_router
from llada_plugins.methods.table import METHODS
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import TINY
from llada_plugins.models.loading import load_model
from llada_plugins.rewards.review_config import DEFAULTS as REVIEWS
from llada_plugins.sampling.cache_rules import CACHE_OPTIONS
from llada_plugins.sampling.confidence import CONFIDENCE
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.options import SamplerOptions
from tests.family_checkpoints import with_tokenizer

Options = dict[str, Any]
Rows = dict[str, Options]  # name -> options

# ---- what is decoded: two blocks, the last of which is cut

BASE: Options = dict(gen_length=6, block_length=4)
# one comes twice, in the shares of two processes; others end within a block that holds the
# prompt's end, or at its border
PROMPTS = ("a", "word", "two words", "x" * 8, "word", "of some length", "z" * 21, "the last one")
STOPS = ("e",)
PAIRS = (("a", "b c"), ("a", "bcd"), ("word", " or"), ("z" * 21, "y"), ("", "word"), ("e", "fgh"))

# ---- networks


def _networks() -> Rows:
    found = {}
    for family, row in FAMILIES.items():
        for attention in row.attentions:
            name = family if len(row.attentions) == 1 else f"{family}/{attention}"
            found[name] = dict(family=family, attention=attention)
    return found


NETWORKS = _networks()

# ---- methods


# a method -> its own options, in as many ways as it has; others have one way
WAYS: dict[str, list[Options]] = {
    "llada_prm": [
        dict(num_candidates_per_block=2, num_demasking_candidates=2, num_refinement_samples=2)
        | (dict(backmasking_rule="legacy") if style == "legacy" else dict(method=style))
        for style in REVIEWS
    ]
}


def _methods() -> Rows:
    found: Rows = {}
    for method in METHODS:
        ways = WAYS.get(method, [{}])
        for way in ways:
            style = way.get("method") or way.get("backmasking_rule")
            name = f"{method}/{style}" if len(ways) > 1 else method
            found[name] = dict(method_name=method, **way)
    return found


WITH_METHODS = _methods()


def policy_head(checkpoint: Path, out: Path) -> Options:
    """The head beside a checkpoint, or a random one; none beside a stream of its own."""
    if (checkpoint / "ups").is_dir():
        return {}
    model = load_model(checkpoint, device="cpu", dtype="float32")
    if model.own_stream:
        return {}
    torch.manual_seed(0)
    save_policy(PolicyHead(model.config.d_model, 8), out, backbone_fingerprint(model))
    return dict(ups=str(out))


def router(checkpoint: Path, out: Path) -> Options:
    """The router beside a checkpoint, or a random one."""
    if (checkpoint / "router").is_dir():
        return {}
    model = load_model(checkpoint, device="cpu", dtype="float32")
    torch.manual_seed(0)
    made = Router(RouterConfig(d_model=model.config.d_model, heads=2))
    save_router(made, out, backbone_fingerprint(model))
    return dict(router=str(out))


# what a method needs beside the checkpoint: (checkpoint, a path that does not exist) -> options
ADD_ONS: dict[str, Callable[[Path, Path], Options]] = {
    "llada": lambda checkpoint, out: {},
    "llada_ups": policy_head,
    "llada_ala": router,
    "llada_prm": lambda checkpoint, out: dict(prm=str(TINY / "prm")),
}

# ---- rules and caches: each option of the sampler, at each value it can have

# where 0.5 or 2 would change nothing on these networks, and of other kinds
VALUES: dict[str, Any] = dict(
    threshold=0.05,
    factor=1.9,
    error_budget=1.8,
    revise_below=0.02,
    edit_threshold=0.02,
    temperature=1.0,
    top_k=5,
    max_forwards=6,
    schedule_eps=0.1,
    steps=4,
    minimal_topk=3,
    branches="0.01:0.3+0.03:0.2",  # below the threshold
    draft_rows=4,
    draft_threshold=0.03,  # below it too
    draft_odds=0.5,
)
# an option that is refused alone is tried with these, then with the rows before it
COMPANIONS: tuple[Options, ...] = (
    {},
    dict(threshold=0.05),
    dict(temperature=1.0),
    dict(block_steps=2),
    dict(block_length=6),
)
OF_CACHES = ("cache", *CACHE_OPTIONS, "shift_cache")
NOT_VARIED = {
    "gen_length": "in BASE",
    "block_length": "in BASE, and sampling_method=fixed_length",
    "remasking": "another name of confidence_source",
    "seed": "decides nothing but the draws",
}
# published samplers under their own names, many options at once, by Family.sampler
PUBLISHED_SAMPLERS: Rows = {
    "dream": dict(alg="entropy", diffusion_steps=4),
    "sdar": dict(denoising_steps=2, confidence_threshold=0.05, temperature=1.0, top_k=5),
    "llada2": dict(editing_threshold=0.02, threshold=0.05),
    "fast_dllm_v2": dict(small_block_size=2, threshold=0.05, use_block_cache=True),
}


def values_of(name: str) -> list[Any]:
    """The values of an option of the sampler that are tried."""
    default = getattr(HARNESS_DEFAULTS, name)
    if name == "confidence_source":
        return list(CONFIDENCE)
    if name in VALUES:
        return [VALUES[name]]
    hint = get_type_hints(SamplerOptions)[name]
    kinds = get_args(hint) if get_origin(hint) is not Literal else (hint,)
    for kind in kinds or (hint,):
        if get_origin(kind) is Literal:
            return [value for value in get_args(kind) if value != default]
        if kind in (bool, int, float):
            return [{bool: not default, int: 2, float: 0.5}[kind]]
    return []  # of a kind that VALUES must say a value of, as the test of rows will tell


def with_companion(option: Options, others: Iterable[Options]) -> Options | None:
    """The option with what it needs of COMPANIONS or others; None where it goes with none."""
    for companion in (*COMPANIONS, *others):
        try:
            SamplerConfig(**{**BASE, **companion, **option}).check_budget(reviewed=False)
        except ValueError:
            continue
        return {**companion, **option}
    return None


def _rules() -> tuple[Rows, list[str]]:
    """The rows, and options that go with none of them."""
    found: Rows = {"plain": {}}
    left = {
        f"{field.name}={value}": {field.name: value}
        for field in fields(SamplerOptions)
        if field.name not in OF_CACHES and field.name not in NOT_VARIED
        for value in values_of(field.name)
    }
    before = None
    while left and before != len(left):  # one may need another that comes after it
        before = len(left)
        for name in list(left):
            row = with_companion(left[name], found.values())
            if row is not None:
                found[name] = row
                del left[name]
    return {**found, **PUBLISHED_SAMPLERS}, list(left)


def _caches() -> Rows:
    """The rows; some need a rule, and what goes with none is not one."""
    found: Rows = {"auto": {}}
    rules = [row for name, row in RULES.items() if name not in PUBLISHED_SAMPLERS]
    for mode in values_of("cache"):
        found[mode] = dict(cache=mode)
        if SamplerConfig(**BASE, cache=mode).approximates:
            for name in OF_CACHES[1:]:
                [value] = values_of(name)
                row = {"cache": mode, name: value}
                if with_companion(row, rules) is not None:
                    found[f"{mode}, {name}={value}"] = row
    return found


RULES, ALONE = _rules()
CACHES = _caches()

# ---- ways to score

SCORING: Rows = {
    **{name: dict(estimator=name, mc_num=16 if name == "exact" else 8) for name in ESTIMATORS},
    **{f"{name}, auto": dict(estimator=name, mc_num="auto:2", mc_max=32) for name in IN_ROUNDS},
    **{f"{name}, mc_batch": dict(estimator=name, mc_num=8, mc_batch=4) for name in PUBLISHED},
    "guided": dict(mc_num=8, cfg_scale=0.7),
    "greedy_check": dict(mc_num=8, greedy_check=True),
    "fill_block": dict(mc_num=8, fill_block=True),
}

# ---- cells


class Cell(NamedTuple):
    """A row of each table."""

    network: str
    method: str
    cache: str
    rule: str

    @property
    def options(self) -> Options:
        """Of the sampler."""
        return {**BASE, **CACHES[self.cache], **RULES[self.rule]}


def _kinds() -> list[str]:
    """A network of either attention, with shifted logits and without."""
    found = {}
    for name, network in NETWORKS.items():
        found[network["attention"], FAMILIES[network["family"]].shift] = name
    return list(found.values())


TRIES = 200  # cells of a row that are refused before it counts as one without
# these meet every rule; others every method, every cache, and rules by chance
KINDS = _kinds()


def cells_of(network: str, accepts: Callable[[Cell], bool]) -> tuple[list[Cell], list[str]]:
    """Cells of a network in which each row that it must meet is; and the rows that none has.

    What a row meets there is drawn, the same in every run. accepts: may a cell be?
    """
    own = FAMILIES[NETWORKS[network]["family"]].sampler
    rules = list(RULES) if network in KINDS else [rule for rule in RULES if rule == own]
    choose, cells, without = random.Random(network), [], []
    met: set[str] = set()
    for table, names in (("rule", rules), ("cache", CACHES), ("method", WITH_METHODS)):
        for name in names:
            if name in met:
                continue
            cell = _drawn(network, table, name, accepts, choose)
            if cell is None:
                without.append(name)
            else:
                cells.append(cell)
                met.update(cell[1:])
    return cells, without


def _drawn(
    network: str,
    table: str,
    name: str,
    accepts: Callable[[Cell], bool],
    choose: random.Random,
) -> Cell | None:
    """A cell with that row of that table; None where there is none."""
    rows = {"method": list(WITH_METHODS), "cache": list(CACHES), "rule": list(RULES), table: [name]}
    every = [Cell(network, *names) for names in product(*rows.values())]
    return next(filter(accepts, choose.sample(every, min(TRIES, len(every)))), None)


class Engines:
    """Engines of all networks and methods, made when they are asked for."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.options = folder, options
        self._made: dict[tuple[str, str], Engine] = {}
        self._added: dict[tuple[str, str], Options] = {}

    def checkpoint(self, family: str) -> Path:
        """Of a family, with the byte tokenizer; for reading only."""
        folder = self.folder / family
        return folder if folder.exists() else with_tokenizer(family, folder)

    def arguments(self, network: str, method: str) -> tuple[str, Options]:
        """The method's name and an Engine's options; no sampler's among them."""
        of_network, of_method = NETWORKS[network], dict(WITH_METHODS[method])
        checkpoint = self.checkpoint(of_network["family"])
        name = of_method.pop("method_name")
        family = of_network["family"]
        if (family, name) not in self._added:
            made = ADD_ONS[name](checkpoint, self.folder / f"{family} {name}")
            self._added[family, name] = made
        return name, {
            "pretrained": str(checkpoint),
            "attention": of_network["attention"],
            **self._added[family, name],
            **of_method,
            **self.options,
        }

    def scoring(self, network: str, method: str, way: str) -> Engine:
        """For likelihoods, in one of the ways of SCORING."""
        name, options = self.arguments(network, method)
        return Engine(name, **options, **SCORING[way])

    def engine(self, network: str, method: str) -> Engine:
        """For decoding with options of each request's own."""
        if (network, method) not in self._made:
            name, options = self.arguments(network, method)
            self._made[network, method] = Engine(name, **options, block_length=BASE["block_length"])
        return self._made[network, method]

    def refusal(self, cell: Cell) -> str | None:
        """Why there is no such cell; None where there is."""
        try:
            engine = self.engine(cell.network, cell.method)
            engine.check([Request("a", engine.sampler_for(cell.options))])
        except ValueError as error:
            return str(error)
        return None

    def cells(self, network: str) -> tuple[list[Cell], list[str]]:
        """See `cells_of`."""
        return cells_of(network, lambda cell: self.refusal(cell) is None)


# ---- variations


def requests_of(engine: Engine, options: Options) -> list[Request]:
    """All of PROMPTS, each told apart from its repeats as harnesses do it."""
    sampler = engine.sampler_for(options)
    return [
        Request(prompt, sampler, STOPS, stream=((number,),))
        for number, prompt in enumerate(PROMPTS)
    ]


def ask(
    engine: Engine, requests: Sequence[Request], numbers: Sequence[int], batch_size: int
) -> dict[int, Completion]:
    """The answers, by number, to the requests of these numbers, in one call in this order."""
    found = engine.generate([requests[number] for number in numbers], batch_size=batch_size)
    return {numbers[place]: completion for place, completion in found}


def killed_and_resumed(engine: Engine, requests: Sequence[Request]) -> dict[int, Completion]:
    """A call that ends after three answers, and one for the others."""
    found: dict[int, Completion] = {}
    first = engine.generate(requests, batch_size=3)
    assert isinstance(first, Generator)
    for place, completion in first:
        found[place] = completion
        if len(found) == 3:
            break
    first.close()
    left = [number for number in range(len(requests)) if number not in found]
    return {**found, **ask(engine, requests, left, 8)}


EVERY = tuple(range(len(PROMPTS)))
# each gives all answers by number
VARIATIONS: dict[str, Callable[[Engine, Sequence[Request]], dict[int, Completion]]] = {
    "threes in reverse, by two processes": lambda engine, requests: {
        **ask(engine, requests, EVERY[::-2], 3),
        **ask(engine, requests, EVERY[-2::-2], 3),
    },
    "eight at once, rotated": lambda engine, requests: ask(
        engine, requests, EVERY[3:] + EVERY[:3], 8
    ),
    "killed and resumed": killed_and_resumed,
}


def outcome(completion: Completion) -> Completion:
    """All of it but its times."""
    return completion._replace(seconds=0.0, prm_seconds=0.0)


def differences(engine: Engine, options: Options) -> list[str]:
    """What differs between answers one by one and those of every variation, in words."""
    requests = requests_of(engine, options)
    alone = ask(engine, requests, EVERY, 1)
    return [
        f"{name}, prompt {number}: {outcome(found[number])}, alone {outcome(alone[number])}"
        for name, vary in VARIATIONS.items()
        for found in [vary(engine, requests)]
        for number in EVERY
        if outcome(found[number]) != outcome(alone[number])
    ]


# ---- likelihoods


def pairs_of(engine: Engine) -> list[tuple[list[int], list[int]]]:
    """PAIRS as tokens; a model of shifted logits needs a context."""
    pairs = [engine.encode_pair(*pair) for pair in PAIRS]
    return [pair for pair in pairs if pair[0]]


def score(
    engine: Engine, pairs: Sequence[Any], numbers: Sequence[int], batch_size: int
) -> dict[int, LogLikelihood]:
    """The estimates, by number, of the pairs of these numbers, in one call in this order."""
    found = engine.log_likelihood([pairs[number] for number in numbers], batch_size)
    return {numbers[place]: estimate for place, estimate in found}


def ways_of(network: str) -> list[tuple[str, str]]:
    """Methods and ways to score that a network meets: all ways, or two that are drawn.

    A router changes likelihoods; of a block-causal model it has none.
    """
    ways = list(SCORING)
    if network not in KINDS:
        ways = random.Random(network).sample(ways, 2)
    if NETWORKS[network]["attention"] == "block_causal":
        return [("llada", way) for way in ways]
    ways = [way for way in ways if way != "fill_block"]
    return [(("llada", "llada_ala")[number % 2], way) for number, way in enumerate(ways)]


def values(engine: Engine, pairs: Sequence[Any]) -> dict[str, list[LogLikelihood]]:
    """The estimates of the pairs, one by one and in every variation.

    A question's answers stay together, as in both harnesses.
    """
    every = list(range(len(pairs)))
    found = {
        "one by one": score(engine, pairs, every, 1),
        "threes in reverse, by two processes": {
            **score(engine, pairs, every[:2:-1], 3),
            **score(engine, pairs, every[2::-1], 3),
        },
        "eight at once, rotated": score(engine, pairs, every[2:] + every[:2], 8),
    }
    return {name: [each[number] for number in every] for name, each in found.items()}

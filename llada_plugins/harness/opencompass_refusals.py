"""What stock OpenCompass cannot ask of a masked-diffusion model, refused in one line each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from opencompass.models.base import BaseModel
from opencompass.utils import dataset_abbr_from_cfg

logger = logging.getLogger(__name__)

AUTOREGRESSIVE = {  # what they read of a model
    "SWCELossInferencer": "next-token logits of windows; PPLOnlyInferencer scores whole texts",
    "MinKPercentInferencer": "next-token probabilities of every position",
    "CLPInferencer": "the next token's logits; PPLInferencer chooses by likelihood",
    "GLMChoiceInferencer": "GLM's own choice(); PPLInferencer chooses by likelihood",
}
NEEDS_AGENT = (
    "AgentInferencer drives an agent, not a model: name OpenCompass' LagentAgent in `models`, with "
    "this model as its llm"
)
# of opencompass.datasets: their evaluators read lists of answers, others score a list as wrong
LISTS = ("humaneval", "mbpp", "LCBench", "cruxeval", "s2_tomg_bench", "SciReasoner")


class MaskedModel(BaseModel):
    """OpenCompass' base class without what only some other kind of model has."""

    def get_logits(self, inputs: Sequence[str]) -> None:
        """Refused: CLPInferencer asks for it."""
        raise ValueError(needs_autoregressive("CLPInferencer"))

    def get_mink_percent(self, inputs: Sequence[str], k: int = 20) -> None:
        """Refused: MinKPercentInferencer asks for it."""
        raise ValueError(needs_autoregressive("MinKPercentInferencer"))

    def choice(self, inputs: Sequence[Any], choices: Sequence[str]) -> None:
        """Refused: GLMChoiceInferencer asks for it."""
        raise ValueError(needs_autoregressive("GLMChoiceInferencer"))

    @property
    def model(self) -> None:
        """Refused: SWCELossInferencer asks for it."""
        raise ValueError(needs_autoregressive("SWCELossInferencer"))

    @property
    def agent(self) -> None:
        """Refused: AgentInferencer asks for it."""
        raise ValueError(NEEDS_AGENT)


def needs_autoregressive(name: str) -> str:
    """The line that refuses one of AUTOREGRESSIVE."""
    return (
        f"{name} needs an autoregressive model, which a masked-diffusion model is not: it reads "
        f"{AUTOREGRESSIVE[name]}"
    )


def check_dataset(config: Mapping[str, Any], num_answers: int) -> None:
    """Raise ValueError on a data set that this model cannot be asked as its entry says.

    Warns of what stock code will leave out.
    """
    inferencer = config["infer_cfg"]["inferencer"]
    name, where = _name(inferencer["type"]), f"data set {dataset_abbr_from_cfg(config)}: "
    if refusal := _refusal(name, inferencer):
        raise ValueError(where + refusal)
    unread = [option for option in ("do_sample", "temperature") if option in inferencer]
    if unread:
        logger.warning(
            "%sOpenCompass does not pass on its inferencer's %s: write them in the model's entry",
            where,
            " and ".join(unread),
        )
    if reads_lists(config):
        return
    evaluator = _name(config["eval_cfg"]["evaluator"]["type"])
    if num_answers > 1:
        raise ValueError(
            f"{where}{evaluator} scores a list of num_return_sequences={num_answers} answers as "
            f"one wrong answer: leave num_return_sequences out and write n={num_answers} in the "
            "data set's entry"
        )
    if name == "SCInferencer":
        logger.warning(
            "%sSCInferencer writes lists, and %s of OpenCompass does not vote: for a score write "
            "GenInferencer, and n=%d in the data set's entry",
            where,
            evaluator,
            inferencer.get("sc_size", 1),
        )


def _refusal(name: str, inferencer: Mapping[str, Any]) -> str | None:
    """Why an inferencer of that name and entry cannot ask this model; None where it can."""
    if name in AUTOREGRESSIVE:
        return needs_autoregressive(name)
    if name == "AgentInferencer":
        return NEEDS_AGENT
    beams = max(inferencer.get(name, 1) for name in ("n_generate_sample", "n_evaluate_sample"))
    if name == "ToTInferencer" and beams > 1:
        return (
            "ToTInferencer asks for the beams of a beam search, which a diffusion sampler does not "
            "have: set n_generate_sample and n_evaluate_sample to 1"
        )
    return None


def check_ends(meta_template: Mapping[str, Any] | None, ends: Sequence[int]) -> None:
    """Raise ValueError where meta_template names an end of answers that the model does not have."""
    named = (meta_template or {}).get("eos_token_id")
    if named is None:
        return
    several = named if isinstance(named, list | tuple) else [named]
    others = [str(each) for each in several if each not in ends]
    if others:
        raise ValueError(
            f"meta_template's eos_token_id ({', '.join(others)}) ends no "
            f"answer of this checkpoint, whose ends are {', '.join(map(str, ends)) or 'none'}: "
            "leave it out, and write that token's text in stop_words, or its id in the "
            "checkpoint's generation_config.json"
        )


def reads_lists(config: Mapping[str, Any]) -> bool:
    """May the data set's evaluator be given a list of answers? Evaluators of others are trusted."""
    from opencompass.registry import ICL_EVALUATORS

    kind = (config.get("eval_cfg") or {}).get("evaluator", {}).get("type")
    kind = ICL_EVALUATORS.get(kind) if isinstance(kind, str) else kind
    module = getattr(kind, "__module__", "")
    known = tuple(f"opencompass.datasets.{name}" for name in LISTS)
    return not module.startswith("opencompass.") or module.startswith(known)


def _name(kind: str | type) -> str:
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__

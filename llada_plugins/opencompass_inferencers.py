"""OpenCompass' own inferencers for what stock ones cannot ask of a model.

Its PPL and LL inferencers here file the standard error of likelihoods as well, and
InfillGenInferencer is its GenInferencer for texts with marked spans.

The first two ask for all labels together. In a config, for a model of opencompass_models.py: `from
llada_plugins.opencompass_inferencers import PPLInferencer`, then
`dataset['infer_cfg']['inferencer']['type'] = PPLInferencer`. Values, predictions and
scores are those of the stock inferencers, after which the classes are named because the
summary's column `mode` goes by the name. Its column `version` differs: it hashes the
whole path.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from opencompass.openicl import icl_inferencer as stock
from opencompass.openicl.icl_inferencer.icl_base_inferencer import dump_results_dict
from opencompass.openicl.icl_retriever import BaseRetriever

from llada_plugins.harness.opencompass_likelihood import Pair
from llada_plugins.likelihood.estimate import LogLikelihood

from .opencompass_models import LLaDA

if TYPE_CHECKING:
    from opencompass.openicl.icl_inferencer.icl_base_inferencer import BaseInferencer as _Stock
else:
    _Stock = object  # the stock class comes after _WithErrors in each class below


class _WithErrors(_Stock):
    """Adds the error of every likelihood to the file that the stock class writes.

    The keys are `stderr`, in the unit of the value beside it, and `num_forwards`. The stock
    class asks label by label, batch by batch. So it runs twice:

        1. it asks, is answered with zeros, and writes into a folder that is thrown away
        2. all that it asked is estimated together: labels share batches and equal rows,
           and mc_num=auto sees all choices of a question
        3. it asks again, is answered with the estimates, and writes its file
        4. the errors are put beside the values of that file
    """

    def inference(
        self,
        retriever: BaseRetriever,
        *,
        output_json_filepath: str,
        output_json_filename: str,
        **arguments: Any,
    ) -> list:
        if not isinstance(self.model, LLaDA):
            raise ValueError(
                f"llada_plugins' {type(self).__name__} serves llada_plugins' models, got "
                f"{type(self.model).__name__}: name OpenCompass' own {type(self).__name__} for it"
            )
        if arguments.get("normalizing_str") is not None:
            raise ValueError(
                "with normalizing_str a value is the difference of two likelihoods, of which no "
                f"error is filed: name OpenCompass' own {type(self).__name__}"
            )
        stock_inference = functools.partial(super().inference, retriever, **arguments)
        asked: list[tuple[Pair, int]] = []

        def listen(pairs: Sequence[Pair], units: Sequence[int]) -> list[LogLikelihood]:
            asked.extend(zip(pairs, units))
            return [LogLikelihood(value=0.0, stderr=0.0, num_forwards=0)] * len(pairs)

        with TemporaryDirectory() as folder, self.model.scored_by(listen):
            stock_inference(output_json_filepath=folder, output_json_filename="asked.json")
        different = list(dict.fromkeys(pair for pair, _ in asked))
        found = self.model.estimates(different, self.batch_size)
        with self.model.scored_by(lambda pairs, units: [found[pair] for pair in pairs]):
            predictions = stock_inference(
                output_json_filepath=output_json_filepath, output_json_filename=output_json_filename
            )
        if self.is_main_process:
            written = Path(output_json_filepath) / output_json_filename
            _add_errors(written, [found[pair].error(unit) for pair, unit in asked])
        return predictions


def _add_errors(path: Path, errors: Sequence[dict[str, float | str | None]]) -> None:
    """Put the errors beside the values of a stock file: label by label, as the stock class asks."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    labels = {name: None for row in rows.values() for name in row if name.startswith("label: ")}
    values = [row[label] for label in labels for row in rows.values()]
    for value, error in zip(values, errors, strict=True):
        value.update(error)
    dump_results_dict(rows, path)


class InfillGenInferencer(stock.GenInferencer):
    """The stock GenInferencer for prompts that are texts with marked spans to be filled in.

    A prediction is what was filled in. See llada_plugins.tasks.spans for the marks.
    """

    def inference(self, *arguments: Any, **named: Any) -> list:
        """As the stock class."""
        if not isinstance(self.model, LLaDA):
            raise ValueError(
                "InfillGenInferencer serves llada_plugins' models, got "
                f"{type(self.model).__name__}: others have no infilling"
            )
        with self.model.infilling():
            return super().inference(*arguments, **named)


class PPLInferencer(_WithErrors, stock.PPLInferencer):
    """Scores by perplexity."""


class LLInferencer(_WithErrors, stock.LLInferencer):
    """Scores by log-likelihood."""

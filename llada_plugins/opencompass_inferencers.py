"""OpenCompass' own PPL and LL inferencers, which ask for all labels together and file the standard error of every likelihood as well.

In a config, for a model of opencompass_models.py: `from llada_plugins.opencompass_inferencers import PPLInferencer`, then
`dataset['infer_cfg']['inferencer']['type'] = PPLInferencer`. Values, predictions and scores are those of the stock inferencers, after
which the classes are named because the summary's column `mode` goes by the name. Its column `version` differs: it hashes the whole path.
"""
from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from opencompass.openicl import icl_inferencer as stock
from opencompass.openicl.icl_inferencer.icl_base_inferencer import dump_results_dict
from opencompass.openicl.icl_retriever import BaseRetriever

from .opencompass_models import LLaDA


class _WithErrors:
    """Adds `stderr`, in the unit of the value beside it, and `num_forwards` to every label of the file that the stock class writes.

    The stock class asks label by label, batch by batch. It is run once for its requests alone, so that those of all labels share
    batches and equal rows, and mc_num=auto sees all choices of a question.
    """

    def inference(self, retriever: BaseRetriever, *, output_json_filepath: str, output_json_filename: str, **arguments: Any) -> list:
        if not isinstance(self.model, LLaDA):
            raise ValueError(f"llada_plugins' {type(self).__name__} serves llada_plugins' models, got {type(self.model).__name__}: name OpenCompass' "
                             f"own {type(self).__name__} for it")
        stock_inference = super().inference
        with TemporaryDirectory() as folder:
            self.model.foresee(lambda: stock_inference(retriever, output_json_filepath=folder, output_json_filename="asked.json", **arguments),
                               self.batch_size)
        self.model.errors.clear()
        predictions = stock_inference(retriever, output_json_filepath=output_json_filepath, output_json_filename=output_json_filename,
                                      **arguments)
        if self.is_main_process:
            path = Path(output_json_filepath) / output_json_filename
            rows = json.loads(path.read_text(encoding="utf-8"))
            labels = {name: None for row in rows.values() for name in row if name.startswith("label: ")}
            asked = [row[label] for label in labels for row in rows.values()]        # label by label, as the stock class asks
            for found, error in zip(asked, self.model.errors, strict=True):
                found.update(error)
            dump_results_dict(rows, path)
        return predictions


class PPLInferencer(_WithErrors, stock.PPLInferencer):
    """Scores by perplexity."""


class LLInferencer(_WithErrors, stock.LLInferencer):
    """Scores by log-likelihood."""

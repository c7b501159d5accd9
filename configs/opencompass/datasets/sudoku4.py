"""4x4 sudoku, 2 to 8 clues, 500 problems made by a rule: no data files, no network. Any
valid completion counts.

reproduces  no paper's table; the task on which the tiny model was trained and decoders
            are compared on a CPU
command     opencompass --config-dir configs/opencompass --models llada_tiny --datasets sudoku4
cost        under a minute on one CPU core
published   -
ours        100.0 at one token a step; more in configs/eval_llada.py
"""

from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from llada_plugins.tasks.opencompass import Sudoku4Dataset, Sudoku4Evaluator

sudoku4_datasets = [
    dict(
        abbr="sudoku4",
        type=Sudoku4Dataset,
        num=500,
        reader_cfg=dict(input_columns=["puzzle"], output_column="solution"),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="{puzzle}"),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=GenInferencer, max_out_len=16),
        ),
        eval_cfg=dict(evaluator=dict(type=Sudoku4Evaluator)),
    )
]

"""Solved 4x4 sudokus whose second row is filled in, what is before and after it given; any
row that completes the puzzle counts.

reproduces  no paper's table; shows infilling without data files or a network
command     opencompass --config-dir configs/opencompass --models llada_tiny \
                --datasets sudoku4_infilling
cost        seconds on one CPU core with OpenCompass' start of its processes
published   -
ours        100.0 at one token a step
"""

from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from llada_plugins.opencompass_inferencers import InfillGenInferencer
from llada_plugins.tasks.opencompass import Sudoku4InfillingDataset, Sudoku4InfillingEvaluator

sudoku4_infilling_datasets = [
    dict(
        abbr="sudoku4_infilling",
        type=Sudoku4InfillingDataset,
        num=500,
        reader_cfg=dict(input_columns=["text"], output_column="solution"),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="{text}"),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=InfillGenInferencer, max_out_len=4),
        ),
        eval_cfg=dict(evaluator=dict(type=Sudoku4InfillingEvaluator)),
    )
]

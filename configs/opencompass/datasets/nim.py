"""Nim: 1,000 held-out positions of 2-4 heaps of 1-7, and 500 each with more and with
larger heaps. Any winning move counts.

reproduces  no paper's table; the task on which routers (ALA) are trained and compared
            with their control
command     opencompass --config-dir configs/opencompass --models llada_nim --datasets nim
cost        two minutes on one CPU core with OpenCompass' start of its processes
published   -
ours        nim 83.5, nim_ood_heaps 1.2, nim_ood_sizes 8.6 at one token a step
"""

from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from llada_plugins.tasks.opencompass import NimDataset, NimEvaluator

nim_datasets = [
    dict(
        abbr=abbr,
        type=NimDataset,
        split=split,
        num=num,
        reader_cfg=dict(input_columns=["position"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="{position}"),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=GenInferencer, max_out_len=8),
        ),
        eval_cfg=dict(evaluator=dict(type=NimEvaluator)),
    )
    for abbr, split, num in (
        ("nim", "test", 1000),
        ("nim_ood_heaps", "ood_heaps", 500),
        ("nim_ood_sizes", "ood_sizes", 500),
    )
]

"""HumanEval-infilling, its four benchmarks, pass@1, on the released files. Grading executes
the model's code, where HF_ALLOW_CODE_EVAL=1 permits it.

reproduces  HumanEval-infilling (arXiv 2207.14255)
command     HF_ALLOW_CODE_EVAL=1 LLADA_PLUGINS_DATA=DATA opencompass --config-dir \
                configs/opencompass --models MODEL --datasets humaneval_infilling
            DATA/humaneval_infilling holds HumanEval-SingleLineInfilling.jsonl.gz, and so on:
            the files in the folder data of github.com/openai/human-eval-infilling.
            lengths=[8, 16, 32] in an entry lets the best be chosen, in place of max_out_len.
            The model's entry must not set gen_length, which would go before max_out_len.
cost        1,033 problems of 16 forwards, 5,815 of 64, 1,640 and 164 of 32
published   models differ in how they are told the length; see docs/decoding.md#infilling
ours        not run
"""

from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from llada_plugins.opencompass_inferencers import InfillGenInferencer
from llada_plugins.tasks.opencompass import HumanEvalInfillingDataset, HumanEvalInfillingEvaluator

humaneval_infilling_datasets = [
    dict(
        abbr=abbr,
        type=HumanEvalInfillingDataset,
        data_file=f"humaneval_infilling/HumanEval-{name}.jsonl.gz",
        reader_cfg=dict(input_columns=["text"], output_column="canonical_solution"),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="{text}"),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=InfillGenInferencer, max_out_len=length),
        ),
        eval_cfg=dict(evaluator=dict(type=HumanEvalInfillingEvaluator)),
    )
    for abbr, name, length in (
        ("humaneval_infilling_single_line", "SingleLineInfilling", 16),
        ("humaneval_infilling_multi_line", "MultiLineInfilling", 64),
        ("humaneval_infilling_random_span", "RandomSpanInfilling", 32),
        ("humaneval_infilling_random_span_light", "RandomSpanInfillingLight", 32),
    )
]

"""GSM8K as in eval_llada_gsm8k.py, its parts dealt out to a Slurm cluster by OpenCompass' own
SlurmRunner.

reproduces  ML-GSAI/LLaDA EVAL.md, block-diffusion row of LLaDA-8B-Instruct
command     LLADA_PRETRAINED=GSAI-ML/LLaDA-8B-Instruct LLADA_PARTITION=gpu \
                opencompass configs/eval_llada_gsm8k_slurm.py
            on a login node, from a folder that all machines share. Each part is an srun of one
            GPU; one that fails is tried twice more. LLADA_PARTS: how many parts, and jobs at
            once (default: 8). LLADA_PARTITION: Slurm's partition (default: the cluster's).
            A run is resumed with -r and as many parts as it began with; others are refused.
            Afterwards: python -m llada_plugins.check outputs/opencompass, since OpenCompass
            ends with 0 where parts have failed.
cost        docs/scale.md has a table
published   78.9 (authors' OpenCompass)
ours        not run; tested with a stand-in for srun
"""

from os import environ

from mmengine.config import read_base
from opencompass.partitioners import NaivePartitioner, NumWorkerPartitioner
from opencompass.runners import SlurmRunner
from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask

with read_base():
    from .eval_llada_gsm8k import datasets, models  # noqa: F401  # the run's

parts = int(environ.get("LLADA_PARTS", "8"))
slurm = dict(
    type=SlurmRunner,
    partition=environ.get("LLADA_PARTITION"),
    max_num_workers=parts,
    retry=2,
)
# force_rebuild: see opencompass/infer.py
infer = dict(
    partitioner=dict(
        type=NumWorkerPartitioner,
        num_worker=parts,
        num_split=parts,
        min_task_size=1,
        force_rebuild=True,
    ),
    runner=dict(slurm, task=dict(type=OpenICLInferTask)),
)
eval = dict(
    partitioner=dict(type=NaivePartitioner, n=8),
    runner=dict(slurm, task=dict(type=OpenICLEvalTask)),
)
work_dir = "outputs/opencompass"

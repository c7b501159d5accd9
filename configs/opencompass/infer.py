"""How inference is split; a fragment for read_base, data only.

num_split is fixed here and force_rebuild is on because stock OpenCompass (0.5.4)
resumes by file name: a run resumed with another number of splits puts answers beside
the wrong questions, and .cache/dataset_size.json remembers sizes of other test ranges.
Neither is reported.
"""

from opencompass.partitioners import NumWorkerPartitioner
from opencompass.runners import LocalRunner
from opencompass.tasks import OpenICLInferTask

infer = dict(
    partitioner=dict(type=NumWorkerPartitioner, num_worker=1, num_split=1, force_rebuild=True),
    runner=dict(type=LocalRunner, max_num_workers=1, task=dict(type=OpenICLInferTask)),
)

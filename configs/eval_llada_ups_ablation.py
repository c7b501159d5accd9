"""Steps x confidence source on 4x4 sudoku, and adaptive decoding with and without
revision: benchmarks/ablation.py in stock OpenCompass.

reproduces  no paper's table. Within one number of steps only the source differs;
            LLaDA-tiny, which takes no token back, is the baseline
command     opencompass configs/eval_llada_ups_ablation.py
cost        27 entries, two processes each: estimated 20 CPU minutes, most of it
            OpenCompass' start of them; no data, no network
published   -
ours        not run in full; `make ablation` decodes the same settings in a fifth of the
            time, with paired intervals
"""

from mmengine.config import read_base

with read_base():
    from .opencompass.datasets.sudoku4 import sudoku4_datasets
    from .opencompass.models.llada_tiny import models as never_remask
    from .opencompass.models.llada_ups_tiny import models as remask

datasets = sudoku4_datasets
plain = [dict(steps=steps) for steps in (4, 8, 16)]
remasking = [
    dict(steps=steps, confidence_source=source)
    for steps in (4, 8, 16)
    for source in ("ups", "ups_all", "tps_prob", "random", "entropy", "margin")
]
kept = [dict(steps=None, threshold=threshold) for threshold in (0.9, 0.95, 0.99)]
revised = [
    dict(steps=None, revise=False, threshold=threshold, revise_below=0.5)
    for threshold in (0.9, 0.95, 0.99)
]
rows = [("LLaDA-tiny", never_remask[0], options) for options in plain + kept]
rows += [("LLaDA-UPS-tiny", remask[0], options) for options in remasking + revised]
models = [
    dict(
        base,
        **options,
        abbr="-".join(
            [
                name,
                "gen_length=16",
                *(f"{option}={value}" for option, value in options.items() if value),
            ]
        ),
    )
    for name, base, options in rows
]
work_dir = "outputs/opencompass"

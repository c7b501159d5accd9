"""Data sets of published settings by names of tasks; a fragment for read_base.

made from the table of presets by python -m llada_plugins.presets write configs.
"""

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.ARC_c.ARC_c_gen_1e0de5 import (
        ARC_c_datasets as arc_c_gen_1e0de5,
    )
    from opencompass.configs.datasets.ARC_c.ARC_c_ppl_2ef631 import (
        ARC_c_datasets as arc_c_ppl_2ef631,
    )
    from opencompass.configs.datasets.ARC_e.ARC_e_ppl_2ef631 import (
        ARC_e_datasets as arc_e_ppl_2ef631,
    )
    from opencompass.configs.datasets.bbh.bbh_gen_5b92b0 import bbh_datasets as bbh_gen_5b92b0
    from opencompass.configs.datasets.ceval.ceval_ppl_578f8d import (
        ceval_datasets as ceval_ppl_578f8d,
    )
    from opencompass.configs.datasets.cmmlu.cmmlu_ppl_8b9c76 import (
        cmmlu_datasets as cmmlu_ppl_8b9c76,
    )
    from opencompass.configs.datasets.gpqa.gpqa_few_shot_ppl_4b5a83 import (
        gpqa_datasets as gpqa_few_shot_ppl_4b5a83,
    )
    from opencompass.configs.datasets.gpqa.gpqa_gen_4baadb import gpqa_datasets as gpqa_gen_4baadb
    from opencompass.configs.datasets.gsm8k.gsm8k_0shot_v2_gen_17d799 import (
        gsm8k_datasets as gsm8k_0shot_v2_gen_17d799,
    )
    from opencompass.configs.datasets.gsm8k.gsm8k_gen_1d7fe4 import (
        gsm8k_datasets as gsm8k_gen_1d7fe4,
    )
    from opencompass.configs.datasets.hellaswag.hellaswag_gen_6faab5 import (
        hellaswag_datasets as hellaswag_gen_6faab5,
    )
    from opencompass.configs.datasets.hellaswag.hellaswag_ppl_47bff9 import (
        hellaswag_datasets as hellaswag_ppl_47bff9,
    )
    from opencompass.configs.datasets.humaneval.humaneval_gen_8e312c import (
        humaneval_datasets as humaneval_gen_8e312c,
    )
    from opencompass.configs.datasets.humaneval_plus.humaneval_plus_gen_8e312c import (
        humaneval_plus_datasets as humaneval_plus_gen_8e312c,
    )
    from opencompass.configs.datasets.IFEval.IFEval_gen_353ae7 import (
        ifeval_datasets as ifeval_gen_353ae7,
    )
    from opencompass.configs.datasets.math.math_0shot_gen_11c4b5 import (
        math_datasets as math_0shot_gen_11c4b5,
    )
    from opencompass.configs.datasets.math.math_prm800k_500_0shot_cot_gen_11c4b5 import (
        math_datasets as math_prm800k_500_0shot_cot_gen_11c4b5,
    )
    from opencompass.configs.datasets.MathBench.mathbench_2024_gen_50a320 import (
        mathbench_datasets as mathbench_2024_gen_50a320,
    )
    from opencompass.configs.datasets.mbpp.mbpp_gen_830460 import mbpp_datasets as mbpp_gen_830460
    from opencompass.configs.datasets.mbpp.sanitized_mbpp_mdblock_0shot_nocot_gen_a2e416 import (
        sanitized_mbpp_datasets as sanitized_mbpp_mdblock_0shot_nocot_gen_a2e416,
    )
    from opencompass.configs.datasets.mbpp_plus.mbpp_plus_gen_0b836a import (
        mbpp_plus_datasets as mbpp_plus_gen_0b836a,
    )
    from opencompass.configs.datasets.mmlu.mmlu_gen_4d595a import mmlu_datasets as mmlu_gen_4d595a
    from opencompass.configs.datasets.mmlu.mmlu_gen_a484b3 import mmlu_datasets as mmlu_gen_a484b3
    from opencompass.configs.datasets.mmlu.mmlu_ppl_ac766d import mmlu_datasets as mmlu_ppl_ac766d
    from opencompass.configs.datasets.mmlu_pro.mmlu_pro_0shot_cot_gen_08c1de import (
        mmlu_pro_datasets as mmlu_pro_0shot_cot_gen_08c1de,
    )
    from opencompass.configs.datasets.piqa.piqa_ppl_3431ea import piqa_datasets as piqa_ppl_3431ea
    from opencompass.configs.datasets.race.race_ppl_a138cd import race_datasets as race_ppl_a138cd
    from opencompass.configs.datasets.winogrande.winogrande_5shot_ll_252f01 import (
        winogrande_datasets as winogrande_5shot_ll_252f01,
    )

datasets_of = {
    "mmlu": mmlu_ppl_ac766d,
    "cmmlu": cmmlu_ppl_8b9c76,
    "ceval": ceval_ppl_578f8d,
    "arc-challenge": arc_c_ppl_2ef631,
    "hellaswag": hellaswag_ppl_47bff9,
    "winogrande": winogrande_5shot_ll_252f01,
    "gpqa": gpqa_few_shot_ppl_4b5a83,
    "piqa": piqa_ppl_3431ea,
    "bbh": bbh_gen_5b92b0,
    "gsm8k": gsm8k_gen_1d7fe4,
    "math": math_0shot_gen_11c4b5,
    "humaneval": humaneval_gen_8e312c,
    "mbpp": mbpp_gen_830460,
    "mmlu-generative": mmlu_gen_a484b3,
    "mmlu-pro": mmlu_pro_0shot_cot_gen_08c1de,
    "hellaswag-generative": hellaswag_gen_6faab5,
    "arc-challenge-generative": arc_c_gen_1e0de5,
    "gpqa-generative": gpqa_gen_4baadb,
    "humaneval-instruct": humaneval_gen_8e312c,
    "mbpp-instruct": mbpp_gen_830460,
    "ifeval": ifeval_gen_353ae7,
    "arc-easy": arc_e_ppl_2ef631,
    "race": race_ppl_a138cd,
    "gsm8k-cot": gsm8k_gen_1d7fe4,
    "humaneval-plus": humaneval_plus_gen_8e312c,
    "mbpp-plus": mbpp_plus_gen_0b836a,
    "mmlu-sdar": mmlu_gen_4d595a,
    "gsm8k-0shot": gsm8k_0shot_v2_gen_17d799,
    "math-500": math_prm800k_500_0shot_cot_gen_11c4b5,
    "mathbench": mathbench_2024_gen_50a320,
    "mbpp-sanitized": sanitized_mbpp_mdblock_0shot_nocot_gen_a2e416,
    "gsm8k-cot-0shot": gsm8k_0shot_v2_gen_17d799,
}

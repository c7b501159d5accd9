"""Which model an Engine loads, where it runs, and how it estimates likelihoods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llada_plugins.likelihood.budget import Budget, budget
from llada_plugins.likelihood.estimate import LikelihoodSettings
from llada_plugins.likelihood.estimators import ESTIMATORS
from llada_plugins.models.compiling import Compile
from llada_plugins.models.llada_config import Attention
from llada_plugins.models.quantization import QUANTIZE
from llada_plugins.options.fields import Options, arg, names
from llada_plugins.sampling.config import SamplerConfig

from .overlong import OVERLONG
from .record_options import RecordOptions

HARNESS_DEFAULTS = SamplerConfig(early_stop=True)
# options that a checkpoint is loaded with
LOADING = ("device", "dtype", "quantize", "compile", "attention")
# none changes an answer by itself, but for rounding
NOT_IDENTITY = (
    "preset",
    "pretrained",
    "revision",
    "peft",
    "batch_size",
    "batch_tokens",
    "device",
    "compile",
    "likelihood_log",
    *names(RecordOptions),
    "manifest",
)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which model, and how much of it runs at once."""

    preset: str | None = arg(
        None,
        "name of a published setting (python -m llada_plugins.presets), whose options hold where "
        "no other is given",
    )
    pretrained: str | None = arg(
        None, "checkpoint folder or hub id (default: the tiny model shipped in the package)"
    )
    revision: str | None = arg(None, "branch, tag or commit of a hub id")
    peft: str | None = arg(
        None,
        "folder or hub id of a LoRA adapter of that checkpoint, made by training.sft --lora or by "
        "peft; merged at load",
    )
    tokenizer: str | None = arg(
        None, "folder or hub id of the tokenizer, where it is not beside the checkpoint"
    )
    add_bos_token: bool = arg(
        False,
        "put the tokenizer's BOS before every prompt and context that does not begin with it, as "
        "evaluations of Dream's base models do",
    )
    chat_template: str | None = arg(
        None,
        "name of the chat template, where the tokenizer has several (default: the one called "
        "default)",
    )
    enable_thinking: bool | None = arg(
        None,
        "does an answer begin with thoughts, where the chat template asks (SDAR, TraDo; default: "
        "what the template takes, which is true)",
    )
    device: str = arg("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg("auto", "auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16")
    quantize: Literal[QUANTIZE] | None = arg(  # type: ignore[valid-type]  # names of a table
        None,
        "int8 (torchao) or nf4 (bitsandbytes): the blocks' Linears in 8 or 4 bits; int8_dynamic or "
        "fp8: their inputs in 8 bits too, each token with a scale of its own; packed: a GPTQ "
        "checkpoint stays in 4 bits (default: weights in dtype, a GPTQ checkpoint is dequantised)",
    )
    compile: Compile = arg(
        "auto",
        "are layers compiled (torch.compile) and small forwards replayed (CUDA graphs): auto (on a "
        "GPU, once 600 forwards are in sight), on or off; answers differ by rounding only",
    )
    attention: Attention | None = arg(
        None,
        "full (every token sees all others) or block_causal (its own block and those before), of a "
        "family whose checkpoints may have either, as A2D's do (mdlm, bd3lm) (default: the "
        "checkpoint's)",
    )
    batch_size: Literal["auto"] | int = arg(
        1,
        "requests decoded together, and masked rows per forward of a likelihood, or auto: as many "
        "as fit a GPU's memory, 32 on a CPU; does not change any answer in float32, unless "
        "quantize rounds activations",
    )
    max_length: int | None = arg(
        None, "context in tokens, prompt and answer (default: the model's; lower it to save memory)"
    )
    overlong: Literal[OVERLONG] = arg(  # type: ignore[valid-type]  # names of a table
        "truncate",
        "what does not fit the context: truncate (as lm-eval: a prompt or context loses its "
        "beginning, as does a longer answer that is to be scored), skip (answered by nothing, "
        "scored -inf) or error; counted, and marked in result files",
    )
    manifest: Literal["sampled", "full", "off"] = arg(
        "sampled",
        "what results say of how they were made: digests of samples of every tensor, of all bytes "
        "(remembered in ~/.cache/llada_plugins), or no manifest at all",
    )
    mask_id: int | None = arg(
        None, "id of the mask token, where neither config.json nor the tokenizer names it"
    )
    batch_tokens: Literal["auto"] | int | None = arg(
        None,
        "tokens of one batch, prompts, answers and padding included, in place of batch_size rows, "
        "or auto: as many as fit a GPU's memory, 32 rows on a CPU; of a number, guidance runs "
        "twice as many, a process reward model's candidates as many each",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "batch_tokens", "max_length"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(Options):
    """How likelihoods are estimated, and where they are written down."""

    estimator: Literal[tuple(ESTIMATORS)] = arg(  # type: ignore[valid-type]  # names of a table
        "count",
        "likelihood: count (LLaDA's bound; enumerated where that takes no more than mc_num rows), "
        "published (its authors' code), published_dream (Dream's code), bernoulli (SMDM), chain "
        "(left to right) or exact (enumeration)",
    )
    mc_num: int | str = arg(
        128,
        "masked rows drawn per likelihood request; auto:0.1 draws until the standard error is at "
        "most 0.1 nats or the best choice of a question is settled",
    )
    mc_max: int | None = arg(None, "with mc_num=auto, rows drawn at most (default 1024)")
    mc_confidence: float | None = arg(
        None,
        "with mc_num=auto, probability (0.5-1) with which a settled choice is the best (default "
        "0.99; 1: only the standard error counts)",
    )
    mc_batch: int | None = arg(
        None,
        "with estimator=published or published_dream, rows of one sweep over the numbers of masks "
        "(default 8)",
    )
    mc_seed: int = arg(0, "with the request's context, determines its masks")
    fill_block: bool = arg(
        False,
        "of a block-causal model: is a scored answer followed by masks to the end of its last "
        "block, as where it is decoded, or does the row end with it?",
    )
    greedy_check: bool = arg(
        False,
        "does greedy decoding give the answer? up to one forward more per answer token of a "
        "likelihood",
    )
    likelihood_log: str | None = arg(
        None,
        "file that gets a line of JSON for each likelihood: texts, value, standard error, rows",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.budget()
        if self.likelihood_log is None:
            return
        log = Path(self.likelihood_log)
        if not log.absolute().parent.is_dir():
            raise ValueError(
                f"likelihood_log={self.likelihood_log!r}: its folder does not exist: create it "
                "first"
            )
        if log.is_dir():
            raise ValueError(f"likelihood_log={self.likelihood_log!r} is a folder: give a file")

    def budget(self) -> Budget:
        """Rows drawn per likelihood request."""
        return budget(self.estimator, self.mc_num, self.mc_max, self.mc_confidence, self.mc_batch)


# what results say of likelihoods: all of these options but the file's
LIKELIHOOD = tuple(name for name in names(LikelihoodOptions) if name != "likelihood_log")


# fields in the order of ModelOptions first
@dataclass(frozen=True, kw_only=True)
class EngineConfig(RecordOptions, LikelihoodOptions, ModelOptions):
    """Which model, where it runs, how likelihoods are estimated, and what is written down."""

    def likelihood_settings(self, cfg_scale: float, block_length: int | None) -> LikelihoodSettings:
        """How likelihoods are run, but for the size of their batches.

        block_length: of a block-causal model.
        """
        return LikelihoodSettings(
            limits=self.budget(),
            estimator=self.estimator,
            seed=self.mc_seed,
            cfg_scale=cfg_scale,
            greedy_check=self.greedy_check,
            block_length=block_length,
            fill_block=self.fill_block,
        )

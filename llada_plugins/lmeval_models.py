"""lm-eval's view of the Engine: `lm_eval --model llada --model_args pretrained=…,steps=…`.

Thin by intention: names, argument forms and bookkeeping that lm-eval expects; answers
and likelihoods are the Engine's. The classes are found through the `lm_eval.models`
entry points of setup.cfg, so nothing here registers by decorator.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import lm_eval.models  # noqa: F401  (importing it first keeps lm-eval's own models registered)
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.engine.progress import progress
from llada_plugins.harness.lmeval_cache import RepeatHook
from llada_plugins.harness.lmeval_record import Samplers
from llada_plugins.likelihood.estimate import LogLikelihood, total
from llada_plugins.models.folder import DEFAULT
from llada_plugins.options.fields import names, reject_unknown
from llada_plugins.sampling.config import SamplerConfig

from ._lm_eval_hook import register

logger = logging.getLogger(__name__)

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
HARNESS_NAMES = ("until", "do_sample", "num_beams", *LENGTH_NAMES)
DEFAULT_MAX_GEN_TOKS = 256  # lm-eval's own default, for tasks that state none
AUTO_BATCH_SIZE = 32
# of model_args, what lm-eval names a results folder after
NAMING = {"peft", "delta", "pretrained", "model", "path", "engine"}
LM_EVAL_SEED = 1234  # what lm-eval seeds torch with unless --seed says otherwise
FINGERPRINT_KEY = "llada_plugins:fingerprint:2"  # 2: an entry for each repeat


Note = dict[str, float | str | None]


class Noted(Instance):
    """A request whose arguments end with a note of its answer, so that sample logs hold it.

    A likelihood's note is its error; of both kinds, what was done with a request that
    did not fit.

    They do so from when lm-eval has the answer: until then, and so in the keys of a
    --use_cache file, arguments are the texts alone.
    """

    note: Note

    @property
    def args(self) -> tuple:
        return (*super().args, self.note) if self.resps else super().args


class LLaDA(TemplateLM):
    """The baseline LLaDA under lm-eval.

    Every option of EngineConfig and SamplerConfig is a model_arg of the same name.
    Options of a task's generation_kwargs and of --gen_kwargs go before those of
    model_args; the answer's length is gen_length from either, else the task's
    max_gen_toks.
    """

    method = "llada"

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if trust_remote_code:
            logger.warning("trust_remote_code has no effect: the model is native")
        # lm-eval 0.4.10 and 0.4.11 gather through `accelerator`
        self.accelerator, device = _place(device)
        self._rank = self.accelerator.process_index if self.accelerator else 0
        self._world_size = self.accelerator.num_processes if self.accelerator else 1
        self.batch_sizes: dict[int, int] = {}  # chosen here, as in lm-eval's own models
        if str(batch_size).startswith("auto"):
            batch_size = max_batch_size or AUTO_BATCH_SIZE
            self.batch_sizes[0] = int(batch_size)
        self.engine = Engine(
            self.method, pretrained=pretrained, batch_size=batch_size, device=device, **options
        )
        self.tokenizer = self.engine.tokenizer
        self._device = self.engine.model.device
        self._samplers = Samplers()
        self._told: set[str] = set()
        # by the texts of requests not yet returned
        self._errors: dict[tuple[str, ...], Note] = {}

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> LLaDA:
        """As lm-eval's, but an option that lm-eval passes as well ends with one line.

        Python's TypeError would not say what to do.
        """
        passed = {
            name: value for name, value in (additional_config or {}).items() if value is not None
        }
        twice = sorted(passed.keys() & arg_dict.keys())
        if twice:
            name = twice[0]
            raise ValueError(
                f"{name}={arg_dict[name]} stands in model_args, where lm-eval passes "
                f"{name}={passed[name]} by itself: give it as --{name}, outside model_args"
            )
        model = super().create_from_arg_obj(arg_dict, additional_config)
        if not NAMING & arg_dict.keys():
            arg_dict["pretrained"] = DEFAULT  # lm-eval reads them again, for a folder's name
        return model

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> LLaDA:
        """The same for options as one string."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def batch_size(self) -> int:
        return self.engine.config.batch_size

    @property
    def max_length(self) -> int:
        return self.engine.max_length

    @property
    def max_gen_toks(self) -> int:
        return DEFAULT_MAX_GEN_TOKS

    @property
    def eot_token_id(self) -> int | None:
        return self.engine.special.eos

    @property
    def prefix_token_id(self) -> int | None:
        """Stands before a text scored without context: BOS, or EOS where there is no BOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(
        self,
        string: str | Sequence[str],
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int] | list[list[int]]:
        """Token ids; of several strings a list of lists.

        By default special tokens are added as the tokenizer does, never a second BOS.
        left_truncate_len: of each, its last so many.
        """
        if isinstance(string, str):
            return self._encode_one(string, add_special_tokens, left_truncate_len)
        return [self._encode_one(each, add_special_tokens, left_truncate_len) for each in string]

    def _encode_one(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
    ) -> list[int]:
        if add_special_tokens is None:
            ids = self.engine.encode(string)
        else:
            ids = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both (B, L), padded as by lm-eval's own models.

        truncation: to the tokenizer's model_max_length. left_truncate_len: the last columns.
        """
        rows = [self._encode_one(each) for each in strings]
        if truncation:
            rows = [row[: self.tokenizer.model_max_length] for row in rows]
        longest = max(len(row) for row in rows)
        padding = self.tokenizer.pad_token_id
        if padding is None:
            padding = self.eot_token_id

        def padded(row: list[int], filler: int | None) -> list[int | None]:
            missing = [filler] * (longest - len(row))
            return [*missing, *row] if padding_side == "left" else [*row, *missing]

        ids = torch.tensor([padded(row, padding) for row in rows])
        mask = torch.tensor([padded([1] * len(row), 0) for row in rows])
        if not left_truncate_len:
            return ids, mask
        if longest > left_truncate_len:
            logger.warning(
                "of %d columns of tokens the last %d are kept", longest, left_truncate_len
            )
        return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]

    def tok_decode(self, tokens: int | list[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        string = self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        assert isinstance(string, str)
        return string

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as a prompt.

        add_generation_prompt=False continues the last message (lm-eval's gen_prefix).
        """
        return self.engine.render_chat(chat_history, prefill=not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for the results file.

        A name given with --apply_chat_template is the one that prompts are rendered by.
        ValueError where the tokenizer has no template of that name: lm-eval's own
        method records it, and renders another.
        """
        if isinstance(chat_template, str):
            self.engine.use_template(chat_template)
        templates = self.tokenizer.chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    def get_model_info(self) -> dict[str, Any]:
        """Merged into the `config` of the results file."""
        if isinstance(self.cache_hook, RepeatHook):
            self.cache_hook.read_samplers(self._samplers)
        return {
            **self.engine.info(),
            **self._samplers.info(),
            "overlong_requests": dict(self.engine.overlong.counts),
        }

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests; all are checked before the first is decoded."""
        parsed = [self._request(*instance.args) for instance in requests]
        hook = self.cache_hook
        numbers = [0] * len(requests)
        if isinstance(hook, RepeatHook):  # those that a cache had may be earlier repeats
            numbers = hook.numbers("generate_until", requests)
            parsed = [
                request._replace(stream=((number,),) if number else ())
                for request, number in zip(parsed, numbers)
            ]
        self._record(requests, parsed)
        texts = [""] * len(requests)
        with progress(
            len(requests), f"{self.method} generate_until", disable_tqdm or self.rank != 0
        ) as bar:
            for number, completion in self.engine.generate(parsed):
                texts[number] = completion.text
                if completion.overlong:
                    _note(requests[number], {"overlong": completion.overlong})
                if isinstance(hook, RepeatHook):
                    hook.add_partial(
                        "generate_until", requests[number].args, completion.text, numbers[number]
                    )
                bar.add(completion.num_tokens)
        return texts

    def _record(self, requests: Sequence[Instance], parsed: Sequence[Request]) -> None:
        """For the results file, and what no option but ours decides."""
        for instance, request in zip(requests, parsed):
            self._samplers.note(instance.task_name, [request.sampler])
        if isinstance(self.cache_hook, RepeatHook):
            self.cache_hook.keep_samplers(self._samplers)
        drawn = any(self.engine.draws(request.sampler) for request in parsed)
        if drawn and "seed" not in self.engine.given:
            self._tell_seed("answers", "seed")

    def _tell_seed(self, what: str, option: str) -> None:
        """lm-eval's --seed reaches torch, from which no random number here comes."""
        seed = torch.initial_seed()  # of a torch that nobody seeded: 64 random bits
        if seed == LM_EVAL_SEED or seed >= 1 << 32 or option in self._told:
            return
        self._told.add(option)
        logger.warning(
            "--seed (torch's is %d) has no effect on %s: give %s= in model_args", seed, what, option
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """As lm-eval's own; the requests become `Noted`."""
        answers = super().loglikelihood(requests, disable_tqdm)
        self._note_errors(requests)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood bounds of whole texts, which bound perplexity from above.

        Windows are disjoint, each given the last token before it. The first window is
        given the prefix token, which a tokenizer that adds BOS must not add to what is
        scored.
        """
        longest = min(self.max_length - 1, self.engine.max_answer)
        windows: list[tuple[Sequence[int], Sequence[int]]] = []
        owner: list[int] = []
        for number, instance in enumerate(requests):
            pieces = get_rolling_token_windows(
                self._without_bos(instance.args[0]), self.prefix_token_id, longest, 1
            )
            for piece in map(make_disjoint_window, pieces):
                windows.append(piece)
                owner.append(number)
        values = [0.0] * len(requests)
        size = Counter(owner)
        parts: list[list[LogLikelihood]] = [[] for _ in requests]
        with progress(
            len(windows), f"{self.method} loglikelihood_rolling", disable_tqdm or self.rank != 0
        ) as bar:
            for index, estimate in self.engine.log_likelihood(windows):
                number = owner[index]
                parts[number].append(estimate)
                if len(parts[number]) == size[number]:
                    whole = total(parts[number])
                    values[number] = whole.value
                    self._keep("loglikelihood_rolling", requests[number].args, whole.value, whole)
                bar.add(len(windows[index][1]))
        self._note_errors(requests)
        return values

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, does greedy decoding give it) per request.

        The latter is False unless greedy_check=True, as in LLaDA's published runs.
        """
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        pairs = [(context, continuation) for _, context, continuation in requests]
        config = self.engine.config
        if not config.mc_seed and config.estimator not in ("exact", "chain"):
            self._tell_seed("likelihoods", "mc_seed")
        with progress(
            len(requests), f"{self.method} loglikelihood", disable_tqdm or self.rank != 0
        ) as bar:
            for number, estimate in self.engine.log_likelihood(pairs):
                results[number] = (estimate.value, bool(estimate.greedy))
                texts = requests[number][0]
                if texts is not None:
                    self._keep("loglikelihood", texts, results[number], estimate)
                bar.add(len(pairs[number][1]))
        return results

    def _without_bos(self, string: str) -> list[int]:
        ids = self._encode_one(string)
        begins_with_bos = ids[:1] == [self.tokenizer.bos_token_id]
        return ids[1:] if begins_with_bos else ids

    def _keep(
        self,
        name: str,
        texts: tuple[str, ...],
        answer: float | tuple[float, bool],
        estimate: LogLikelihood,
    ) -> None:
        self.cache_hook.add_partial(name, texts, answer)
        self._errors[texts] = estimate.error()

    def _note_errors(self, requests: Sequence[Instance]) -> None:
        for request in requests:
            if error := self._errors.get(request.args):
                _note(request, error)
        self._errors.clear()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval's own; the context of a question's choices is tokenised once."""
        return self.engine.encode_pair(context, continuation)

    def _request(self, prompt: str, gen_kwargs: Mapping[str, Any]) -> Request:
        """One request from lm-eval's (context, gen_kwargs)."""
        options = {name: value for name, value in gen_kwargs.items() if name not in HARNESS_NAMES}
        reject_unknown(gen_kwargs, [*names(SamplerConfig), *HARNESS_NAMES], "gen_kwarg")
        if int(gen_kwargs.get("num_beams") or 1) != 1:
            raise ValueError(
                f"num_beams={gen_kwargs['num_beams']} has no meaning for a diffusion sampler: "
                "leave it out or set 1"
            )
        asked = any(gen_kwargs.get(name) is not None for name in LENGTH_NAMES)
        normal = normalize_gen_kwargs(dict(gen_kwargs), DEFAULT_MAX_GEN_TOKS)
        if gen_kwargs.get("do_sample") is False or "temperature" in gen_kwargs:
            options["temperature"] = normal["temperature"]
        # a task that says greedy may still list the sampling options of its authors
        if gen_kwargs.get("do_sample") is False:
            options.pop("top_p", None)
            options.pop("top_k", None)
        length_known = "gen_length" in options or "gen_length" in self.engine.given
        max_tokens = normal["max_gen_toks"] if asked or not length_known else None
        until = tuple(stop for stop in normal["until"] if stop)
        return Request(prompt, self.engine.sampler_for(options, max_tokens), until)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Tie a --use_cache file to this model.

        lm-eval's keys hold the request only, so another model's answers would be reused.
        """
        super().set_cache_hook(cache_hook)
        cache = getattr(cache_hook, "dbdict", None)
        if cache is None:
            return
        mine = self.engine.fingerprint()
        if len(cache) == 0:
            cache[FINGERPRINT_KEY] = mine
        elif cache.get(FINGERPRINT_KEY) != mine:
            raise ValueError(
                "the --use_cache file was written by another model or other options; give "
                f"another file. Its fingerprint: {cache.get(FINGERPRINT_KEY)}; this model's: {mine}"
            )
        self.cache_hook = RepeatHook(cache)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` of every process, concatenated (lm-eval's data parallelism)."""
        return tensor if self.accelerator is None else self.accelerator.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """`obj` of every process, at process `dst`; None elsewhere."""
        if self.accelerator is None:
            return [obj]
        gathered = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


class LLaDAUPS(LLaDA):
    """Learned remasking (RemeDi): the baseline's options and `ups`, the folder of a policy head."""

    method = "llada_ups"


class LLaDAALA(LLaDA):
    """Routed seeds (ALA): the baseline's options and `router`, the folder of a router.

    Likelihoods are those of the routed denoiser, which is another model of the answer:
    they do not compare decoders of one model.
    """

    method = "llada_ala"


class LLaDAPRM(LLaDA):
    """Process-reward candidates and back-masking (LLaDA-R3): the baseline's options,
    those of ReviewConfig and PRMConfig.

    method: vanilla, backmask or window. Likelihoods are the baseline's: a process
    reward model changes decoding only.
    """

    method = "llada_prm"


def _note(request: Instance, note: Note) -> None:
    """Make the request a `Noted` one in place: lm-eval logs the very objects that it made."""
    request.__class__ = Noted
    request.note = note


def _place(device: str | None) -> tuple[Any, str]:
    """The accelerator of a data-parallel run (else None), and where this process computes.

    lm-eval passes cuda:0 when the user names no device, on machines without a GPU as
    well: there it means "auto".
    """
    if device is None or (str(device).startswith("cuda") and not torch.cuda.is_available()):
        device = "auto"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None, str(device)
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=str(device) == "cpu" or not torch.cuda.is_available())
    return accelerator, str(accelerator.device)


register()  # so that importing this module by hand makes the names known as well

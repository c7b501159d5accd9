"""Text in, text and log-likelihoods out: what both harnesses call.

An Engine owns a checkpoint, its tokenizer and a method (a row of METHODS). This room is the
only place where text meets tokens: the harness classes above it hold no logic, and nothing
below it knows of text. How requests are decoded is in answering.py, how likelihoods are
estimated in scoring.py, what a marked text asks for in marked_text.py and infilling.py.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llada_plugins.diffusion.arguments import check_function
from llada_plugins.files.utf8 import check_text
from llada_plugins.likelihood.estimate import LogLikelihood
from llada_plugins.methods.loading import Loading
from llada_plugins.methods.table import METHODS, check_policy
from llada_plugins.models import loading as checkpoint
from llada_plugins.models import text
from llada_plugins.models.families import FAMILIES, with_attention
from llada_plugins.models.folder import read_config
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.tokenizer import choose_template, load_tokenizer
from llada_plugins.options.fields import coerce, names, reject_unknown
from llada_plugins.sampling import published
from llada_plugins.sampling.config import SamplerConfig, build_sampler
from llada_plugins.sampling.for_model import check_attention, defaults_of
from llada_plugins.sampling.generate import with_options

from . import answering, identity, infilling, marked_text, scoring
from .asked import Asked
from .batches import Batches, meter_of
from .checks import check_bos_token, context_length, mask_known
from .config import HARNESS_DEFAULTS, LOADING, EngineConfig
from .notices import WarnOnce, surprises
from .overlong import Overlong
from .recording import Recorder, changed
from .request import Completion, Request
from .request_sampler import combined
from .watching import watched

logger = logging.getLogger(__name__)


class Engine:
    """A checkpoint with its tokenizer, ready to answer and to score.

    options: any field of EngineConfig, SamplerConfig and the method's own options by
    name, as harnesses pass them; unknown names and bad values raise ValueError before
    weights are read. loading: see `beside`.
    """

    def __init__(
        self, method: str = "llada", loading: Loading | None = None, /, **options: Any
    ) -> None:
        if not (loading is None or isinstance(loading, Loading)):
            raise ValueError(
                f"an Engine takes a method and options by name, got {loading!r}: write "
                f"Engine({method!r}, pretrained={loading!r})"
            )
        self.method = method
        self.asked = Asked(method, options)  # bad values fail before files are looked at
        self.method_options: Any = self.asked.method_options
        self.config = self.asked.config
        self.folders = self.asked.folders()
        self.folder, self.adapter, tokenizer_folder = self.folders[:3]
        config = with_attention(read_config(self.folder), self.config.attention, str(self.folder))
        self.family = FAMILIES[config.family]
        self.given = self.asked.sampler(self.family.sampler)
        self.by_model = defaults_of(config, self.given)
        check_attention(self.asked.built({**self.by_model, **self.given}), config)
        self.tokenizer = load_tokenizer(
            tokenizer_folder, self.config.chat_template, self.config.enable_thinking
        )
        if self.config.add_bos_token:
            check_bos_token(self.tokenizer, tokenizer_folder)
        self.chat_template = self.config.chat_template  # a name; None: the only one or the default
        self._templates: Any = None  # all of the tokenizer's, where `use_template` chose one
        self.special = mask_known(self.folder, tokenizer_folder, config, self.config.mask_id)
        self.max_length = context_length(config, self.config.max_length)
        self.loading = loading or Loading(self._read)
        located = self.asked.located(self.folders)
        self.prepared = METHODS[method].prepare(self.loading, self.folder, located)
        self.model = self.prepared.model
        # an adapter may have blocks of its own
        self.by_model = defaults_of(self.model.config, self.given)
        self.batches = Batches(
            self.config.batch_size, self.config.batch_tokens, meter_of(self.model.device)
        )
        self.max_answer = self.prepared.max_answer or self.max_length  # tokens
        self.denoise = self.prepared.denoise
        self.warnings = WarnOnce(logger)
        self.overlong = Overlong(
            self.config.overlong,
            self.max_length,
            shown_after=int(self.family.shows_eos),
            needed_before=int(self.family.shift),
        )
        # of every request; unless gen_length is given, its length is only one that the
        # others allow
        self.common = build_sampler(
            {**self.by_model, **self.prepared.defaults(self.given), **self.given}, HARNESS_DEFAULTS
        )
        self.check_sampler(self.common)
        self.recorder = self._recorder()
        # of the last question, tokenised once for all its choices
        self._context: tuple[str | None, list[int]] = (None, [])

    def _read(self) -> LLaDA:
        """The checkpoint's model, read as the options say."""
        options = {name: getattr(self.config, name) for name in LOADING}
        return checkpoint.load_model(self.folder, peft=self.adapter, **options)

    def beside(self, method: str, /, **own: Any) -> Engine:
        """An engine of a method on the same loaded model, which is not read again.

        It has the options of this one but for those of its method; own: of the other's. A
        process reward model that one of these engines holds already is not read again either.
        """
        shared = {*names(EngineConfig, SamplerConfig), *published.NAMES}
        options = {name: each for name, each in self.asked.explicit.items() if name in shared}
        return Engine(method, self.loading, **options, **own)

    @property
    def sampler(self) -> SamplerConfig:
        """Of a request that states nothing itself, not even how long its answer is."""
        return self.sampler_for({})

    def sampler_for(
        self, options: Mapping[str, Any], max_tokens: int | None = None
    ) -> SamplerConfig:
        """The sampler of one request: its own options go before those of the engine.

        max_tokens: the answer's length where neither sets gen_length.
        """
        if not isinstance(options, Mapping):
            raise ValueError(f"options must be a dict of sampler options, got {options!r}")
        reject_unknown(options, [*names(SamplerConfig), *published.NAMES], "sampler option")
        options = coerce(SamplerConfig, published.native(options, self.family.sampler))
        both = {**self.given, **options}
        by_method = self.prepared.defaults(both)
        by_model = defaults_of(self.model.config, both)
        sampler = combined(
            options, self.given, by_method, self.asked, max_tokens, by_model=by_model
        )
        for notice in surprises(sampler, options, self.given, max_tokens):
            self.warnings.warn(notice.message, notice.about)
        return sampler

    def generate(
        self, requests: Sequence[Request], batch_size: int | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Decode every request; yields (index, completion) as answers end.

        Those of longest prompts come first. Every request is checked before the first
        forward. Requests share a batch only with their own sampler options; when an answer
        ends, at a block's end, a waiting request takes its place. batch_size: in place of
        the configured one; where batch_tokens is configured, that counts. Raises ScoreError,
        once all others are answered, where a process reward model gives no number for some.
        Of a text with spans of several lengths the best is taken, see infilling.py.
        """
        yield from infilling.chosen(
            requests, functools.partial(answering.completions, self, batch_size=batch_size)
        )

    def infill(
        self, text: str | Sequence[str | int | Sequence[int]], /, **options: Any
    ) -> infilling.FilledIn:
        """The text with its spans filled in; what is given stays as it is.

        text: with marked spans, <|infill:8|>, or pieces: strings, and for each span its number
        of tokens, or several to choose from. options: of this text's sampler.
        """
        sampler = self.sampler_for(options)
        pieces = marked_text.marked(text, sampler.gen_length) if isinstance(text, str) else text
        return infilling.fill_in(self, marked_text.request_of(pieces, sampler))

    def check(self, requests: Sequence[Request]) -> None:
        """Raise ValueError on whatever of these `generate` refuses before its first forward."""
        answering.encoded(self, [each.request for each in infilling.tries(requests)])

    def _recorder(self) -> Recorder | None:
        """What writes down how answers come about, where record asks for it."""
        if self.config.record is None:
            return None
        about = {
            "method": self.method,
            "method_options": changed(self.method_options),
            "checkpoint": self.folder.name,
        }
        return Recorder(self.config, self.tokenizer, about, self.fingerprint())

    def log_likelihood(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int | None = None
    ) -> Iterator[tuple[int, LogLikelihood]]:
        """log p(answer | context) for token pairs; yields (index, estimate) as they finish.

        What does not fit is treated as `overlong` says; of an answer that is cut, the
        last tokens are scored. batch_size: masked rows of a forward, in place of the
        configured number; pairs with the same context are the choices of a question.
        """
        yield from scoring.likelihoods(self, pairs, batch_size)

    def encode(self, string: str) -> list[int]:
        """Token ids, with special tokens unless the string begins with BOS, as a chat does."""
        return self._with_bos(self.known(text.encode(self.tokenizer, string)))

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation as in lm-eval.

        The context's trailing spaces go over to the continuation, and the tokens of the
        whole string are split; where one of them spans the join, see text.encode_pair.
        """
        check_text(context)
        check_text(continuation)
        stripped = context.rstrip()
        if self._context[0] != stripped:
            self._context = stripped, self.known(text.encode(self.tokenizer, stripped))
        ids = list(self._context[1])
        answer = text.encode_pair(
            self.tokenizer, stripped, ids, context[len(stripped) :] + continuation
        )
        return self._with_bos(ids), self.known(answer)

    def _with_bos(self, ids: list[int]) -> list[int]:
        """The ids after BOS, where add_bos_token asks for that and they have none."""
        bos = self.tokenizer.bos_token_id
        if not self.config.add_bos_token or ids[:1] == [bos]:
            return ids
        return [bos, *ids]

    def known(self, ids: list[int]) -> list[int]:
        """The ids; ValueError where one is none of the model's."""
        text.check_vocabulary(ids, self.model.config.num_embeddings, str(self.folder))
        return ids

    def use_template(self, name: str | None) -> None:
        """Render chats through the tokenizer's template of that name from here on.

        None: through that of the options, or the default. ValueError where the options name
        another, or the tokenizer has none of that name.
        """
        given = self.config.chat_template
        wanted = given if name is None else name
        if given not in (None, wanted):
            raise ValueError(
                f"chat template {name!r} was asked for, and chat_template={given!r} in the "
                "options: give one of them"
            )
        if self.chat_template == wanted:
            return
        if self._templates is not None:
            self.tokenizer.chat_template, self._templates = self._templates, None
        self.chat_template = None
        if wanted is not None:
            several = self.tokenizer.chat_template
            choose_template(self.tokenizer, wanted)
            self.chat_template, self._templates = wanted, several

    def render_chat(self, messages: Sequence[Mapping[str, str]], prefill: bool = False) -> str:
        """The prompt string of a chat, ending with the assistant's header.

        With a prefill it ends with the last message's text.
        """
        return text.render_chat(self.tokenizer, messages, prefill)

    def watch(self, show: Callable[[Sequence[int]], None]) -> None:
        """Before every forward from here on, `show` gets the first row's answer in work."""
        check_function("show", show)
        self.denoise = watched(self.denoise, show)

    def fingerprint(self) -> str:
        """What determines this engine's answers, as one line of JSON."""
        return identity.fingerprint(self)

    def info(self) -> dict[str, Any]:
        """For result files: what was evaluated, and how."""
        return identity.info(self)

    def draws(self, sampler: SamplerConfig) -> bool:
        """Do answers depend on random numbers?"""
        return sampler.draws or self.prepared.judge is not None

    def check_sampler(self, sampler: SamplerConfig) -> None:
        """Raise ValueError on options that need what this checkpoint or method lacks."""
        with_options(self.denoise, sampler, self.special)
        check_policy(sampler, self.prepared)
        check_attention(sampler, self.model.config)
        if sampler.shift_cache == "published" and not self.family.shift:
            raise ValueError(
                "shift_cache=published is for models whose logits are shifted, such as Dream's; "
                "this checkpoint's are not: leave it out"
            )
        sampler.check_budget(reviewed=self.prepared.judge is not None)

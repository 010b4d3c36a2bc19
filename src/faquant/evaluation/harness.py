"""The model `faquant` for EleutherAI's lm-evaluation-harness (the package lm_eval), scored through the cache.

Every request runs through the cache pages that serve, int8 pages if the directory's attention is quantized. lm_eval has
no plugins, so this module starts its command line, with its own options:

    python -m faquant.evaluation.harness --model faquant --model_args pretrained=DIR --tasks …

In Python, import this module before `lm_eval.simple_evaluate(model="faquant", …)`. It needs faquant[lm-eval].
"""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..engine.engine import PAGE_SIZE
from ..engine.llm import LLM
from ..errors import CheckpointError, FaquantError, UsageError
from ..kernels.arrays import Array, concatenate, to_numpy
from ..model.load import Model
from ..model.paged import Chunk, PagedDecoder
from ..model.rope import Rope
from ..sampling.params import SamplingParams

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import (
        Collator,
        handle_stop_sequences,
        has_bos_prefix,
        maybe_truncate,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(
        f"The harness cannot be imported ({error}). Install it: pip install 'faquant[lm-eval]'"
    ) from error

MAX_GEN_TOKS = 256  # default of the harness's own models, for tasks that do not set it
AUTO_BATCH = 16
_ROWS = 128
_CHUNK = 1024
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_NEUTRAL = {
    "num_beams": 1,
    "num_return_sequences": 1,
}  # some tasks set these; other values are not supported

_log = logging.getLogger(__name__)

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""The texts (None: part of a rolling window), and the token ids of context and continuation."""


@register_model("faquant")
class FaquantLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A float or quantized directory as a model of the harness.

    Args:
        pretrained: the directory.
        max_length: tokens of context, up to the model's own (with scaled RoPE, the scaled context); None: all.
        max_gen_toks: limit on the tokens of an answer if the task sets none.
        batch_size: how many answers are decoded together. Likelihoods are computed one by one, sharing common prefixes.
        add_bos_token: whether prompts get the tokenizer's special tokens; None: the tokenizer's default.
        prefix_token_id: the token before a text without context; None: BOS, else EOS.
        enable_thinking: passed to the chat template, if not None.
        think_end_token: only the text after it in an answer is scored.
        device, max_batch_size: passed by the harness (default cuda:0) and ignored; this model runs on the CPU.

    Raises:
        UsageError: an argument is invalid for this model.
        CheckpointError, UnsupportedError: the directory cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str,
        max_length: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        batch_size: int | str = 1,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.pretrained = Path(pretrained)
        self.llm = LLM(self.pretrained)
        self.tokenizer = self.llm.tokenizer
        limit = self.llm.model.max_position
        if max_length is not None and not 2 <= max_length <= limit:
            raise UsageError(
                f"max_length must be between 2 and the model's context of {limit} tokens, not {max_length}."
            )
        self.max_length = max_length or limit
        self.max_gen_toks = max_gen_toks
        self.batch_size = AUTO_BATCH if str(batch_size).startswith("auto") else int(batch_size)
        self._add_special = add_bos_token
        self._template_variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._think_end = think_end_token
        bos = self.tokenizer.bos_token_id
        self._prefix = next((token for token in (prefix_token_id, bos) if token is not None), None)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text: the tokenizer's EOS, else the first that ends an answer."""
        ends, name = self.tokenizer.eos_token_ids, self.tokenizer.special_tokens.get("eos_token")
        if not ends:
            raise UsageError(f"{self.pretrained} has no EOS token, which the harness needs.")
        return next((token for token in ends if self.tokenizer.token_text(token) == name), ends[0])

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        return self.eot_token_id if self._prefix is None else self._prefix

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness's cache of requests."""
        return str(self.pretrained.resolve()).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Information for the harness's results."""
        schemes = self.llm.model.schemes
        return {"layers": len(schemes), "layers_with_int8_cache": sum(scheme is not None for scheme in schemes)}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of `string`; BOS is not added if the string already starts with it."""
        if add_special_tokens is None:
            written = has_bos_prefix(string, self.tokenizer.token_text(self.prefix_token_id))
            add_special_tokens = False if written else self._add_special
        return self.tokenizer.encode(string, True if add_special_tokens is None else add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation; without a generation prompt, the last message stays open for continuation."""
        try:
            text = self.tokenizer.render_chat(chat_history, add_generation_prompt, variables=self._template_variables)
        except UsageError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) in (0, len(chat_history)):
                raise
            _log.warning("The chat template refuses the system message; it is omitted.")
            return self.apply_chat_template(others, add_generation_prompt)
        if add_generation_prompt:
            return text
        content = chat_history[-1]["content"]
        start, whole = text.rindex(content.strip()), content.lstrip()  # some templates strip messages
        return text[: start + len(whole if text.startswith(whole, start) else content.strip())]

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation in nats, and whether greedy decoding would produce it."""
        self._check(requests)
        # As in the harness: contexts are truncated on the left, continuations never.
        sequences = [(context + continuation)[-self.max_length - 1 :] for _, context, continuation in requests]
        cache = _SequenceCache(self.llm.model, max(map(len, sequences), default=1))
        results: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(requests)), key=sequences.__getitem__)  # neighbors share prefixes
        for index in tqdm(order, desc="Running loglikelihood requests", disable=disable_tqdm):
            texts, _, continuation = requests[index]
            tokens = sequences[index][:-1]
            results[index] = self._score(cache.hidden(tokens, len(tokens) - len(continuation)), continuation)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, results[index])
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood in nats of each whole text; longer texts are split into windows of max_length."""
        windows: list[TokenRequest] = []
        ends = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(None, *make_disjoint_window(part)) for part in parts]
            ends.append(len(windows))
        scores = [score for score, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        totals = [sum(scores[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """An answer to each prompt, up to the first of its stop strings."""
        ordered = Collator(
            [request.args for request in requests],
            sort_fn=lambda request: (-len(request[0]), request[0]),
            group_fn=lambda request: request[1],
            group_by="gen_kwargs",
        )
        answers: list[str] = []
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as progress:
            for batch in ordered.get_batched(n=self.batch_size):
                prompts, settings = [prompt for prompt, _ in batch], batch[0][1]
                texts = self._answer(prompts, settings)
                for prompt, text in zip(prompts, texts, strict=True):
                    self.cache_hook.add_partial("generate_until", (prompt, settings), text)
                answers += texts
                progress.update(len(batch))
        in_order: list[str] = ordered.get_original(answers)
        return in_order

    def _answer(self, prompts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        wanted = dict(normalize_gen_kwargs(dict(settings), self.max_gen_toks))
        end = self.tokenizer.token_text(self.eot_token_id)
        until = [text for text in handle_stop_sequences(wanted.pop("until"), eos=end) if text]
        max_tokens, greedy = wanted.pop("max_gen_toks"), not wanted.pop("do_sample")
        temperature = wanted.pop("temperature", 1.0)
        if max_tokens >= self.max_length:
            raise UsageError(
                f"max_gen_toks ({max_tokens}) leaves no space for a prompt in {self.max_length} tokens of context."
            )
        chosen = {name: wanted.pop(name) for name in _SAMPLING if name in wanted}
        unknown = {name: value for name, value in wanted.items() if _NEUTRAL.get(name) != value}
        if unknown:
            raise UsageError(f"The task asks for {unknown} in generation_kwargs, which faquant does not support.")
        ids = [maybe_truncate(self.tok_encode(prompt), max_tokens, self.max_length)[0] for prompt in prompts]
        # Stop strings apply only to the answer, not to the thoughts before it.
        stop = () if self._think_end else tuple(until)
        if greedy:
            done = self.llm.generate(ids, SamplingParams(temperature=0.0, max_tokens=max_tokens, stop=stop))
        else:  # each with its own seed, drawn from the generator that the harness seeds
            done = [
                self.llm.generate(
                    [prompt],
                    SamplingParams(
                        temperature, **chosen, seed=int(torch.randint(1 << 62, ())), max_tokens=max_tokens, stop=stop
                    ),
                )[0]
                for prompt in ids
            ]
        return [self._text(answer.text, answer.token_ids, until) for answer in done]

    def _text(self, text: str, ids: Sequence[int], until: list[str]) -> str:
        """The scored part of an answer `text` of tokens `ids`: without thoughts, and up to the first stop string."""
        special = self.tokenizer.special_token_ids
        if self._think_end:
            text = self.tokenizer.decode(ids, skip_special_tokens=False)
        elif place := [
            at for at, token in enumerate(ids) if token in special and self.tokenizer.token_text(token) in until
        ]:
            text = self.tokenizer.decode(ids[: place[0]])  # a stop string that decoding omits
        counted: str = postprocess_generated_text(text, until, self._think_end)
        return counted

    def _check(self, requests: Sequence[TokenRequest]) -> None:
        """Refuse requests that cannot be scored, before hours of work."""
        vocabulary = self.llm.model.config.vocab_size
        for texts, context, continuation in requests:
            shown = "" if texts is None else f" The texts are {texts[0][-60:]!r} and {texts[1][:60]!r}."
            if not context or not 1 <= len(continuation) <= self.max_length:
                raise UsageError(
                    f"A request has {len(context)} tokens of context and {len(continuation)} to score; at least one of "
                    f"each is needed, and at most {self.max_length} can be scored.{shown}"
                )
            if max(*context, *continuation) >= vocabulary:
                raise CheckpointError(f"{self.pretrained}: the tokenizer has more tokens than the model.{shown}")

    def _score(self, hidden: Array, continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of n tokens that follow hidden states [n, hidden], and whether each is the likeliest."""
        total, greedy = 0.0, True
        for row in range(0, len(continuation), _ROWS):  # in blocks: the logits of thousands of tokens are large
            logits = to_numpy(self.llm.model.decoder.logits(hidden[row : row + _ROWS]))
            scores = torch.from_numpy(logits).log_softmax(-1)
            following = torch.tensor(continuation[row : row + _ROWS])
            total += float(scores.gather(1, following[:, None]).sum(dtype=torch.float64))
            greedy = greedy and bool((scores.argmax(-1) == following).all())
        if not math.isfinite(total):
            raise CheckpointError(f"{self.pretrained}: the logits are not finite. Its weights or scales are damaged.")
        return total, greedy


class _SequenceCache:
    """Cache pages of one sequence at a time; the next sequence reuses their common prefix."""

    def __init__(self, model: Model, capacity: int) -> None:
        self._model = model
        count = -(-capacity // PAGE_SIZE)
        self._decoder = PagedDecoder(model.decoder, model.make_pages(count, PAGE_SIZE), model.backend)
        self._table = np.arange(count)
        self._held: list[int] = []

    def hidden(self, tokens: list[int], first: int) -> Array:
        """Hidden states [len(tokens) - first, hidden] of `tokens` from position `first` on."""
        rope = Rope(self._model.config, len(tokens))
        start = min(first, _common(self._held, tokens))
        length_used = self._model.config.rope.length_used
        if length_used(len(tokens)) != length_used(len(self._held)):
            start = 0  # the held keys have other frequencies
        states = []
        for at in range(start, len(tokens), _CHUNK):
            part = np.array(tokens[at : at + _CHUNK], np.int64)
            state = self._decoder.run([Chunk(part, at, self._table, rope)])
            states.append(state[max(0, first - at) :])
        self._held = tokens
        return concatenate(states)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def main() -> int:
    """lm_eval's command line with this model registered; returns the exit status."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except FaquantError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The model `faquant` of EleutherAI's lm-evaluation-harness (the package lm_eval): its tasks, scored through the cache.

Every request runs through the pages that serve: int8 ones where the directory's attention is quantized. lm_eval looks
for no plugins, so its command line starts here, with its own options:

    python -m faquant.evaluation.harness --model faquant --model_args pretrained=DIR --tasks …

In Python, importing this module is enough for `lm_eval.simple_evaluate(model="faquant", …)`. It needs faquant[lm-eval].
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
from ..kernels.arrays import Floats
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
    raise ImportError(f"The harness is not usable here ({error}). Get it by: pip install 'faquant[lm-eval]'") from error

MAX_GEN_TOKS = 256  # where a task does not say, as the harness's own models have it
AUTO_BATCH = 16
_ROWS = 128
_CHUNK = 1024
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1}  # in some tasks; SamplingParams has no words for other values

_log = logging.getLogger(__name__)

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""The texts (None: part of a rolling window), and the token ids of context and continuation."""


@register_model("faquant")
class FaquantLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A float or quantized directory as a model of the harness.

    Args:
        pretrained: the directory.
        max_length: tokens of context, at most the model's own (where RoPE is scaled, the scaled one); None: all.
        max_gen_toks: bound on an answer's tokens where the task names none.
        batch_size: how many answers are decoded together. Likelihoods are taken one by one, sharing common beginnings.
        add_bos_token: whether prompts get the tokenizer's special tokens; None: as the tokenizer says.
        prefix_token_id: what stands before a text without context; None: BOS, else EOS.
        enable_thinking: given to the chat template, if not None.
        think_end_token: only what follows it in an answer counts.
        device, max_batch_size: the harness passes them, cuda:0 unless told otherwise; this runs on the CPU anyway.

    Raises:
        UsageError: an argument makes no sense for this model.
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
            raise UsageError(f"max_length must be from 2 to the model's context of {limit} tokens, not {max_length}.")
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
            raise UsageError(f"{self.pretrained} names no EOS token, which the harness needs.")
        return next((token for token in ends if self.tokenizer.token_text(token) == name), ends[0])

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        return self.eot_token_id if self._prefix is None else self._prefix

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests tells tokenizers apart by."""
        return str(self.pretrained.resolve()).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results beside the model's name."""
        schemes = self.llm.model.schemes
        return {"layers": len(schemes), "layers_with_int8_cache": sum(scheme is not None for scheme in schemes)}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of `string`; one that is written with its BOS already gets no second one."""
        if add_special_tokens is None:
            written = has_bos_prefix(string, self.tokenizer.token_text(self.prefix_token_id))
            add_special_tokens = False if written else self._add_special
        return self.tokenizer.encode(string, True if add_special_tokens is None else add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation; without a generation prompt its last message stays open, to be continued."""
        try:
            text = self.tokenizer.render_chat(chat_history, add_generation_prompt, variables=self._template_variables)
        except UsageError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) in (0, len(chat_history)):
                raise
            _log.warning("The chat template refuses the system message; it is left out.")
            return self.apply_chat_template(others, add_generation_prompt)
        if add_generation_prompt:
            return text
        content = chat_history[-1]["content"]
        start, whole = text.rindex(content.strip()), content.lstrip()  # some templates strip, some do not
        return text[: start + len(whole if text.startswith(whole, start) else content.strip())]

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation in nats, and whether it is what greedy decoding would give."""
        self._check(requests)
        # As the harness's own: a continuation is never cut, its context on the left.
        sequences = [(context + continuation)[-self.max_length - 1 :] for _, context, continuation in requests]
        cache = _SequenceCache(self.llm.model, max(map(len, sequences), default=1))
        results: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(requests)), key=sequences.__getitem__)  # neighbors begin alike
        for index in tqdm(order, desc="Running loglikelihood requests", disable=disable_tqdm):
            texts, _, continuation = requests[index]
            tokens = sequences[index][:-1]
            results[index] = self._score(cache.hidden(tokens, len(tokens) - len(continuation)), continuation)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, results[index])
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood in nats of each whole text, in windows of max_length where it is longer."""
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
        """An answer to each prompt, which ends before the first of its stop strings."""
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
            raise UsageError(f"max_gen_toks ({max_tokens}) leaves no room in the context of {self.max_length} tokens.")
        chosen = {name: wanted.pop(name) for name in _SAMPLING if name in wanted}
        unknown = {name: value for name, value in wanted.items() if _NEUTRAL.get(name) != value}
        if unknown:
            raise UsageError(f"The task asks for {unknown} in generation_kwargs, which faquant does not do.")
        ids = [maybe_truncate(self.tok_encode(prompt), max_tokens, self.max_length)[0] for prompt in prompts]
        # Stop strings count in the answer only, not in the thoughts before it.
        stop = () if self._think_end else tuple(until)
        if greedy:
            done = self.llm.generate(ids, SamplingParams(temperature=0.0, max_tokens=max_tokens, stop=stop))
        else:  # each with a seed of its own, drawn from the generator that the harness seeds
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
        """What counts of an answer `text` of tokens `ids`: no thoughts, and nothing from a stop string on."""
        special = self.tokenizer.special_token_ids
        if self._think_end:
            text = self.tokenizer.decode(ids, skip_special_tokens=False)
        elif place := [
            at for at, token in enumerate(ids) if token in special and self.tokenizer.token_text(token) in until
        ]:
            text = self.tokenizer.decode(ids[: place[0]])  # a stop string that decoding leaves out
        counted: str = postprocess_generated_text(text, until, self._think_end)
        return counted

    def _check(self, requests: Sequence[TokenRequest]) -> None:
        """Refuse before hours of work what cannot be scored."""
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

    def _score(self, hidden: Floats, continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of n tokens after hidden states [n, hidden], and whether each is the likeliest."""
        total, greedy = 0.0, True
        for row in range(0, len(continuation), _ROWS):  # a vocabulary's logits at each of thousands of tokens are big
            scores = torch.from_numpy(self.llm.model.decoder.logits(hidden[row : row + _ROWS])).log_softmax(-1)
            following = torch.tensor(continuation[row : row + _ROWS])
            total += float(scores.gather(1, following[:, None]).sum(dtype=torch.float64))
            greedy = greedy and bool((scores.argmax(-1) == following).all())
        if not math.isfinite(total):
            raise CheckpointError(f"{self.pretrained}: the logits are not finite. Its weights or scales are damaged.")
        return total, greedy


class _SequenceCache:
    """Cache pages of one sequence at a time; the next sequence keeps the beginning that both have in common."""

    def __init__(self, model: Model, capacity: int) -> None:
        self._model = model
        count = -(-capacity // PAGE_SIZE)
        self._decoder = PagedDecoder(model.decoder, model.make_pages(count, PAGE_SIZE), model.backend)
        self._table = np.arange(count)
        self._held: list[int] = []

    def hidden(self, tokens: list[int], first: int) -> Floats:
        """Hidden states [len(tokens) - first, hidden] of `tokens` from number `first` on."""
        rope = Rope(self._model.config, len(tokens))
        start = min(first, _common(self._held, tokens))
        if self._model.config.rope.rope_type == "dynamic":
            start = 0  # its keys depend on the sequence's length
        states = []
        for at in range(start, len(tokens), _CHUNK):
            part = np.array(tokens[at : at + _CHUNK], np.int64)
            state = self._decoder.run([Chunk(part, at, self._table, rope)])
            states.append(state[max(0, first - at) :])
        self._held = tokens
        return np.concatenate(states)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def main() -> int:
    """lm_eval's own command line, with this model known to it; returns the exit status."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except FaquantError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())

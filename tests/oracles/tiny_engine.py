"""An engine over a random int8 decoder, whose cache pages are poisoned whenever somebody takes them."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from faquant.engine.engine import PAGE_SIZE, Engine
from faquant.engine.engine_config import EngineConfig
from faquant.engine.request import Completion
from faquant.model.load import Model
from faquant.sampling.params import SamplingParams
from faquant.text.chat_template import ChatTemplates
from faquant.text.tokenizer import Tokenizer
from oracles.pages import poison
from oracles.random_decoder import VOCABULARY, parts, tokens
from oracles.threads import set_threads

END = VOCABULARY - 1
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def tiny_tokenizer() -> Tokenizer:
    """Each token is a letter, the last one ends an answer."""
    letters = [chr(ord("A") + number) for number in range(VOCABULARY - 1)]
    backend = Backend(models.WordLevel({letter: index for index, letter in enumerate([*letters, "<end>"])}, "A"))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, {"eos_token": "<end>"}, [END], None, ChatTemplates({}, Path()))


def tiny_model(kind: str = "llama", scheme: str = "default") -> Model:
    decoder, schemes = parts(kind, scheme)
    return Model(decoder.config, decoder, schemes, decoder.config.max_position)


class TinyEngine(Engine):
    """Takes how many pages it has, and checks itself after every step."""

    def __init__(
        self, kind: str = "llama", scheme: str = "default", pages: int | None = None, **options: object
    ) -> None:
        model = tiny_model(kind, scheme)
        if pages is not None:
            each = sum(layer.bytes_per_token for layer in model.make_pages(1, PAGE_SIZE))
            options["kv_cache_memory"] = pages * PAGE_SIZE * each
        options.setdefault("max_num_seqs", 8)
        super().__init__(model, tiny_tokenizer(), EngineConfig(**options))  # type: ignore[arg-type]
        pool = self._scheduler.pool
        take, stores = pool.take, self._decoder.pages

        def take_poisoned(count: int) -> list[int]:
            pages = take(count)
            for store in stores:
                poison(store, pages)
            return pages

        pool.take = take_poisoned  # type: ignore[method-assign]

    def step(self) -> list[object]:  # type: ignore[override]
        outputs = super().step()
        self.check_integrity()
        return outputs  # type: ignore[return-value]

    def run(self) -> None:
        while self.has_work:
            self.step()


@dataclass(frozen=True)
class Asked:
    """A request as tests compare it."""

    prompt: tuple[int, ...]
    params: SamplingParams
    index: int = 0

    def alone(self, kind: str = "llama", scheme: str = "default") -> Completion:
        """Answered with nothing beside it, no page used twice, and the prompt in one piece, by one thread."""
        set_threads(1)
        engine = TinyEngine(kind, scheme, max_num_seqs=1, max_num_batched_tokens=4096, enable_prefix_caching=False)
        request = engine.add(self.prompt, self.params)[self.index]
        engine.run()
        return request.completion()


def prompt(length: int, seed: int = 0, shared: int = 0) -> tuple[int, ...]:
    """Random tokens, the first `shared` of which are the same in all prompts."""
    return (*tokens(shared, seed=7).tolist(), *tokens(length, seed=100 + seed).tolist())[:length]


def same(got: Completion, expected: Completion) -> None:
    """Assert equality except for cached_tokens; logprobs must be equal to the last bit."""
    assert replace(got, cached_tokens=0) == replace(expected, cached_tokens=0)


@cache
def alone(asked: Asked, kind: str = "llama", scheme: str = "default") -> Completion:
    return asked.alone(kind, scheme)

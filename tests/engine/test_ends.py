"""Where an answer ends: stop tokens, stop strings, the model's own end tokens."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from faquant.engine.request import Request
from faquant.model.rope import Rope
from faquant.sampling.params import SamplingParams
from faquant.sampling.sampler import Sampler
from faquant.text.chat_template import ChatTemplates
from faquant.text.tokenizer import Tokenizer
from oracles.random_decoder import VOCABULARY
from oracles.tiny_engine import END, GREEDY, Asked, TinyEngine, alone, prompt, tiny_model


def test_end_tokens_that_have_no_logits() -> None:
    """Some models' configs name them; min_tokens masks end tokens."""
    engine = TinyEngine()
    engine.tokenizer.eos_token_ids = (END, VOCABULARY + 7)
    (request,) = engine.add(prompt(5), SamplingParams(temperature=0, max_tokens=5, min_tokens=2))
    engine.run()
    assert request.finish_reason in ("stop", "length")


def test_a_stop_string_that_only_the_end_completes() -> None:
    """A byte token waits for the bytes that might follow; when none do, its text is final."""
    backend = Backend(models.WordLevel({"A": 0, "B": 1, "<0x0A>": 2, "</s>": 3}, "A"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer(backend, {"eos_token": "</s>"}, [3], None, ChatTemplates({}, Path()))
    rope = Rope(tiny_model().config)
    for answer, kept in (([0, 2], [0, 2]), ([0, 2, 3], [0, 2])):
        params = SamplingParams(temperature=0, max_tokens=len(kept), stop=("\n",))
        sampler = Sampler(params, [0], vocab_size=4, end_token_ids=[3])
        request = Request(0, [0], tokenizer, sampler, rope)
        for token in answer:
            if request.finish_reason is None:
                request.accept([token])
        completion = request.completion()
        assert (completion.text, completion.finish_reason, completion.stop_reason) == ("A", "stop", "\n")


def test_stop_tokens_end_an_answer_and_say_so() -> None:
    free = alone(Asked(prompt(30), GREEDY))
    wanted = free.token_ids[3]
    engine = TinyEngine()
    (request,) = engine.add(prompt(30), replace(GREEDY, stop_token_ids=(wanted,)))
    engine.run()
    answer = request.completion()
    assert (answer.finish_reason, answer.stop_reason) == ("stop", wanted)
    assert answer.token_ids == free.token_ids[: free.token_ids.index(wanted)]


def test_ends() -> None:
    """The model's own end token is not part of the answer."""
    for seed in range(40):
        params = SamplingParams(temperature=1.5, seed=seed, max_tokens=60)
        engine = TinyEngine()
        (request,) = engine.add(prompt(5), params)
        engine.run()
        answer = request.completion()
        if answer.finish_reason == "stop":
            assert answer.stop_reason is None
            assert END not in answer.token_ids
            assert len(answer.text) == len(answer.token_ids) < 60
            return
    raise AssertionError("no answer ended by itself")

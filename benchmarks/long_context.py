"""Long contexts: 128K positions through the engine, decode speed by depth with int8 and bfloat16 caches, and needles in
haystacks.

python benchmarks/long_context.py [--float DIR] [--int8 DIR] [--length 131072] [--layers 2] [--depths 1024 … 131072]
                                  [--needles 1024 2048 4096 8000] [--threads N] [--json FILE]

The first two parts use random weights with LLaMA-3.1's head_dim, query group and RoPE (llama3, then yarn), one of its
eight key/value heads, and a few layers, because they test positions, memory and the speed of the cache. A prompt of
full length is processed in chunks, and again from the prefix cache, which must return the same logprobs to the last
bit. Needles run on the demo model, in each third of the text, with an int8 and a bfloat16 cache of the quantized model
and with the float model.
"""

import argparse
import time
from functools import partial
from random import Random

import numpy as np
from end_to_end import add_models, models
from soak import resident
from timing import finish, seconds, start

from faquant import LLM, SamplingParams
from faquant.bench.speed import Sequences
from faquant.checkpoint.model_config import parse_config
from faquant.engine.engine import Engine
from faquant.engine.engine_config import EngineConfig
from faquant.evaluation.texts import builtin_texts
from faquant.kernels import _C
from faquant.kernels.arrays import Floats
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.modules import DynamicLinear
from faquant.kernels.scheme import AttentionScheme
from faquant.model.decoder import build_decoder
from faquant.model.load import Model
from faquant.text.tokenizer import Tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
ANSWER = 16
ROUNDS, PAUSE = 5, 0.05
STREAM_BYTES = 256 << 20
PLACES = (0.1, 0.5, 0.9)
NEEDLE = "\n\nThe secret number of the warehouse is {}.\n\n"


def random_model(rope: dict[str, object], layers: int, length: int, vocabulary: int) -> Model:
    """An int8 model with 4 query heads and one key/value head of 128 channels."""
    config = parse_config(
        {
            "model_type": "llama",
            "vocab_size": vocabulary,
            "num_hidden_layers": layers,
            "max_position_embeddings": length,
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "rope_theta": 500000.0,
            "rope_scaling": rope,
        }
    )
    generator = np.random.default_rng(0)

    def tensor(name: str) -> Floats:
        if name.endswith("embed_tokens.weight"):
            return generator.standard_normal((vocabulary, config.hidden_size), np.float32)
        return np.ones(config.hidden_size, np.float32)

    def linear(name: str) -> DynamicLinear:
        n, k = config.linear_shape(name)
        weight = generator.integers(-127, 128, (n, k), np.int8)
        return DynamicLinear(weight, np.full(n, 1 / (73 * k**0.5), np.float32))

    decoder = build_decoder(config, CpuBackend(), tensor, linear, lambda name: False)
    scheme = AttentionScheme(num_heads=4, num_kv_heads=1, head_dim=128, rotation_block=128)
    return Model(config, decoder, [scheme] * layers, length)


def whole_length(name: str, model: Model, tokenizer: Tokenizer, length: int) -> dict[str, object]:
    """Process a prompt of full length twice, the second time from the prefix cache, and answer."""
    engine = Engine(model, tokenizer, EngineConfig(max_num_seqs=1))
    random = Random(0)
    prompt = [random.randrange(model.config.vocab_size) for _ in range(length - ANSWER)]
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, logprobs=5)
    answers, taken, before = [], [], resident()
    for _ in range(2):
        begin = time.perf_counter()
        (request,) = engine.add(prompt, params)
        while engine.has_work:
            engine.step()
        taken.append(time.perf_counter() - begin)
        answers.append(request.completion())
    same = answers[0].logprobs == answers[1].logprobs and answers[0].token_ids == answers[1].token_ids
    cache, grown = length * engine.bytes_per_token, resident() - before
    print(
        f"{name}, {length:,} positions: processed and answered in {taken[0]:.1f} s, again in {taken[1]:.2f} s with "
        f"{answers[1].cached_tokens:,} tokens from the prefix cache, {'the same bits' if same else 'OTHER BITS'}; "
        f"cache {cache / 2**20:.1f} MiB as planned, memory grew by {grown / 2**20:.1f} MiB",
        flush=True,
    )
    if not same:
        raise SystemExit("the prefix cache changed an answer")
    return {"rope": name, "length": length, "seconds": taken, "cache_bytes": cache, "grown": grown, "same": same}


def decode_by_depth(model: Model, depths: list[int], threads: int) -> list[dict[str, object]]:
    """Tokens per second of one sequence, int8 and bfloat16, with random cache contents."""
    words = np.ones(STREAM_BYTES // 8, np.int64)
    print(f"\n{'depth':>10}{'int8':>10}{'bfloat16':>10}{'ratio':>8}   tokens a second, {len(model.schemes)} layers")
    rows: list[dict[str, object]] = []
    for depth in depths:
        systems = {"int8": Sequences(model), "bfloat16": Sequences(model, "bfloat16")}
        for system in systems.values():
            system.prepare_random(depth)
        calls = {name: partial(system.decode, 16) for name, system in systems.items()}
        # Read all memory before each timing, to clear the CPU caches.
        times = seconds({**calls, "stream": lambda: _C.read_all(words, threads=threads)}, ROUNDS, PAUSE, 1)
        rates = {name: 16 / times[name] for name in calls}
        rows.append({"depth": depth, "tokens_per_second": rates})
        ours, other = rates["int8"], rates["bfloat16"]
        print(f"{depth:10,}{ours:10.0f}{other:10.0f}{ours / other:8.2f}", flush=True)
    return rows


def needles(systems: dict[str, LLM], lengths: list[int]) -> list[dict[str, object]]:
    """How many of the numbers hidden in a long text each system finds."""
    tokenizer = next(iter(systems.values())).tokenizer
    filler = tokenizer.encode(builtin_texts()["prose"] * 8, add_special_tokens=False)
    question = tokenizer.encode(NEEDLE.split(" {}")[0], add_special_tokens=False)
    print(f"\n{'needles':>10}" + "".join(f"{name:>18}" for name in systems))
    rows: list[dict[str, object]] = []
    for length in lengths:
        found = dict.fromkeys(systems, 0)
        for number, place in enumerate(PLACES):
            secret = str(Random(length + number).randrange(10_000, 100_000))
            needle = tokenizer.encode(NEEDLE.format(secret), add_special_tokens=False)
            space = length - len(needle) - len(question) - 8
            begin = int(space * place)
            prompt = [*filler[:begin], *needle, *filler[begin:space], *question]
            for name, llm in systems.items():
                (answer,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8))
                found[name] += secret in answer.text
        rows.append({"length": length, "found": found, "of": len(PLACES)})
        print(f"{length:10,}" + "".join(f"{f'{count} of {len(PLACES)}':>18}" for count in found.values()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--length", type=int, default=131_072)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="*", default=[1024, 4096, 16_384, 65_536, 130_000])
    parser.add_argument("--needles", type=int, nargs="*", default=[1024, 2048, 4096, 8000])
    arguments = start(parser)
    source, int8, _ = models(arguments)
    tokenizer = Tokenizer.from_directory(source)
    found: dict[str, object] = {}
    made = {
        name: random_model(rope, arguments.layers, arguments.length, 512)
        for name, rope in (("llama3", LLAMA3), ("yarn", YARN))
    }
    depths = [depth for depth in arguments.depths if depth < arguments.length]
    found["decode"] = decode_by_depth(made["llama3"], depths, arguments.threads)
    found["whole"] = [whole_length(name, model, tokenizer, arguments.length) for name, model in made.items()]
    if arguments.needles:
        systems = {
            "int8 cache": LLM(int8),
            "bfloat16 cache": LLM(int8, kv_cache_dtype="bfloat16"),
            "float model": LLM(source),
        }
        found["needles"] = needles(systems, arguments.needles)
    finish(arguments, [found])


if __name__ == "__main__":
    main()

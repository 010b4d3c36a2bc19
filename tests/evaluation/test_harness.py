"""lm-evaluation-harness scores the int8 cache, compared with its own tasks, its HF model, and direct computation."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="make test-harness installs it")
from lm_eval import simple_evaluate
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from faquant.errors import CheckpointError, UsageError
from faquant.evaluation import harness
from faquant.evaluation.divergence import window_logits
from faquant.evaluation.harness import FaquantLM
from faquant.model.load import load
from faquant.sampling.params import SamplingParams
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import END, START, STOP, TEMPLATE, VOCAB_SIZE, write_tokenizer

pytestmark = pytest.mark.harness

CONTEXT = 192
LONG = "It was the best of times, it was the worst of times. " * 6
PAIRS = [
    ("The sky is", " blue"),
    ("The sky is ", "blue"),
    ("The sky is", " bluf"),
    ("The sky is", " b"),
    ("", "No context"),
    (START + "The sky", " is"),
    ("The sky is not", " blue"),
    (LONG, " So it was."),
    ("The sky is", " blue"),
]


@pytest.fixture(scope="module")
def quantized(directories: Path) -> FaquantLM:
    return FaquantLM(str(directories / "default"))


@pytest.fixture(scope="module")
def source(directories: Path) -> FaquantLM:
    return FaquantLM(str(directories / "float"))


@pytest.fixture(scope="module")
def reference(directories: Path) -> HFLM:
    """The harness's own model of the float directory."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directories / "float" / "tokenizer.json"),
        bos_token=START,
        eos_token=STOP,
        chat_template=TEMPLATE,
    )
    return HFLM(AutoModelForCausalLM.from_pretrained(directories / "float"), tokenizer=tokenizer, device="cpu")


def requests(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=arguments) for arguments in args]


def expected(directory: Path, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The score by definition: one run over the whole sequence."""
    tokens = torch.tensor((context + continuation)[-CONTEXT - 1 :])
    scores = window_logits(load(directory), tokens[:-1]).double().log_softmax(-1)[-len(continuation) :]
    following = torch.tensor(continuation)
    return float(scores[range(len(continuation)), following].sum()), bool((scores.argmax(-1) == following).all())


@pytest.mark.parametrize("kind", ["float", "default", "static"])
def test_likelihoods_are_those_of_one_run_through_the_pages(directories: Path, kind: str) -> None:
    model = FaquantLM(str(directories / kind))
    scores = model.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(PAIRS, scores, strict=True):
        spaces = len(context) - len(context.rstrip())
        before = list(model.tok_encode(context.rstrip())) if context else [model.tokenizer.bos_token_id]
        wanted = expected(directories / kind, before, model.tok_encode(" " * spaces + continuation))
        assert score == pytest.approx(wanted[0], rel=1e-5)
        assert greedy == wanted[1]
    assert model.get_model_info() == {"layers": 3, "layers_with_int8_cache": 0 if kind == "float" else 3}


def test_keys_that_depend_on_the_length_are_not_shared(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    tiny_model("llama2", tmp_path, vocab_size=VOCAB_SIZE, max_position_embeddings=16, rope_parameters=rope)
    write_tokenizer(tmp_path)
    model = FaquantLM(str(tmp_path))
    assert model.max_length == 64
    scores = model.loglikelihood(requests(*(("The sky is", " blue" * n) for n in (1, 4))), disable_tqdm=True)
    for n, (score, _) in zip((1, 4), scores, strict=True):
        context, continuation = model.tok_encode("The sky is"), model.tok_encode(" blue" * n)
        assert score == pytest.approx(expected(tmp_path, context, continuation)[0], rel=1e-5)


def test_the_float_directory_scores_as_the_harness_itself_does(source: FaquantLM, reference: HFLM) -> None:
    assert (source.max_length, source.eot_token_id, source.prefix_token_id) == (
        reference.max_length,
        reference.eot_token_id,
        reference.prefix_token_id,
    )
    for ours, theirs in zip(
        source.loglikelihood(requests(*PAIRS)), reference.loglikelihood(requests(*PAIRS)), strict=True
    ):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-3)
        assert ours[1] == theirs[1]
    texts = requests(("Short.",), (LONG,), ("Another one.",))
    assert source.loglikelihood_rolling(texts) == pytest.approx(reference.loglikelihood_rolling(texts), abs=1e-3)
    prompts = requests(*(("Once upon a time" * n, {"until": ["zzz"], "max_gen_toks": 12}) for n in (2, 30, 1)))
    assert source.generate_until(prompts) == reference.generate_until(prompts)


def test_greedy_is_told_from_likely(quantized: FaquantLM) -> None:
    prompt = quantized.tok_encode("The sky is")
    (answer,) = quantized.llm.generate([prompt], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    best = list(answer.token_ids)
    other = [*best[:-1], (best[-1] + 1) % 256]
    scores = quantized._loglikelihood_tokens([(None, prompt, best), (None, prompt, other), (None, prompt, best[:1])])
    assert [greedy for _, greedy in scores] == [True, False, True]


def test_every_block_of_rows_counts(quantized: FaquantLM, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(5, 72, generator=torch.Generator().manual_seed(2)).numpy()
    scores = torch.from_numpy(quantized.llm.model.decoder.logits(hidden)).log_softmax(-1)
    best = scores.argmax(-1)
    wrong = best.clone()
    wrong[0] = (best[0] + 1) % 256
    monkeypatch.setattr(harness, "_ROWS", 2)
    for tokens, greedy in ((best, True), (wrong, False)):
        total = float(scores[range(5), tokens].sum())
        assert quantized._score(hidden, tokens.tolist()) == (pytest.approx(total, rel=1e-5), greedy)


def test_prompts_begin_with_the_tokenizers_bos_once(tmp_path: Path) -> None:
    tiny_model("smollm", tmp_path, vocab_size=VOCAB_SIZE, max_position_embeddings=CONTEXT)
    write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    model, without = FaquantLM(str(tmp_path)), FaquantLM(str(tmp_path), add_bos_token=False, prefix_token_id=7)
    letters = without.tok_encode("Hi")
    assert len(letters) == 2
    assert model.tok_encode("Hi") == model.tok_encode(START + "Hi") == [model.prefix_token_id, *letters]
    assert model.tok_encode("Hi", add_special_tokens=False) == letters
    assert without.prefix_token_id == 7
    (score,) = without.loglikelihood(requests(("", "Hi")), disable_tqdm=True)
    assert score[0] == pytest.approx(expected(tmp_path, [7], letters)[0], rel=1e-5)


def test_a_changed_scale_in_the_checkpoint_changes_the_score(directories: Path, tmp_path: Path) -> None:
    sound = FaquantLM(str(directories / "static"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (directories / "static").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (weights,) = damaged.glob("*.safetensors")
    tensors = load_file(weights)
    scales = [name for name in tensors if "fa_k" in name and name.endswith("scale")]
    assert scales
    for name in scales:
        tensors[name] = tensors[name] * 4
    save_file(tensors, weights)
    before, after = (
        model.loglikelihood(requests(PAIRS[0]), disable_tqdm=True)[0][0] for model in (sound, FaquantLM(str(damaged)))
    )
    assert abs(before - after) > 1e-2


def test_answers_are_the_engines_in_the_order_of_the_requests(quantized: FaquantLM) -> None:
    prompts = ["The sky", "A much longer prompt about the sky", "x"]
    direct = [quantized.llm.generate(p, SamplingParams(temperature=0, max_tokens=10))[0].text for p in prompts]
    for batch in (1, 2):
        quantized.batch_size = batch
        assert quantized.generate_until(requests(*((p, {"max_gen_toks": 10}) for p in prompts))) == direct
    middle = direct[0][4:6]
    (cut,) = quantized.generate_until(requests((prompts[0], {"until": [middle, ""], "max_gen_toks": 10})))
    assert cut == direct[0].split(middle)[0]


def test_sampling_is_the_harness_seeds(quantized: FaquantLM) -> None:
    wanted = requests(*[("The sky", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "num_beams": 1})] * 3)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(quantized.generate_until(wanted))
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 1  # repeated prompts get different samples


def test_special_tokens_and_thoughts_end_answers(quantized: FaquantLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tuple(quantized.tokenizer.encode(f"think stop</t> answer{END} more", False))
    stops = []

    def answer(prompts: Any, params: SamplingParams) -> list[Any]:
        stops.append(params.stop)
        return [SimpleNamespace(text=quantized.tokenizer.decode(ids), token_ids=ids)] * len(prompts)

    monkeypatch.setattr(quantized.llm, "generate", answer)
    asked = {"until": [END], "max_gen_toks": 9}
    assert quantized.generate_until(requests(("x", asked))) == ["think stop</t> answer"]
    monkeypatch.setattr(quantized, "_think_end", "</t>")
    assert quantized.generate_until(requests(("x", {**asked, "until": [END, "stop"]}))) == ["answer"]
    assert stops == [(END, STOP), ()]  # thoughts may hold a stop string


def test_the_harness_cache_is_filled_and_used(quantized: FaquantLM, tmp_path: Path) -> None:
    cached = CachingLM(quantized, str(tmp_path / "cache.db"))
    calls = {
        "loglikelihood": requests(*PAIRS[:2]),
        "loglikelihood_rolling": requests(("A text.",)),
        "generate_until": requests(("The sky", {"max_gen_toks": 4})),
    }
    for name, wanted in calls.items():
        first = getattr(quantized, name)(wanted)  # only the model fills it, by add_partial
        assert len(cached.dbdict) > 0
        cached.lm = None
        cached.lm = SimpleNamespace(**{name: None})
        assert getattr(cached, name)(wanted) == first
    quantized.set_cache_hook(type(quantized.cache_hook)(None))


def test_chat_templates(quantized: FaquantLM, reference: HFLM) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, "}]
    assert quantized.apply_chat_template(chat) == reference.apply_chat_template(chat)
    assert quantized.apply_chat_template(chat, False) == reference.apply_chat_template(chat, False)
    assert quantized.chat_template(True) == reference.chat_template(True) == TEMPLATE
    assert quantized.tokenizer_name.endswith("default")


def test_a_system_message_that_the_template_refuses_is_left_out(
    quantized: FaquantLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(messages: list[dict[str, str]], *_: Any, **__: Any) -> str:
        if messages[0]["role"] == "system":
            raise UsageError("no system messages")
        return messages[0]["content"]

    monkeypatch.setattr(quantized.tokenizer, "render_chat", render)
    user = {"role": "user", "content": "Hi"}
    assert quantized.apply_chat_template([{"role": "system", "content": "Be kind."}, user]) == "Hi"
    with pytest.raises(UsageError, match="no system"):
        quantized.apply_chat_template([{"role": "system", "content": "Be kind."}])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"max_length": 10**6}, "max_length"), ({"max_length": 1}, "max_length")],
)
def test_arguments_that_make_no_sense(directories: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FaquantLM(str(directories / "float"), **change)


def test_requests_that_cannot_be_scored(quantized: FaquantLM) -> None:
    with pytest.raises(UsageError, match=r"0 tokens of context.*The texts are"):
        quantized.loglikelihood(requests((" ", "x")))
    with pytest.raises(UsageError, match="0 to score"):
        quantized.loglikelihood(requests(("x", "")))
    with pytest.raises(UsageError, match="at most 192"):
        quantized.loglikelihood(requests(("x", LONG)))
    with pytest.raises(CheckpointError, match="more tokens"):
        quantized._loglikelihood_tokens([(None, [1], [VOCAB_SIZE])])
    with pytest.raises(UsageError, match="num_beams"):
        quantized.generate_until(requests(("x", {"num_beams": 4, "max_gen_toks": 9})))
    with pytest.raises(UsageError, match="no space"):
        quantized.generate_until(requests(("x", {"max_gen_toks": CONTEXT})))


def test_tasks_of_every_kind(directories: Path, reference: HFLM, tasks: Path) -> None:
    names = ["local_choice", "local_rolling", "local_answer"]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def evaluate(model: Any, arguments: Any = None) -> dict[str, Any]:
        found = simple_evaluate(model, arguments, tasks=names, task_manager=manager, bootstrap_iters=0)
        assert found is not None
        return dict(found)

    ours, theirs = evaluate("faquant", f"pretrained={directories / 'float'}"), evaluate(reference)
    for name in names:
        for metric, value in theirs["results"][name].items():
            wanted = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert ours["results"][name][metric] == wanted, (name, metric)
    quantized = evaluate("faquant", f"pretrained={directories / 'default'}")
    assert quantized["config"]["layers_with_int8_cache"] == 3
    perplexities = [found["results"]["local_rolling"]["word_perplexity,none"] for found in (ours, quantized)]
    assert perplexities[0] != perplexities[1]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=0.2)


def test_the_command_line(directories: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    # Reading the thousands of tasks that come with lm_eval takes half a minute.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    command = ["lm_eval", "--model", "faquant", "--tasks", "local_choice", "--include_path", str(tasks), "--model_args"]
    monkeypatch.setattr(sys, "argv", [*command, f"pretrained={directories / 'default'}"])
    assert harness.main() == 0
    assert "local_choice" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "pretrained=nowhere"])
    assert harness.main() == 1
    assert "nowhere" in capsys.readouterr().err


def test_the_harness_is_imported_only_where_its_tasks_run() -> None:
    folder = Path(harness.__file__).parents[1]
    files = [path for path in folder.rglob("*.py") if path.name != "harness.py"]
    assert len(files) > 50
    users = [path for path in files if "import lm_eval" in path.read_text() or "from lm_eval" in path.read_text()]
    assert [path.name for path in users] == ["lm_eval_tasks.py"]
    lines = users[0].read_text().splitlines()
    assert not [line for line in lines if line.startswith(("import lm_eval", "from lm_eval", "from .. import harness"))]

"""KL divergence, top-1 agreement and perplexity of a quantized model against its float source.

Windows of tokens without overlap run as prompts through real cache pages; every position is scored.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..kernels.arrays import Floats
from ..kernels.backend import Linear
from ..kernels.modules import DynamicLinear, FloatLinear, StaticLinear
from ..kernels.scheme import AttentionScheme
from ..model.load import Model
from .scores import Heads, Scores, score
from .streaming import Progress, Window, run

WINDOW = 1024
_SOURCE = ""


@dataclass(frozen=True)
class Divergence:
    """KL(float ‖ quantized) of the next-token distribution in nats, over `tokens` positions in `windows` windows.

    `top1` is the share of positions whose likeliest token is the same; perplexities are for the text's own next tokens,
    and their ratio is quantized over float. Errors are standard errors over the windows; None for a single window.
    """

    tokens: int
    windows: int
    kl_mean: float
    kl_error: float | None
    kl_p99: float
    kl_max: float
    top1: float
    top1_error: float | None
    perplexity_float: float
    perplexity: float
    perplexity_ratio: float
    perplexity_ratio_error: float | None

    @classmethod
    def of(cls, windows: Sequence[Scores]) -> "Divergence":
        """Over all positions of the windows."""
        whole = Scores.cat(windows)
        ratio = _perplexity(float((whole.loss - whole.loss_float).mean()))
        ratio_error = standard_error([scores.loss - scores.loss_float for scores in windows])
        return cls(
            tokens=len(whole.kl),
            windows=len(windows),
            kl_mean=float(whole.kl.mean()),
            kl_error=standard_error([scores.kl for scores in windows]),
            kl_p99=float(whole.kl.quantile(0.99)),
            kl_max=float(whole.kl.max()),
            top1=float(whole.same.double().mean()),
            top1_error=standard_error([scores.same.double() for scores in windows]),
            perplexity_float=_perplexity(float(whole.loss_float.mean())),
            perplexity=_perplexity(float(whole.loss.mean())),
            perplexity_ratio=ratio,
            perplexity_ratio_error=None if ratio_error is None else ratio * ratio_error,
        )

    def to_json(self) -> dict[str, float | None]:
        """As a flat object."""
        return asdict(self)


def standard_error(windows: Sequence[Tensor]) -> float | None:
    """Standard error of the mean over all values, from the variance of the windows' means; None for one window."""
    if len(windows) < 2:
        return None
    weights = torch.tensor([len(values) for values in windows], dtype=torch.float64)
    weights /= weights.sum()
    means = torch.stack([values.double().mean() for values in windows])
    scatter = (weights * (means - weights @ means)).square().sum()
    return float((scatter * len(windows) / (len(windows) - 1)).sqrt())


def variants(model: Model, source: Model, on_cpu: tuple[Model, Model] | None = None) -> dict[str, Model]:
    """The variants of the quantized `model` in which only its attention or only its linears are quantized, and both.

    If another tool or the recipe `mindie` folded something into v_proj, the scales of the attention do not fit the
    float weights, so there is no variant `attention`.

    Args:
        on_cpu: model and source on the CPU backend, whose weights can be read; None: they are.
    """
    parts: dict[str, Model] = {}
    quantized_attention = any(scheme is not None for scheme in model.schemes)
    quantized_linears = model.quant_type != "FLOAT"
    unknown = quantized_linears and model.metadata is None
    if quantized_attention and not (unknown and _values_are_folded(*(on_cpu or (model, source)))):
        parts["attention"] = Model(
            source.config, source.decoder, _unfolded(model), model.max_position, backend=source.backend
        )
    if quantized_linears:
        parts["linears"] = replace(model, schemes=[None] * model.config.num_layers, backend=source.backend)
    if quantized_attention and quantized_linears:
        parts["both"] = model
    return parts


def _values_are_folded(model: Model, source: Model) -> bool:
    """Whether the first layer's v_proj differs from the float one by more than 8-bit rounding."""
    plain = source.decoder.layers[0].v_proj
    if not isinstance(plain, FloatLinear):
        raise TypeError(f"the source must be a float model, not one with a {type(plain).__name__}")
    weight = plain.weight
    difference = _float_weight(model.decoder.layers[0].v_proj) - weight
    return bool(np.linalg.norm(difference) > 0.05 * np.linalg.norm(weight))


def _float_weight(linear: Linear) -> Floats:
    """The weight [n, k] that the linear multiplies its inputs by."""
    if isinstance(linear, FloatLinear):
        return linear.weight
    if isinstance(linear, DynamicLinear):
        scale = linear.scale
    elif isinstance(linear, StaticLinear):
        scale = linear.deq_scale / linear.input_scale
    else:
        raise TypeError(f"a {type(linear).__name__} has no weight to compare")
    multiplier = 1 if linear.input_multiplier is None else linear.input_multiplier
    return np.asarray(linear.weight * scale[:, None] * multiplier, np.float32)


def _unfolded(model: Model) -> list[AttentionScheme | None]:
    """The schemes for float weights, into which V's rotation is not folded."""
    block = model.metadata.v_block if model.metadata else 0
    return [None if scheme is None else replace(scheme, v_rotation_block=block) for scheme in model.schemes]


def compare(
    source: Model,
    candidates: Mapping[str, Model],
    tokens: Sequence[int],
    window: int = WINDOW,
    progress: Progress = lambda done, total: None,
) -> dict[str, Divergence]:
    """Run `tokens` in windows through the float `source` and every candidate.

    Raises:
        UsageError: there are fewer than two tokens, or the window exceeds a model's context.
    """
    models = {_SOURCE: source, **candidates}
    windows = cut(tokens, window, min(model.max_position for model in models.values()))
    streams = run(models, windows, progress=progress)
    results = score(Heads(models), _SOURCE, windows, streams)
    return {name: Divergence.of([scores[name] for scores in results]) for name in candidates}


def cut(tokens: Sequence[int], window: int, limit: int) -> list[Window]:
    """Split tokens into windows without overlap; a single last token is dropped.

    Raises:
        UsageError: there are fewer than two tokens, or the window is too short or exceeds the context of `limit`
            tokens.
    """
    if len(tokens) < 2:
        raise UsageError("The evaluation text has fewer than two tokens, so there is nothing to measure.")
    if window < 2:
        raise UsageError("A window of one token has no next token to measure; the model's context is too short.")
    if window > limit:
        raise UsageError(f"The evaluation window of {window} tokens exceeds the context of {limit} tokens.")
    ids = torch.tensor(tokens, dtype=torch.int64)
    return [Window(ids[start : start + window]) for start in range(0, len(ids), window) if len(ids) - start >= 2]


@torch.inference_mode()
def window_logits(model: Model, ids: Tensor, position: int = 0) -> Tensor:
    """float32 logits [tokens, vocab] of a window whose first token is at RoPE position `position`."""
    (x,) = run({_SOURCE: model}, [Window(ids, position)])[_SOURCE]
    return model.decoder.logits(model.decoder.norm(x))


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))

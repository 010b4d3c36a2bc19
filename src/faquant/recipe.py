"""Recipe: which parts of a model are quantized, and how. Validated once; checkpoints contain its JSON."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UsageError

MAX_RECIPE_BYTES = 1 << 20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AttentionRecipe(_Frozen):
    """How q, k, v and P are quantized.

    Attributes:
        kv_scale: K's and V's scales: one per token and head in the cache page (`token`), or calibrated, one per channel
            (`channel`) or per head (`head`).
        q_scale: dynamic per token and head (`token`), or calibrated per head (`head`).
        center: subtract the center of each of K's channels before quantization.
        equalize: divide each of K's channels by a factor, and multiply q's by it.
        rotate: rotate K and q by signs and a Hadamard transform.
        rotate_v: rotate each head of V by a Hadamard transform, folded into v_proj and o_proj.
        zero_points: calibrated scales of K and V have zero points.
        p: the integer type of P: `int8x2` (two signed bytes, up to 32,639), `int16` (up to 32,767, in checkpoints of
            development versions), `uint8`, or `int8` with an unquantized sum, as in MindIE.
    """

    kv_scale: Literal["token", "channel", "head"] = "token"
    q_scale: Literal["token", "head"] = "token"
    center: bool = True
    equalize: bool = True
    rotate: bool = True
    rotate_v: bool = True
    zero_points: bool = False
    p: Literal["int16", "int8x2", "uint8", "int8"] = "int8x2"


class LinearRecipe(_Frozen):
    """How the linears are quantized: weights to int8 with one scale per output channel, inputs to 8 or 16 bits.

    Attributes:
        activation: a dynamic scale and zero point per token (`token_asymmetric`), a dynamic scale per token (`token`),
            or a calibrated scale and zero point (`tensor`).
        rotate: rotate the linears' inputs in Hadamard blocks at run time (`inputs`; o_proj's input has V's rotation),
            or rotate the residual stream (R1), folded into the weights, without cost at run time (`folded`).
        equalize: scale the input channels of q, k, v, gate, up and down_proj and of the head to minimize the loss of
            inputs and weights, folded into norms, up_proj and weights; with `folded`, only down_proj's.
        rounding: of weights, to the nearest step (`nearest`), or with error compensation from the calibration (`gptq`).
        float_layers: patterns of module names that stay float, such as `*.mlp.down_proj` or `lm_head`.
        wide_inputs: patterns of module names whose inputs have 16 bits instead of 8 and no zero point, such as `*`.
    """

    activation: Literal["token_asymmetric", "token", "tensor"] = "token_asymmetric"
    rotate: Literal["inputs", "folded", "none"] = "inputs"
    equalize: bool = True
    rounding: Literal["nearest", "gptq"] = "gptq"
    float_layers: tuple[str, ...] = ()
    wide_inputs: tuple[str, ...] = ()

    def is_float(self, name: str) -> bool:
        """Whether the module `name` (as in the checkpoint, without `.weight`) stays float."""
        return any(fnmatchcase(name, pattern) for pattern in self.float_layers)

    def is_wide(self, name: str) -> bool:
        """Whether the inputs of the module `name` have 16 bits, unless it is float."""
        return any(fnmatchcase(name, pattern) for pattern in self.wide_inputs)


class Recipe(_Frozen):
    """The settings of `faquant quantize`. A part that is None stays float.

    Attributes:
        format: of the checkpoint: `faquant`, or `msmodelslim` for MindIE, which supports fewer settings.
    """

    name: str = Field(pattern=r"^[\w .+-]{1,64}$")
    format: Literal["faquant", "msmodelslim"] = "faquant"
    attention: AttentionRecipe | None = AttentionRecipe()
    linear: LinearRecipe | None = LinearRecipe()

    def quantized(self, linears: Iterable[str]) -> frozenset[str]:
        """The checkpoint names of the linears that are quantized."""
        linear = self.linear
        return frozenset(() if linear is None else (name for name in linears if not linear.is_float(name)))

    @model_validator(mode="after")
    def _sound(self) -> "Recipe":
        attention, linear = self.attention, self.linear
        if attention is None and linear is None:
            raise ValueError("attention and linear are both null, so there is nothing to quantize")
        if attention is not None and attention.zero_points and attention.kv_scale == "token":
            raise ValueError("attention.zero_points needs calibrated scales: attention.kv_scale 'channel' or 'head'")
        if self.format == "msmodelslim":
            if attention is None or linear is None or not _fits_msmodelslim(attention, linear):
                raise ValueError(
                    "the format 'msmodelslim' requires attention {kv_scale: head, q_scale: head, p: int8, and center, "
                    "equalize and rotate false} and linear {activation: tensor, rotate: none, wide_inputs: []}; with "
                    "outlier suppression, attention.rotate_v and linear.equalize are true; without it, both are false "
                    "and rounding is nearest"
                )
            return self
        for only, there in (
            ("calibrated activations (linear.activation 'tensor')", linear and linear.activation == "tensor"),
            ("attention.q_scale 'head'", attention and attention.q_scale == "head"),
            ("attention.p 'int8'", attention and attention.p == "int8"),
        ):
            if there:
                raise ValueError(f'{only} requires "format": "msmodelslim"')
        return self


def _fits_msmodelslim(attention: AttentionRecipe, linear: LinearRecipe) -> bool:
    smooth = linear.equalize
    return (
        attention == _MINDIE_ATTENTION.model_copy(update={"rotate_v": smooth})
        and linear.activation == "tensor"
        and linear.rotate == "none"
        and not linear.wide_inputs
        and (smooth or linear.rounding == "nearest")
    )


_MINDIE_ATTENTION = AttentionRecipe(
    kv_scale="head",
    q_scale="head",
    center=False,
    equalize=False,
    rotate=False,
    rotate_v=False,
    p="int8",
)

_MINDIE_FLOAT = ("*.mlp.down_proj", "lm_head")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="default"),
        Recipe(name="precise", linear=LinearRecipe(wide_inputs=("*",))),
        Recipe(name="static", attention=AttentionRecipe(kv_scale="channel")),
        Recipe(name="attention-only", linear=None),
        Recipe(
            name="portable",
            attention=AttentionRecipe(kv_scale="channel", center=False, equalize=False, rotate=False, zero_points=True),
            linear=LinearRecipe(activation="token", rotate="folded", float_layers=("lm_head",)),
        ),
        Recipe(
            name="mindie",
            format="msmodelslim",
            attention=_MINDIE_ATTENTION.model_copy(update={"rotate_v": True}),
            linear=LinearRecipe(activation="tensor", rotate="none", float_layers=_MINDIE_FLOAT),
        ),
        Recipe(
            name="mindie-plain",
            format="msmodelslim",
            attention=_MINDIE_ATTENTION,
            linear=LinearRecipe(
                activation="tensor", rotate="none", equalize=False, rounding="nearest", float_layers=_MINDIE_FLOAT
            ),
        ),
    )
}


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe by name or from a JSON file.

    Raises:
        UsageError: there is no such recipe, or the file is not a recipe.
    """
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    path = Path(name_or_path)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        raise UsageError(
            f"There is no recipe {name_or_path!r:.80}. Use one of {', '.join(RECIPES)}, or a JSON file with a recipe."
        )
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(f"{path} is larger than the limit of {MAX_RECIPE_BYTES} bytes for recipes.")
        return Recipe.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    except ValidationError as error:
        items = error.errors()[:3]
        faults = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'recipe'}: {item['msg']:.200}" for item in items)
        raise UsageError(f"{path} is not a recipe: {faults}.") from None

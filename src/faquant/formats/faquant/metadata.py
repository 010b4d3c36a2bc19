"""The content of `metadata.faquant` in the description of faquant's checkpoints."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...checkpoint.model_config import ModelConfig
from ...errors import CheckpointError
from ...kernels.scheme import MAX_INPUT_BLOCK, hadamard_block
from ...kernels.tables import ASYMMETRIC_INPUT_STEPS, INPUT_STEPS, WIDE_INPUT_STEPS
from ...recipe import AttentionRecipe, LinearRecipe, Recipe

ROTATED_TYPE = "FAQUANT_W8A8_DYNAMIC_ROTATED"
"""Type of a dynamic linear whose input is rotated at run time. Other loaders must not mistake it for W8A8_DYNAMIC."""

WIDE_TYPE = "FAQUANT_W8A16_DYNAMIC"
"""Type of a dynamic linear whose input has 16 bits."""

WIDE_ROTATED_TYPE = "FAQUANT_W8A16_DYNAMIC_ROTATED"
"""Type of a dynamic linear whose input is rotated at run time and has 16 bits."""

ASYMMETRIC_TYPE = "FAQUANT_W8A8_ASYMMETRIC_DYNAMIC"
"""Type of a dynamic linear whose input has a scale and a zero point per token."""

ASYMMETRIC_ROTATED_TYPE = "FAQUANT_W8A8_ASYMMETRIC_DYNAMIC_ROTATED"
"""The same with an input that is rotated at run time."""

ROTATED_TYPES = (ROTATED_TYPE, ASYMMETRIC_ROTATED_TYPE, WIDE_ROTATED_TYPE)
ASYMMETRIC_TYPES = (ASYMMETRIC_TYPE, ASYMMETRIC_ROTATED_TYPE)
WIDE_TYPES = (WIDE_TYPE, WIDE_ROTATED_TYPE)

INPUT_STEPS_BY_TYPE = {
    **dict.fromkeys(ASYMMETRIC_TYPES, ASYMMETRIC_INPUT_STEPS),
    **dict.fromkeys(WIDE_TYPES, WIDE_INPUT_STEPS),
}
"""DynamicTable.input_steps of types that determine it."""

SCALED_TYPE = "FAQUANT_W8A8_SCALED"
"""Type of a static linear whose input is multiplied by `pre_quant_scale` at run time."""

OWN_TYPES = (*ROTATED_TYPES, ASYMMETRIC_TYPE, WIDE_TYPE, SCALED_TYPE)
"""Types of linears that only faquant's format has."""

METADATA_KEY = "faquant"
"""The key of faquant's metadata in the description's metadata."""


def dynamic_type(rotated: bool, input_steps: float) -> str:
    """The type of a dynamic linear, whose inputs have these steps (DynamicTable)."""
    if input_steps == WIDE_INPUT_STEPS:
        return WIDE_ROTATED_TYPE if rotated else WIDE_TYPE
    if input_steps == ASYMMETRIC_INPUT_STEPS:
        return ASYMMETRIC_ROTATED_TYPE if rotated else ASYMMETRIC_TYPE
    return ROTATED_TYPE if rotated else "W8A8_DYNAMIC"


class Imported(BaseModel):
    """Where tensors come from that no recipe of faquant's has made.

    Attributes:
        format: the format that they were read from.
        p: the integer type of P, if the tables of attention are imported.
        input_steps: of imported linears with a scale per token (DynamicTable).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: str = Field(pattern=r"^[\w .+-]{1,64}$")
    p: Literal["int16", "int8"] = "int16"
    input_steps: float = INPUT_STEPS

    @model_validator(mode="after")
    def _has_kernel(self) -> "Imported":
        if self.input_steps not in (INPUT_STEPS, 127.5):
            raise ValueError(f"input_steps is {self.input_steps}, but must be {INPUT_STEPS} or 127.5")
        return self


class Metadata(BaseModel):
    """The part of the arithmetic that the tensors do not determine. Blocks are sizes of Hadamard blocks; 0: none.

    Attributes:
        recipe: what faquant has quantized; None: everything was imported.
        imported: None unless tensors were imported. Tables of attention are imported if the recipe has no attention.
        qk_block: on q and k after RoPE (R3), at run time.
        v_block: on each head of V (R2).
        v_folded: whether R2 is folded into v_proj and o_proj; otherwise it is applied at run time.
        hidden_block, down_block: on the inputs of q, k, v, gate, up and the head, and of down_proj (R4), at run time.
        residual_rotation: whether the residual stream is rotated (R1), folded into the weights.
        max_position: tokens of context that calibration covered; longer sequences are refused.
        model, calibration: sha256 of the float source's tensors (TensorFiles.fingerprint) and of the calibration's
            token ids; None if they are not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    recipe: Recipe | None = None
    imported: Imported | None = None
    qk_block: int = Field(default=0, ge=0)
    v_block: int = Field(default=0, ge=0)
    v_folded: bool = False
    hidden_block: int = Field(default=0, ge=0)
    down_block: int = Field(default=0, ge=0)
    residual_rotation: bool = False
    max_position: int = Field(gt=0)
    model: str | None = None
    calibration: str | None = None

    @model_validator(mode="after")
    def _agrees_with_recipe(self) -> "Metadata":
        if self.imported is None and (self.recipe is None or self.model is None or self.calibration is None):
            raise ValueError("recipe, model and calibration are missing, and nothing was imported")
        attention, linear = self.attention, self.linear
        for field, present, asked in (
            ("qk_block", self.qk_block, attention is not None and attention.rotate),
            ("v_block", self.v_block, attention is not None and attention.rotate_v),
            ("hidden_block", self.hidden_block, linear is not None and linear.rotate == "inputs"),
            ("down_block", self.down_block, linear is not None and linear.rotate == "inputs"),
            ("residual_rotation", self.residual_rotation, linear is not None and linear.rotate == "folded"),
        ):
            if bool(present) != asked:
                raise ValueError(f"{field} is {present!r}, which contradicts the recipe")
        return self

    @property
    def attention(self) -> AttentionRecipe | None:
        """The recipe of the attention; None: it is float or imported."""
        return self.recipe.attention if self.recipe else None

    @property
    def linear(self) -> LinearRecipe | None:
        """The recipe of the linears; None: they are float or imported."""
        return self.recipe.linear if self.recipe else None

    @property
    def name(self) -> str:
        """The recipe's name, or what was imported."""
        origin = f"imported from {self.imported.format}" if self.imported else ""
        return ", ".join(filter(None, (self.recipe.name if self.recipe else "", origin)))

    @property
    def input_blocks(self) -> dict[str, int]:
        """Hadamard block on the input of a quantized linear at run time, by the last part of its name; 0: none."""
        hidden = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"), self.hidden_block)
        return {**hidden, "o_proj": 0, "down_proj": self.down_block}

    def input_block(self, name: str) -> int:
        """The Hadamard block on the input of the linear `name`."""
        return self.input_blocks[name.rpartition(".")[2]]


def parse_metadata(raw: dict[str, Any], config: ModelConfig, source: str) -> Metadata:
    """Parse faquant's part of a description's metadata.

    Raises:
        CheckpointError: it contradicts itself or the model's shapes; `source` is its name in the error.
    """
    try:
        metadata = Metadata.model_validate_json(json.dumps(raw[METADATA_KEY]))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3])
        raise CheckpointError(f"{source}: metadata.faquant is invalid: {faults}.") from None
    block = hadamard_block(config.head_dim)
    folded = bool(metadata.v_block) and metadata.linear is not None
    for field, allowed in (
        ("qk_block", (0, block)),
        ("v_block", (0, block)),
        ("hidden_block", (0, hadamard_block(config.hidden_size, MAX_INPUT_BLOCK))),
        ("down_block", (0, hadamard_block(config.intermediate_size, MAX_INPUT_BLOCK))),
        ("v_folded", (folded,)),
    ):
        value = getattr(metadata, field)
        if value not in allowed:
            raise CheckpointError(
                f"{source}: metadata.faquant.{field} is {value}, but must be {' or '.join(map(str, allowed))} for this "
                "model and recipe. The description does not belong to this checkpoint."
            )
    if metadata.max_position > config.max_position:
        raise CheckpointError(
            f"{source}: metadata.faquant.max_position ({metadata.max_position}) exceeds the model's context of "
            f"{config.max_position} tokens."
        )
    return metadata

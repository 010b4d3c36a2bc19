"""The attention scheme of a layer in faquant's checkpoints."""

from ...checkpoint.model_config import ModelConfig
from ...errors import CheckpointError, UnsupportedError
from ...kernels.scheme import P_LEVELS, AttentionScheme
from ..checked import Checked
from ..kv_tables import StaticTable, scheme_of
from ..msmodelslim.attention import AttentionTables
from .metadata import Imported, Metadata


def read_scheme(checked: Checked, config: ModelConfig, layer: int, metadata: Metadata) -> AttentionScheme | None:
    """The scheme of one layer, or None if its attention is float.

    Raises:
        CheckpointError: tensors are missing or invalid, or contradict the recipe.
        UnsupportedError: q has zero points.
    """
    tables = AttentionTables(checked, config, f"model.layers.{layer}.self_attn.")
    if not tables.any():
        if metadata.attention is not None:
            raise CheckpointError(
                f"{tables.prefix} has no fa_* tensors, but the recipe quantizes every layer's attention."
            )
        return None
    with tables.consistent():
        if metadata.attention is None and metadata.imported is not None:
            return _imported(tables, config, metadata.imported)
        return _scheme(tables, config, metadata)


def _imported(tables: AttentionTables, config: ModelConfig, imported: Imported) -> AttentionScheme:
    """A scheme whose tables alone say what is static."""
    scales = {part: tables.scale(f"{part}.scale") for part in "qkv"}
    found = {
        part: None if scale is None else StaticTable(scale, tables.offset(f"{part}.offset"))
        for part, scale in scales.items()
    }
    # Only a kernel with calibrated q, K and V has P in 8 bits.
    return scheme_of(config, **found, p=imported.p if all(found.values()) else "int16")


def _scheme(tables: AttentionTables, config: ModelConfig, metadata: Metadata) -> AttentionScheme:
    attention = metadata.attention
    if attention is None:
        raise CheckpointError(f"{tables.prefix} has fa_* tensors, but the recipe in the metadata has no attention.")
    if tables.offset("q.offset") is not None:
        raise UnsupportedError(f"{tables.prefix}fa_q.offset is not zero; q is quantized symmetrically.")
    k_scale, v_scale = tables.scale("k.scale"), tables.scale("v.scale")
    center, equalizer = tables.maps("k.center"), tables.maps("k.equalizer", positive=True)
    trivial = equalizer is not None and bool((equalizer == 1).all())
    for name, there, asked in (
        ("fa_q.scale", tables.find("q.scale") is not None, attention.q_scale != "token"),
        ("fa_k.center", center is not None, attention.center),
        ("fa_k.equalizer", equalizer is not None and (attention.equalize or not trivial), attention.equalize),
    ):
        if there != asked:
            raise CheckpointError(
                f"{tables.prefix}{name} is {'there' if there else 'missing'}, which contradicts the recipe in the "
                "metadata."
            )
    dynamic = attention.kv_scale == "token"
    for part in "kv":
        found = tables.find(f"{part}.scale")
        if found is not None and not dynamic:
            per_head = tables.checked.files.shape(found)[-1] == 1
            if per_head != (attention.kv_scale == "head"):
                raise CheckpointError(
                    f"{found} contradicts the recipe in the metadata: kv_scale {attention.kv_scale!r}."
                )
    for part, scale in (("k", k_scale), ("v", v_scale)):
        if (scale is None) != dynamic:
            raise CheckpointError(
                f"{tables.prefix}fa_{part}.scale is {'missing' if scale is None else 'there'}, but the recipe in the "
                f"metadata says kv_scale {attention.kv_scale!r}."
            )
    return AttentionScheme(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        k_center=center,
        k_equalizer=equalizer,
        rotation_block=metadata.qk_block,
        rotation_sign=tables.sign(),
        v_rotation_block=0 if metadata.v_folded else metadata.v_block,
        q_scale=tables.scale("q.scale"),
        k_scale=k_scale,
        k_offset=tables.offset("k.offset"),
        v_scale=v_scale,
        v_offset=tables.offset("v.offset"),
        p_levels=P_LEVELS[attention.p],
        p_float16=attention.p == "int8",
        quantized_sum=not dynamic,
    )

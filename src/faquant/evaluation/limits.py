"""Thresholds above which results are pointed out."""

CLIPPED_NOTABLY = 1e-3
"""Share of values in a layer beyond their calibrated scales."""

FLOAT_DRIFT = 1e-4
"""KL in nats between a float model at two positions. RoPE's angles are float32: at position 100,000 they are exact to
0.01 radian, so float results change, too."""

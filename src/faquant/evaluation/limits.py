"""From when on a figure deserves a word of its own."""

CLIPPED_NOTABLY = 1e-3
"""Share of a layer's values beyond their calibrated scales."""

FLOAT_DRIFT = 1e-4
"""KL in nats between a float model at two positions. RoPE's angles are float32: at position 100,000 they are known to
0.01 radian, and there float moves too."""

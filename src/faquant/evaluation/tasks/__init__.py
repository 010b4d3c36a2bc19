"""Tasks: what people ask for beside KL. The float and the quantized model work on the same cases.

Two tasks are built in and need no download: `needle` and `calls`. All other names are those of lm-evaluation-harness,
whose data the user must have.
"""

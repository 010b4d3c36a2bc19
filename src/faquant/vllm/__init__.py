"""A plugin for vLLM: its engine serves the checkpoints that faquant reads, with faquant's kernels and cache pages. vLLM
finds `register` through the entry point `vllm.general_plugins`. See docs/vllm.md.

    vllm serve OUT                             # a checkpoint of faquant's format
    vllm serve DIR --quantization faquant      # of any other format that faquant reads
"""

import logging

VERSION = "0.32"
"""The minor version of vLLM that this plugin is made for. Its interfaces for plugins change with each one."""


def register() -> None:
    """Make `faquant` a quantization method of vLLM. May be called several times. With another version of vLLM, it only
    says so, and vLLM does not know the method."""
    from vllm import __version__

    if not __version__.startswith(f"{VERSION}."):
        logging.getLogger("vllm.faquant").error(
            "faquant's plugin needs vLLM %s, but this is vLLM %s: checkpoints of faquant cannot be served. Install "
            "vllm==%s.0, or a faquant for your vLLM; VLLM_PLUGINS can leave this plugin out.",
            VERSION,
            __version__,
            VERSION,
        )
        return
    from . import quantization  # noqa: F401 (registers what vLLM looks up)

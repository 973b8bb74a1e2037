"""The same training on another number of ranks: what DeepSpeed must save for it."""

from typing import Any

UNIVERSAL_CHECKPOINT_INFO = "universal_checkpoint_info"
"""DeepSpeed's own key; its converter refuses a ZeRO 1 or 2 checkpoint that lacks it."""


def universal_checkpoint_info(engine: Any) -> dict[str, Any]:
    """What a save must carry so that it can be converted: entries for the `client_state` of `engine.save_checkpoint`.

        engine.save_checkpoint(folder, tag=tag, client_state={**universal_checkpoint_info(engine), ...})

    Empty where DeepSpeed writes its own (tensor-parallel models, mixtures of experts): it would be overwritten.
    """
    from deepspeed.checkpoint.constants import UNIVERSAL_CHECKPOINT_VERSION_KEY, UNIVERSAL_CHECKPOINT_VERSION_VALUE

    if getattr(engine.module, UNIVERSAL_CHECKPOINT_INFO, None) is not None or getattr(engine, "has_moe_layers", False):
        return {}
    return {UNIVERSAL_CHECKPOINT_INFO: {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}}

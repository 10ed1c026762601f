"""Samplers by short name, made from the scheduler that a model was saved with."""

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from lit_insert.errors import InputError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

# Short name -> (diffusers class, what is set beside the model's own noise schedule).
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def scheduler_by_name(name: str, current: "SchedulerMixin") -> "SchedulerMixin":
    """Another sampler over the noise schedule of ``current``.

    Args:
        name: A key of `SCHEDULERS`.
        current: The scheduler that the model was trained and saved with.

    Raises:
        InputError: If the name is unknown, or the sampler cannot run the model's noise schedule (zero
            terminal SNR, Lin et al. 2024): it would silently start from a noise level the model never saw.
    """
    if name not in SCHEDULERS:
        near = difflib.get_close_matches(name, SCHEDULERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(SCHEDULERS)}"
        raise InputError(f"scheduler {name!r} is unknown; {hint}")
    import diffusers  # here, so that a command line can offer the names without it

    class_name, extra = SCHEDULERS[name]
    cls = getattr(diffusers, class_name)
    if current.config.get("rescale_betas_zero_snr") and not _takes_zero_snr(cls):
        able = [n for n, (c, _) in SCHEDULERS.items() if _takes_zero_snr(getattr(diffusers, c))]
        raise InputError(
            f"scheduler {name!r} cannot sample this model (zero terminal SNR); use one of {', '.join(able)}"
        )
    known = set(inspect.signature(cls).parameters)
    config = {key: value for key, value in current.config.items() if key in known}
    return cls.from_config(config, **extra)


def _takes_zero_snr(cls: type) -> bool:
    return "rescale_betas_zero_snr" in inspect.signature(cls).parameters

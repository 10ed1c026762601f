"""How a model is sampled: what a call, the instances, or their base may each say."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Self, TypeVar, get_args

from lit_insert.errors import InputError
from lit_insert.mifo.bounded import EndTokens
from lit_insert.mifo.guidance import GuidanceSettings
from lit_insert.mifo.regions import RefinementSettings

Settings = TypeVar("Settings")
CFG_PLUS_PLUS_SCALE = 0.6


@dataclass
class SynthesisSettings:
    """Defaults of a model; whatever a call names goes first.

    Args:
        num_inference_steps: Steps of DDIM.
        guidance_scale: Weight of the prompt (classifier-free guidance).
        end_tokens: Who sees the end token and the padding: "subjects", "everywhere" or "nowhere".
        separate_words: Keep the words of different subjects apart in the text encoder too, where there are masks.
        guidance: How latents are guided.
        refinement: How regions are refined.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    end_tokens: EndTokens = "subjects"
    separate_words: bool = False
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    refinement: RefinementSettings = field(default_factory=RefinementSettings)

    def __post_init__(self) -> None:
        if self.end_tokens not in get_args(EndTokens):
            raise InputError(f"end_tokens is {self.end_tokens!r}; use one of {', '.join(get_args(EndTokens))}")
        if self.num_inference_steps < 1:
            raise InputError("num_inference_steps must be at least 1")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From plain values, such as a file's.

        Raises:
            InputError: If a name is unknown or a value out of range.
        """
        return changed(cls(), given)

    def plain(self) -> dict[str, Any]:
        """As values for a file."""
        return asdict(self)


def changed(settings: Settings, given: Mapping[str, Any], path: str = "") -> Settings:
    """A copy of settings with some values replaced, also in settings within them.

    Args:
        settings: A dataclass.
        given: Name to value, or to a mapping for settings within; None leaves a value as it is.
        path: What to put before a name in a message.

    Raises:
        InputError: If a name is unknown or a value out of range.
    """
    have = {f.name: getattr(settings, f.name) for f in fields(settings)}  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in have:
            near = difflib.get_close_matches(name, have, n=1)
            hint = f"did you mean {path}{near[0]}?" if near else f"there are {', '.join(path + n for n in have)}"
            raise InputError(f"no setting of synthesis is called {path}{name}; {hint}")
        if is_dataclass(have[name]) and isinstance(value, Mapping):
            have[name] = changed(have[name], value, f"{path}{name}.")
        elif value is not None:
            have[name] = value
    return type(settings)(**have)

"""The models of the stages, by the settings; each is loaded when its stage begins and freed when it ends."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lit_insert.grounding.settings import GroundingSettings

if TYPE_CHECKING:
    from lit_insert.grounding.embedders import Embedder
    from lit_insert.grounding.entities import EntityBackend, QwenEntities
    from lit_insert.segmenters.base import Segmenter


# Embedder -> where its weights are by default.
EMBEDDERS = {
    "dinov3": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov2": "facebook/dinov2-with-registers-base",
    "clip": "openai/clip-vit-base-patch32",
    "pocket": "pocket",
}


class Stage:
    """Holds one model at a time.

    Attributes:
        history: A weak reference to every model that was held, in order; all but the last are dead while one is held.
    """

    def __init__(self) -> None:
        self.history: list[tuple[str, weakref.ref[Any]]] = []

    @contextmanager
    def hold(self, name: str, load: Callable[[], Any]) -> Iterator[list[Any]]:
        """Load a model for the block.

        Yields a list with the model in it, which is emptied at the end: a caller's variable would keep it alive.
        """
        model = load()
        self.history.append((name, weakref.ref(model)))
        held = [model]
        del model
        try:
            yield held
        finally:
            held.clear()
            free(collect=self.history[-1][1]() is not None)

    def alive(self) -> list[str]:
        """Names of the models that are still in memory."""
        return [name for name, reference in self.history if reference() is not None]


def free(collect: bool = True) -> None:
    """Give memory back, the accelerator's too.

    Args:
        collect: Look for what only refers to itself, which takes a second where the libraries are large.
    """
    import torch

    if collect:
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Loaders:
    """What each stage loads. Replace a method to bring a model of your own.

    Args:
        settings: Which models.
        device: Where they compute.
    """

    def __init__(self, settings: GroundingSettings, device: str = "cpu") -> None:
        self.settings, self.device = settings, device

    def describe(self, role: str) -> dict[str, str]:
        """Backend, weights and dtype of a role: "segmenter" or "embedder"."""
        from lit_insert.segmenters.loading import SOURCES

        own = self.settings[role]
        published = (SOURCES if role == "segmenter" else EMBEDDERS)[own.backend]
        return {"backend": own.backend, "model": own.model or published, "dtype": own.dtype}

    def _dtype(self, name: str) -> Any:
        import torch

        if name == "auto":
            name = "float32" if str(self.device).startswith("cpu") else "bfloat16"
        return getattr(torch, name)

    def entities(self, labels: str | list[str] | None = None) -> "EntityBackend":
        """What names the things of the prompt; given labels need no model."""
        from lit_insert.grounding.entities import GivenEntities, NounPhraseEntities

        own = self.settings.entities
        if labels is not None or own.backend == "given":
            return GivenEntities(labels or "")
        if own.backend == "noun-phrases":
            return NounPhraseEntities()
        return self._qwen(own.model, ("noun-phrases", "given (--labels)"), constrain=own.constrain)

    def verifier(self) -> "QwenEntities":
        """What takes the second look."""
        return self._qwen(self.settings.verify.model, ("none", "verify.enabled: false"), constrain=True)

    def _qwen(self, model: str, instead: tuple[str, str], constrain: bool) -> "QwenEntities":
        from lit_insert.grounding.entities import QwenEntities
        from lit_insert.segmenters.loading import model_folder

        own = self.settings.entities
        folder = model_folder(model, default_pocket="qwen", ungated=instead)
        options = {"max_new_tokens": own.max_new_tokens, "constrain": constrain}
        return QwenEntities.from_folder(folder, dtype=self._dtype(own.dtype), **options).to(self.device)

    def segmenter(self) -> "Segmenter":
        """What finds instances."""
        from lit_insert.segmenters.loading import load_segmenter

        own = self.settings.segmenter
        segmenter = load_segmenter(own.backend, own.model or None, self.device, self._dtype(own.dtype))
        if hasattr(segmenter, "chunk"):
            segmenter.chunk = own.chunk
        return segmenter

    def embedder(self) -> "Embedder":
        """What makes vectors."""
        from lit_insert.grounding.embedders import load_embedder
        from lit_insert.segmenters.loading import model_folder

        own = self.settings.embedder
        options: dict[str, Any] = {}
        if own.backend in ("dinov2", "dinov3"):
            options = {"image_size": own.image_size, "crop_size": own.crop_size, "min_patches": own.min_patches}
        folder = model_folder(own.model or EMBEDDERS[own.backend], default_pocket="judge", ungated=("dinov2", "clip"))
        return load_embedder(own.backend, folder, self._dtype(own.dtype), **options).to(self.device)

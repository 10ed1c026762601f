"""lit-insert: train and run models that put things into pictures, with PyTorch Lightning.

Public names load on first use, so importing the package costs nothing and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "ConsistencyModule": "lit_insert.consistency.module",
    "ConsistencyPipeline": "lit_insert.consistency.pipeline",
    "EDMModule": "lit_insert.consistency.module",
    "EmbeddingOptimizer": "lit_insert.embedding_optimizer.network",
    "EmbeddingOptimizerModule": "lit_insert.embedding_optimizer.module",
    "FusionObject": "lit_insert.fusion.objects",
    "FusionPipeline": "lit_insert.fusion.pipeline",
    "FusionSettings": "lit_insert.fusion.objects",
    "InsertPipeline": "lit_insert.embedding_optimizer.pipeline",
    "MaskPipeline": "lit_insert.mask_decoder.pipeline",
    "MessiDataModule": "lit_insert.data.messi",
    "PeopleDataModule": "lit_insert.data.people",
    "PipeTripletDataModule": "lit_insert.data.pipe",
    "ReplacePipeline": "lit_insert.replace.pipeline",
    "ScenesDataModule": "lit_insert.data.scenes",
    "SegmentPipeline": "lit_insert.grounding.pipeline",
    "SynthesisPipeline": "lit_insert.mifo.pipeline",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from lit_insert.consistency.module import ConsistencyModule as ConsistencyModule
    from lit_insert.consistency.module import EDMModule as EDMModule
    from lit_insert.consistency.pipeline import ConsistencyPipeline as ConsistencyPipeline
    from lit_insert.data.messi import MessiDataModule as MessiDataModule
    from lit_insert.data.people import PeopleDataModule as PeopleDataModule
    from lit_insert.data.pipe import PipeTripletDataModule as PipeTripletDataModule
    from lit_insert.data.scenes import ScenesDataModule as ScenesDataModule
    from lit_insert.embedding_optimizer.module import EmbeddingOptimizerModule as EmbeddingOptimizerModule
    from lit_insert.embedding_optimizer.network import EmbeddingOptimizer as EmbeddingOptimizer
    from lit_insert.embedding_optimizer.pipeline import InsertPipeline as InsertPipeline
    from lit_insert.fusion.objects import FusionObject as FusionObject
    from lit_insert.fusion.objects import FusionSettings as FusionSettings
    from lit_insert.fusion.pipeline import FusionPipeline as FusionPipeline
    from lit_insert.grounding.pipeline import SegmentPipeline as SegmentPipeline
    from lit_insert.mask_decoder.pipeline import MaskPipeline as MaskPipeline
    from lit_insert.mifo.pipeline import SynthesisPipeline as SynthesisPipeline
    from lit_insert.replace.pipeline import ReplacePipeline as ReplacePipeline


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'lit_insert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

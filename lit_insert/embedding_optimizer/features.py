"""Training data as the module needs it: preprocessed as its encoder expects, and cached if asked for."""

from functools import partial
from typing import Any

from torch import Tensor
from transformers import CLIPImageProcessor

from lit_insert.diffusion.cache import CachedViews, FeatureCache, content_key, fill
from lit_insert.errors import InputError

_COMPARED = ("size", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def check_processor(ours: CLIPImageProcessor, data: Any) -> None:
    """Make sure that a datamodule prepares references as the model's image encoder expects.

    Args:
        ours: The model's preprocessing.
        data: A datamodule; looked at if it has a ``processor``, itself or in its ``transform``.

    Raises:
        InputError: If a setting differs; names it.
    """
    theirs = getattr(data, "processor", None) or getattr(getattr(data, "transform", None), "processor", None)
    for name in _COMPARED if theirs is not None else ():
        have, need = getattr(theirs, name), getattr(ours, name)
        if have != need:
            raise InputError(
                f"data and model prepare references differently: {name} is {have} in the data, {need} in the model; "
                "set data's image_processor or object_size to the model's"
            )


def use_feature_cache(module: Any, data: Any, folder: str) -> None:
    """Have a datamodule yield cached features for training, computing what is missing of them.

    Every rank takes its part of the missing shards and waits for the others.

    Args:
        module: Has a ``trainer``, frozen ``vae`` and ``image_encoder``, and ``encode_features``.
        data: Its datamodule; must have ``train_view``.
        folder: Where caches are kept.

    Raises:
        InputError: If the data, or the way it is augmented, cannot be cached.
    """
    if not hasattr(data, "train_view"):
        raise InputError(f"feature_cache: {type(data).__name__} cannot be cached; set feature_cache: null")
    dataset = data.dataset("train")
    if not dataset.views:
        raise InputError(f"feature_cache: {dataset.endless}")
    trainer, encoders = module.trainer, (module.vae, module.image_encoder)
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    for encoder in encoders:
        precision.convert_module(encoder.to(device))

    def encode(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = precision.convert_input({name: value.to(device) for name, value in batch.items()})
        with precision.forward_context():
            return module.encode_features(batch)

    feature = module.embedding_optimizer.feature
    key = content_key(dataset, encoders, feature=feature, precision=trainer.precision)
    cache = FeatureCache(folder, key, len(dataset), dataset.views)
    fill(
        cache,
        dataset,
        encode,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    trainer.strategy.barrier("feature cache")
    cache.check_complete()
    data.train_view = partial(CachedViews, cache=cache)

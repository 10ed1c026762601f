"""``train.py``: the Lightning command line."""

from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``."""
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningCLI

    import lit_insert.data.scenes
    import lit_insert.embedding_optimizer.module
    import lit_insert.pocket.module  # noqa: F401

    LightningCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        args=args,
    )

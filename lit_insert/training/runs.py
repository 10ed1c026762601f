"""The folder that a run is: what it holds, whether it may be written, what may be taken from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_insert.errors import InputError
from lit_insert.training.checkpoint import BEST, LAST, read_checkpoint
from lit_insert.training.ema import averaged_state
from lit_insert.training.parameters import check_state, frozen_keys

# Changing one of these would make the rest of the run another run.
_FIXED = (
    "model",
    "seed_everything",
    "ema",
    "data.class_path",
    "data.init_args.batch_size",
    "data.init_args.seed",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.precision",
)


def checkpoint_of(run: Path, *, best: bool = False) -> Path:
    """The checkpoint of a run: the best if asked for and there, else the last.

    Raises:
        InputError: If the run has none.
    """
    folder = run / "checkpoints"
    for name in (BEST, LAST) if best else (LAST,):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{run}: has no checkpoints/{LAST} to continue from; start the run without --resume")


def is_run(folder: Path) -> bool:
    """Whether a run was started in a folder."""
    return (folder / "config.yaml").exists() or has_checkpoint(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run got as far as a checkpoint, so that starting it anew would lose something."""
    return any((folder / "checkpoints" / name).exists() for name in (LAST, BEST))


def changed_keys(old: Any, new: Any, above: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves in which two configurations differ, as (key, old value, new value)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        dot = f"{above}." if above else ""
        return [c for k in keys for c in changed_keys(old.get(k), new.get(k), f"{dot}{k}")]
    return [] if old == new else [(above, old, new)]


def check_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], run: Path) -> list[str]:
    """Compare the configuration of a checkpoint with the one to resume under.

    Returns:
        What has changed and may change, a line for each.

    Raises:
        InputError: If a key of the model, its optimiser, or another that the result depends on has changed.
    """
    changes = changed_keys(old, new)
    fixed = [c for c in changes if any(c[0] == f or c[0].startswith(f + ".") for f in _FIXED)]
    if fixed:
        shown = "; ".join(f"{k}: {a} -> {b}" for k, a, b in fixed[:4])
        more = f" and {len(fixed) - 4} more" if len(fixed) > 4 else ""
        raise InputError(
            f"--resume of {run}: cannot change {shown}{more}; "
            "set it back, or start a new run with --init_from and another --out"
        )
    return [f"{k}: {a} -> {b}" for k, a, b in changes]


def load_weights(module: nn.Module, source: str | Path) -> str:
    """Put weights of a run, a checkpoint or an exported folder into a model; nothing else is taken.

    Of a checkpoint the average is taken where it has one. Frozen weights that the source lacks stay as they are.

    Args:
        module: Where they go.
        source: Folder of a run, ``.ckpt`` file, or exported folder.

    Returns:
        One line on what was loaded and what was not.

    Raises:
        InputError: If the source cannot be read or does not fit; names it.
    """
    path = Path(source)
    if path.is_file():
        return _load_checkpoint(module, path)
    if not path.is_dir():
        raise InputError(f"--init_from {source}: no such run, checkpoint or folder")
    if is_run(path):
        return _load_checkpoint(module, checkpoint_of(path))
    state = exported_state(module, path)
    check_state(state, module, f"{path}", partial=True)
    return _report(path, module, state, "")


def _load_checkpoint(module: nn.Module, path: Path) -> str:
    state, average = averaged_state(read_checkpoint(path))
    check_state(state, module, f"{path}", partial=True)
    return _report(path, module, state, " (the average)" if average else "")


def _report(path: Path, module: nn.Module, state: dict[str, Tensor], kind: str) -> str:
    module.load_state_dict(state, strict=False)
    missing = sorted(module.state_dict().keys() - state.keys() - frozen_keys(module))
    lacks = f"; not there, left as they were: {', '.join(missing[:3])}" if missing else ""
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"init_from {path}: loaded {len(state)} tensors{kind}{lacks}{more}"


def exported_state(module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Weights of an exported folder under the model's names.

    ``<part>/*.safetensors`` goes to the child module ``part``; a file in the folder itself to the one child whose
    names it has.

    Raises:
        InputError: If nothing in the folder fits the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    children = dict(module.named_children())
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*/*.safetensors")):
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: cannot be read ({error})") from error
        owners = [file.parent.name] if file.parent != folder else list(children)
        for owner in owners:
            if owner in children and tensors.keys() <= children[owner].state_dict().keys():
                state.update({f"{owner}.{k}": v for k, v in tensors.items()})
                break
    if not state:
        have = ", ".join(sorted(children))
        raise InputError(f"{folder}: has no weights for any part of the model ({have})")
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in state.items()}

"""Which parameters train, at which rate, and which of them a checkpoint has to hold."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lit_insert.errors import InputError

SCALE = "lr_scale"  # key of an optimiser group: its learning rate in multiples of the optimiser's


def frozen(module: nn.Module) -> nn.Module:
    """Put a network in eval mode, where `BaseModule` keeps it, and stop its gradients; returns it."""
    module.is_frozen = True  # type: ignore[assignment]
    return module.eval().requires_grad_(False)


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """Parameter names that a pattern selects, in their order.

    A pattern is a module's or parameter's full name (``unet.mid_block`` selects everything under it) or a
    glob over full parameter names (``unet.*attn2*``).

    Raises:
        InputError: If nothing matches; the message lists similar names or, failing those, what there is.
    """
    found = [n for n in names if n == pattern or n.startswith(pattern + ".") or fnmatchcase(n, pattern)]
    if not found:
        raise InputError(f"no parameter matches {pattern!r}; {_what_exists(names, pattern)}")
    return found


def _what_exists(names: Sequence[str], pattern: str, most: int = 12) -> str:
    prefixes = {n[:i] for n in names for i in [*(j for j, c in enumerate(n) if c == "."), len(n)]}
    near = difflib.get_close_matches(pattern.strip("*."), sorted(prefixes), n=3, cutoff=0.75)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    shown: list[str] = []
    for depth in range(4):  # the shallowest level that tells something apart
        shown = sorted({".".join(n.split(".")[: depth + 1]) for n in names})
        if len(shown) > 2:
            break
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return "there is: " + (", ".join(shown[:most]) + more if shown else "nothing that can train")


def named_groups(
    module: nn.Module, scales: Mapping[str, float] | None = None, *, exempt: bool = True
) -> list[dict[str, Any]]:
    """Optimiser groups of the parameters that require a gradient.

    Args:
        module: Holds them.
        scales: Pattern (see `matching`) to learning rate, in multiples of the optimiser's; a parameter belongs
            to the first pattern that matches it. None puts all in one group at 1.
        exempt: Keep weight decay off parameters of fewer than two dimensions: biases and the gains of norms.

    Returns:
        Groups with ``params``, ``name``, ``lr_scale`` and, where exempt, ``weight_decay`` 0.

    Raises:
        InputError: If a pattern matches no trainable parameter, or a trainable parameter no pattern.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    left = dict(trainable)
    groups: list[dict[str, Any]] = []
    for pattern, scale in (scales or {"*": 1.0}).items():
        if not trainable:
            raise InputError(f"no parameter matches {pattern!r}; nothing in the model requires a gradient")
        names = [n for n in matching(list(trainable), pattern) if n in left]
        kinds = {"": [n for n in names if not exempt or left[n].ndim > 1]}
        kinds["/no_decay"] = [n for n in names if n not in set(kinds[""])]
        label = "all" if pattern == "*" else pattern
        for suffix, chosen in kinds.items():
            if chosen:
                group = {"params": [left.pop(n) for n in chosen], "name": label + suffix, SCALE: float(scale)}
                groups.append({**group, "weight_decay": 0.0} if suffix else group)
    if left:
        raise InputError(
            f"{len(left)} trainable parameters are in no group, such as {next(iter(left))!r}; "
            "add a pattern for them or freeze them"
        )
    return groups


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply each group's learning rate by its ``lr_scale``; call once, before a scheduler is made."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.get(SCALE, 1.0)


def scale_peaks(optimizer: Optimizer, scheduler: Any) -> None:
    """The same for a scheduler that sets the rates of all groups itself (OneCycleLR's ``max_lr``)."""
    if not any("max_lr" in group for group in optimizer.param_groups):
        return
    for group in optimizer.param_groups:
        for key in ("initial_lr", "max_lr", "min_lr", "lr"):
            group[key] = group[key] * group.get(SCALE, 1.0)
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


def frozen_keys(module: nn.Module) -> set[str]:
    """``state_dict`` keys that a checkpoint may leave out.

    These are the parameters without gradient, and the buffers inside modules all of whose parameters are such.
    """
    keys = {n for n, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}

    def visit(child: nn.Module, prefix: str, inside: bool) -> None:
        own = list(child.parameters())
        inside = inside or (bool(own) and not any(p.requires_grad for p in own))
        if inside:
            keys.update(prefix + name for name, _ in child.named_buffers(recurse=False))
        for name, grandchild in child.named_children():
            visit(grandchild, f"{prefix}{name}.", inside)

    for name, child in module.named_children():
        visit(child, f"{name}.", False)
    return keys


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, by name, each once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def check_state(state: Mapping[str, Tensor], module: nn.Module, source: str, *, partial: bool = False) -> None:
    """Compare a saved state with a module's; weights that the state may lack are the frozen ones.

    Args:
        state: Weights by name.
        module: Where they are to go.
        source: What to call the state in the message.
        partial: Allow any weight to be missing.

    Raises:
        InputError: If a trainable weight is missing, one is unknown, or a shape differs; names up to three.
    """
    own = module.state_dict()
    missing = [] if partial else sorted(own.keys() - state.keys() - frozen_keys(module))
    unknown = sorted(state.keys() - own.keys())
    other = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    for what, keys in (("lacks", missing), ("has unknown", unknown), ("has misfitting", other)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InputError(
                f"{source} {what} weights: {', '.join(keys[:3])}{more}; it is of another model configuration"
            )

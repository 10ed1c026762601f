"""Zero-shot editing with a consistency model (Song et al. 2023, algorithm 4), as pure functions on tensors.

Every edit keeps some coefficients of the given picture and lets the model make the rest: A is an orthogonal change of
basis, Ω says which coefficients are free (1 = generate), and after every evaluation of the model the kept ones are put
back, so that the result agrees with the picture there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) -> x0, both (N,C,H,W)
Noise = Callable[[], Tensor]  # a fresh draw of standard normal noise, (N,C,H,W)

LUMINANCE = (0.2989, 0.5870, 0.1140)  # weights of R, G, B in the grey value (ITU-R BT.601)


@dataclass(frozen=True)
class Constraint:
    """What of a picture an edit keeps: ``mix(u) = A⁻¹[(A y)(1 - Ω) + (A u) Ω]``.

    Attributes:
        forward: A, maps pictures (N,C,H,W) to coefficients.
        inverse: A⁻¹.
        free: Ω, broadcastable to the coefficients, bool: True where the model generates.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    free: Tensor

    def mix(self, given: Tensor, made: Tensor) -> Tensor:
        """The made picture with the kept coefficients of the given one; both (N,C,H,W)."""
        return self.inverse(torch.where(self.free, self.forward(made), self.forward(given)))


def masked(mask: Tensor) -> Constraint:
    """Keep pixels, to the bit.

    Args:
        mask: (N,1,H,W) or (N,C,H,W) in {0,1}; 1 = generate, 0 = keep.

    Raises:
        ValueError: If it has other values.
    """
    if not torch.logical_or(mask == 0, mask == 1).all():
        raise ValueError("mask must be 0 (keep) or 1 (generate) everywhere; threshold it first")
    return Constraint(_same, _same, mask.bool())


def nothing_kept(device: torch.device | str = "cpu") -> Constraint:
    """Free everything."""
    return Constraint(_same, _same, torch.ones((), dtype=torch.bool, device=device))


def grey_kept(channels: int = 3, *, device: torch.device | str = "cpu") -> Constraint:
    """Keep the grey value of each pixel (its projection on `LUMINANCE`), free its colour."""
    if channels != len(LUMINANCE):
        raise ValueError(f"colour has 3 channels, the picture {channels}")
    basis = orthogonal_basis(torch.tensor(LUMINANCE, dtype=torch.float64)).float().to(device)
    free = torch.tensor([False, True, True], device=device)[:, None, None]
    return Constraint(
        lambda x: torch.einsum("kc,nchw->nkhw", basis, x), lambda a: torch.einsum("kc,nkhw->nchw", basis, a), free
    )


def patch_means_kept(patch: int, *, device: torch.device | str = "cpu") -> Constraint:
    """Keep the mean of each ``patch`` × ``patch`` block of each channel, free the detail inside."""
    basis = orthogonal_basis(torch.ones(patch * patch, dtype=torch.float64)).float().to(device)
    free = torch.ones(patch * patch, dtype=torch.bool, device=device)
    free[0] = False

    def forward(x: Tensor) -> Tensor:
        blocks = F.pixel_unshuffle(x, patch).unflatten(1, (x.shape[1], patch * patch))
        return torch.einsum("kp,ncphw->nckhw", basis, blocks)

    def inverse(a: Tensor) -> Tensor:
        blocks = torch.einsum("kp,nckhw->ncphw", basis, a)
        return F.pixel_shuffle(blocks.flatten(1, 2), patch)

    return Constraint(forward, inverse, free[:, None, None])


def orthogonal_basis(first: Tensor) -> Tensor:
    """An orthogonal matrix (n,n) whose first row is ``first`` (n,) at unit length: a Householder reflection."""
    unit = first / first.norm()
    axis = torch.zeros_like(unit)
    axis[0] = 1.0
    across = unit - axis
    if across.norm() < 1e-12:
        return torch.eye(len(first), dtype=first.dtype)
    across = across / across.norm()
    return torch.eye(len(first), dtype=first.dtype) - 2 * torch.outer(across, across)


def edit(
    denoise: Denoise,
    given: Tensor,
    constraint: Constraint,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    start: Tensor | None = None,
    repeats: int = 1,
    sigma_min: float = 0.002,
) -> Tensor:
    """Algorithm 4: generate under a constraint.

    Args:
        denoise: The consistency function f(x, σ).
        given: y, the picture whose coefficients are kept, (N,C,H,W) in [-1,1].
        constraint: What is kept.
        sigmas: Noise levels, falling; the first is where the generation starts.
        noise: Draws the noise of each level.
        start: What the first noise is added to; by default ``given`` with its free coefficients at zero.
        repeats: How often every level is denoised and noised again: more lets a fill settle into its surround.
        sigma_min: ε, the level at which pictures count as clean.

    Returns:
        (N,C,H,W) whose kept coefficients are those of ``given``; others are not clipped to [-1,1].
    """
    x0 = constraint.mix(given, torch.zeros_like(given)) if start is None else start
    for index, sigma in enumerate(sigmas):
        for again in range(repeats):
            # The first level starts from a clean guess; later ones from outputs of f, which count as σ = ε.
            first = index == 0 and again == 0
            scale = sigma if first else math.sqrt(max(sigma**2 - sigma_min**2, 0.0))
            x0 = constraint.mix(given, denoise(x0 + scale * noise(), sigma))
    return x0


def inpaint(
    denoise: Denoise,
    image: Tensor,
    mask: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    start: str = "empty",
    repeats: int = 1,
    sigma_min: float = 0.002,
) -> Tensor:
    """Fill a hole; pixels outside it are returned to the bit.

    Args:
        denoise: The consistency function.
        image: (N,C,H,W) in [-1,1]; what is under the hole does not matter.
        mask: (N,1,H,W) in {0,1}; 1 = generate.
        sigmas: Noise levels, falling. Starting at the model's largest forgets the hole; with ``start="surround"``
            a first level of 2 to 10 keeps the colours of the surround.
        noise: Draws the noise.
        start: "empty": the hole starts at zero (grey); "surround": at the blurred surround.
        repeats: Denoisings of each level.
        sigma_min: ε.

    Raises:
        ValueError: If ``mask`` has other values than 0 and 1, or ``start`` is unknown.
    """
    constraint = masked(mask)
    empty = torch.where(constraint.free, torch.zeros_like(image), image)
    if start == "empty":
        begin = empty
    elif start == "surround":
        begin = torch.where(constraint.free, blurred_surround(image, mask), image)
    else:
        raise ValueError(f"start is {start!r}; give 'empty' or 'surround'")
    return edit(denoise, empty, constraint, sigmas, noise, start=begin, repeats=repeats, sigma_min=sigma_min)


def colorize(
    denoise: Denoise,
    image: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    repeats: int = 1,
    sigma_min: float = 0.002,
) -> Tensor:
    """New colours for a picture (N,3,H,W) in [-1,1]; the grey value of every pixel is kept."""
    constraint = grey_kept(image.shape[1], device=image.device)
    return edit(denoise, image, constraint, sigmas, noise, repeats=repeats, sigma_min=sigma_min)


def superres(
    denoise: Denoise,
    image: Tensor,
    patch: int,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    repeats: int = 1,
    sigma_min: float = 0.002,
) -> Tensor:
    """Detail for a picture of which only the mean of each block is known.

    Args:
        denoise: The consistency function.
        image: (N,C,H,W) in [-1,1] at the model's size; only its block means matter.
        patch: Side of a block in pixels; divides H and W.
        sigmas: Noise levels, falling.
        noise: Draws the noise.
        repeats: Denoisings of each level.
        sigma_min: ε.

    Raises:
        ValueError: If ``patch`` does not divide the size.
    """
    if patch < 1 or image.shape[-1] % patch or image.shape[-2] % patch:
        raise ValueError(f"patch {patch} does not divide {image.shape[-1]}x{image.shape[-2]}")
    constraint = patch_means_kept(patch, device=image.device)
    return edit(denoise, image, constraint, sigmas, noise, repeats=repeats, sigma_min=sigma_min)


def sdedit(
    denoise: Denoise, image: Tensor, sigmas: Sequence[float], noise: Noise, *, sigma_min: float = 0.002
) -> Tensor:
    """A picture like a stroke painting or photo (Meng et al. 2022): nothing is kept but what the noise leaves.

    Args:
        denoise: The consistency function.
        image: (N,C,H,W) in [-1,1].
        sigmas: Noise levels, falling; the lower the first, the closer the result.
        noise: Draws the noise.
        sigma_min: ε.
    """
    return edit(denoise, image, nothing_kept(image.device), sigmas, noise, start=image, sigma_min=sigma_min)


def interpolate(
    denoise: Denoise,
    first: Tensor,
    second: Tensor,
    weights: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    sigma_min: float = 0.002,
) -> Tensor:
    """Pictures between two noisy ones.

    Args:
        denoise: The consistency function.
        first: x at the first level, (C,H,W): ``sigmas[0]`` times a noise, to which a picture may be added.
        second: The other end, (C,H,W).
        weights: (N,) in [0,1]; 0 is ``first``.
        sigmas: Noise levels, falling.
        noise: Draws the noise of the later levels, (N,C,H,W), or (1,C,H,W) for the same along the whole way.
        sigma_min: ε.

    Returns:
        (N,C,H,W).
    """
    x0 = denoise(slerp(first, second, weights), sigmas[0])
    for sigma in sigmas[1:]:
        x0 = denoise(x0 + math.sqrt(max(sigma**2 - sigma_min**2, 0.0)) * noise(), sigma)
    return x0


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation: between two Gaussian noises every point on the way is as likely as the ends.

    Args:
        first: (C,H,W).
        second: (C,H,W).
        weights: (N,) in [0,1].

    Returns:
        (N,C,H,W); parallel ends are interpolated linearly.
    """
    cosine = F.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    t = weights.to(first)[:, None, None, None]
    if torch.sin(angle) < 1e-4:
        return (1 - t) * first + t * second
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)


def blurred_surround(image: Tensor, mask: Tensor) -> Tensor:
    """The picture with its hole filled by what surrounds it, coarser towards the middle.

    Known pixels are averaged over blocks of 2, 4, 8, … pixels; each hole pixel takes the finest average there is.

    Args:
        image: (N,C,H,W).
        mask: (N,1,H,W) in {0,1}; 1 = hole. A picture that is all hole becomes zero.
    """
    height, width = image.shape[-2:]
    side = 2 ** math.ceil(math.log2(max(height, width, 2)))
    pad = (0, side - width, 0, side - height)
    known = F.pad(1 - mask.to(image), pad)
    colour = F.pad(image * (1 - mask.to(image)), pad)
    levels = [(colour, known)]
    while levels[-1][0].shape[-1] > 1:
        levels.append((F.avg_pool2d(levels[-1][0], 2), F.avg_pool2d(levels[-1][1], 2)))
    filled = torch.zeros_like(levels[-1][0])
    for colour, known in reversed(levels):
        if filled.shape[-1] != colour.shape[-1]:
            filled = F.interpolate(filled, size=colour.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(known > 0, colour / known.clamp(min=1e-12), filled)
    return filled[..., :height, :width]


def _same(x: Tensor) -> Tensor:
    return x

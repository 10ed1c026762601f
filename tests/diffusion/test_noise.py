import torch

from lit_insert.diffusion.noise import step_generator


def draw(*triple):
    return torch.randn(8, generator=step_generator(*triple))


def test_the_same_triple_gives_the_same_numbers():
    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))


def test_seed_rank_and_step_each_change_the_stream():
    streams = [draw(seed, rank, step) for seed in (0, 1) for rank in (0, 1) for step in (0, 1, 10)]
    assert len({tuple(s.tolist()) for s in streams}) == len(streams)
    assert not torch.equal(draw(1, 23, 4), draw(12, 3, 4))

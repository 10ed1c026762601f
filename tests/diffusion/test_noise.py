import torch

from lit_insert.diffusion.noise import Draws, step_generator


def draw(*triple):
    return torch.randn(8, generator=step_generator(*triple))


def test_the_same_triple_gives_the_same_numbers():
    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))


def test_seed_rank_and_step_each_change_the_stream():
    streams = [draw(seed, rank, step) for seed in (0, 1) for rank in (0, 1) for step in (0, 1, 10)]
    assert len({tuple(s.tolist()) for s in streams}) == len(streams)
    assert not torch.equal(draw(1, 23, 4), draw(12, 3, 4))


def test_ranks_share_the_draw_of_the_global_batch():
    whole = Draws(torch.Generator().manual_seed(7), 6)
    parts = [Draws(torch.Generator().manual_seed(7), 3, rank, 2) for rank in (0, 1)]
    for draw in (lambda d: d.normal(3, 4, 4), lambda d: d.uniform(), lambda d: d.normal()):
        assert torch.equal(draw(whole), torch.cat([draw(p) for p in parts]))

import pytest
import torch

from lit_insert.data import world
from lit_insert.errors import InputError


def test_draws_depend_on_seed_and_index_alone():
    index = torch.tensor([3, 99, 1 << 41])
    rows = world.uniforms(5, index, 10)
    assert torch.equal(world.uniforms(5, index[1:2], 10)[0], rows[1])
    assert not torch.equal(world.uniforms(6, index, 10), rows)
    assert not torch.equal(world.uniforms(5, index, 10, stream=1), rows)


def test_draws_are_uniform_and_uncorrelated():
    u = world.uniforms(0, torch.arange(4000), 20)
    assert 0 <= u.min() < u.max() < 1
    assert torch.allclose(u.mean(0), torch.full((20,), 0.5), atol=0.03)
    assert torch.allclose(u.var(0), torch.full((20,), 1 / 12), atol=0.01)
    off_diagonal = torch.corrcoef(u.T) - torch.eye(20)
    assert off_diagonal.abs().max() < 0.08


def test_held_out_kinds_are_disjoint_and_cover_everything():
    parts = [{tuple(r) for r in world.combinations(s).tolist()} for s in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 6 * 8 * 3
    assert min(map(len, parts)) >= 10
    with pytest.raises(ValueError, match="split is 'dev'"):
        world.combinations("dev")


def test_nothing_held_out_lets_every_split_insert_everything():
    assert len(world.combinations("val", 0.0)) == len(world.combinations("train", 0.0)) == 144
    with pytest.raises(InputError, match=r"held_out is 0\.9"):
        world.combinations("train", 0.9)


def test_training_has_every_shape_colour_and_texture():
    triples = world.combinations("train")
    assert [len(set(column.tolist())) for column in triples.T] == [6, 8, 3]


def test_the_inserted_object_is_of_the_asked_kinds_and_stands_on_a_place():
    triples = world.combinations("val")
    scenes = world.lay_out(torch.arange(200), seed=0, triples=triples)
    rows = torch.arange(200)
    inserted = {tuple(r) for r in scenes.objects.label[rows, scenes.chosen].tolist()}
    assert inserted <= {tuple(r) for r in triples.tolist()}
    assert (scenes.state[rows, scenes.chosen] == world.OCCUPIED).all()
    assert len(set(scenes.chosen.tolist())) == 4


@pytest.mark.parametrize("size", [32, 64, 128])
def test_objects_never_overlap_and_are_inside(size):
    scenes = world.lay_out(torch.arange(100), seed=1, triples=world.combinations("train"))
    rgb, coverage = world.draw_objects(scenes.objects, size)
    assert rgb.shape == (100, 4, 3, size, size)
    assert coverage.ge(0.5).sum(1).max() == 1
    edge = torch.cat([coverage[..., 0, :], coverage[..., -1, :], coverage[..., 0], coverage[..., -1]], -1)
    assert edge.mean() < 1e-3  # only the tip of a large triangle may touch


def test_shapes_have_the_areas_of_their_outlines():
    label = torch.tensor([[[shape, 0, 0] for shape in range(6)]])
    ones = torch.ones(1, 6)
    objects = world.Objects(label, ones * 0.5, ones * 0.5, ones * 0.3, ones * 0, ones * 0)
    area = world.draw_objects(objects, 128)[1].mean((2, 3, 4))[0] / 0.3**2
    circle, square, _, star, cross, ring = area.tolist()
    assert circle == pytest.approx(3.14159 * 0.95**2, rel=0.02)
    assert square == pytest.approx(1.6**2, rel=0.02)
    assert star == pytest.approx(10 * 0.5 * 1.08 * 0.45 * 0.58779, rel=0.03)
    assert cross == pytest.approx(2 * 1.9 * 0.64 - 0.64**2, rel=0.02)
    assert ring == pytest.approx(3.14159 * (0.95**2 - 0.41**2), rel=0.02)


def test_backgrounds_are_muted_and_varied():
    pictures = world.draw_background(world.uniforms(0, torch.arange(64), 12), 32)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert (pictures.amax(1) - pictures.amin(1)).max() < 0.3  # little colour, so that objects stand out
    assert pictures.mean((1, 2, 3)).std() > 0.03


def test_names():
    assert world.describe(torch.tensor([0, 0, 1])) == "a striped red circle"
    assert world.describe(torch.tensor([5, 1, 0])) == "an orange ring"

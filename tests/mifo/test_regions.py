import pytest
import torch

from lit_insert.errors import InputError
from lit_insert.mifo.attention import AttentionRecorder, LayerName
from lit_insert.mifo.boxes import Box, rasterise
from lit_insert.mifo.regions import RefinementSettings, RegionTracker, assign_clusters, kmeans

SELF = LayerName("up", 0, 0, "self", 1, 8, "up.self")
CROSS = LayerName("up", 0, 0, "cross", 1, 8, "up.cross")


def blobs(centres, each=30, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([c + 0.1 * torch.randn(each, len(c), generator=draw) for c in torch.tensor(centres)])


def test_clusters_are_found_and_do_not_depend_on_the_batch():
    first = blobs([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    second = blobs([[1.0, 1.0], [-5.0, 0.0], [0.0, 9.0]], seed=1)
    labels, centres = kmeans(torch.stack([first, second]), 3)
    for row in labels:
        groups = row.view(3, 30)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == 3
    alone, own = kmeans(second[None], 3)
    assert torch.equal(alone[0], labels[1])
    assert torch.allclose(own[0], centres[1])
    again, _ = kmeans(torch.stack([first, second]), 3)
    assert torch.equal(again, labels)


def test_restarts_never_hurt_and_centres_can_go_on():
    points = torch.rand(1, 200, 5, generator=torch.Generator().manual_seed(0))

    def loss(found):
        labels, centres = found
        return (points - centres.gather(1, labels[..., None].expand_as(points))).square().sum()

    many = kmeans(points, 6, restarts=20)
    assert loss(many) <= loss(kmeans(points, 6, restarts=1))
    labels, centres = kmeans(points, 6, centres=many[1])
    assert torch.equal(labels, many[0])
    assert torch.allclose(centres, many[1])


def test_equal_points_and_few_points_are_no_problem():
    labels, centres = kmeans(torch.ones(1, 5, 2), 3)
    assert (labels >= 0).all()
    assert centres.isfinite().all()
    labels, _ = kmeans(torch.eye(2)[None], 6)
    assert labels[0, 0] != labels[0, 1]


def test_a_cluster_goes_to_the_subject_that_covers_it_best_or_to_none():
    labels = torch.tensor([[0, 0, 1, 1, 2, 2]])
    cross = torch.tensor([[[1.0, 0.9, 0.1, 0.0, 0.0, 0.1], [0.1, 0.0, 0.8, 1.0, 0.1, 0.0]]])
    found = assign_clusters(labels, cross, 3)
    assert found.int().tolist() == [[[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]]
    assert not assign_clusters(labels, torch.zeros(1, 2, 6), 3).any()


def recorded(things, batch=1):
    """Attention as of a picture where each of ``things`` (K,8,8) sees itself, and word k+1 is thing k's."""
    ground = ~things.any(0, keepdim=True)
    member = torch.cat([things, ground]).flatten(1).float()
    own = member.T @ member
    words = torch.cat([torch.full((1, 64), 0.2), member[:-1]]).T
    recorder = AttentionRecorder([SELF, CROSS])
    recorder.maps = {SELF: (own / own.sum(-1, keepdim=True)).repeat(batch, 1, 1), CROSS: words.repeat(batch, 1, 1)}
    recorder.sizes = {SELF: (8, 8), CROSS: (8, 8)}
    return recorder


def test_regions_shrink_to_the_things_in_the_boxes():
    things = torch.zeros(2, 8, 8, dtype=torch.bool)
    things[0, 2:5, 1:3] = things[1, 3:7, 5:8] = True
    boxes = [Box("a", 0, 0, 0.5, 1), Box("b", 0.5, 0, 1, 1)]
    tracker = RegionTracker([SELF, CROSS], [(1,), (7, 2)], boxes, RefinementSettings())
    for _ in range(3):
        tracker.add(recorded(things, 2), slice(1, None))
    assert torch.equal(tracker.refine(), things[None])
    assert torch.equal(tracker.refine(), things[None])


def test_a_thing_outside_its_box_leaves_the_region_empty():
    things = torch.zeros(1, 8, 8, dtype=torch.bool)
    things[0, :, 6:] = True
    tracker = RegionTracker([SELF, CROSS], [(1,)], [Box("a", 0, 0, 0.25, 1)], RefinementSettings())
    tracker.add(recorded(things), slice(0, None))
    found = tracker.refine()
    assert not (found & ~rasterise([Box("a", 0, 0, 0.25, 1)], 8, 8)).any() or not found.any()


def test_when_regions_are_refined():
    settings = RefinementSettings(start=0.3, every=0.1)
    assert [s for s in range(50) if settings.due(s, 50)] == [15, 20, 25, 30, 35, 40, 45]
    assert [s for s in range(4) if settings.due(s, 4)] == [1, 2, 3]
    assert 0 not in [s for s in range(10) if RefinementSettings(start=0).due(s, 10)]  # nothing has been seen yet
    with pytest.raises(InputError, match="fractions"):
        RefinementSettings(start=15)


def test_layers_must_be_of_one_resolution_and_both_kinds():
    with pytest.raises(InputError, match=r"need self- and cross-attention of one resolution; got up0.0.self@8"):
        RegionTracker([SELF], [(1,)], [Box("a", 0, 0, 1, 1)], RefinementSettings())

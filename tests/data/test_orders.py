import numpy as np
import pytest

from lit_insert.data.orders import BlockOrder, PlainOrder, rank_spans
from lit_insert.errors import InputError


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [2, 3, 8])
@pytest.mark.parametrize("length", [3, 7, 16, 17, 48, 49, 50, 95])
def test_spans_cover_everything_once_with_equal_batch_counts(length, batch_size, world_size):
    spans = rank_spans(length, batch_size, world_size, drop_last=False)
    sizes = spans[..., 1] - spans[..., 0]
    assert sizes.min() >= 1
    assert sizes.max() <= batch_size
    covered = np.concatenate([np.arange(a, b) for a, b in spans.reshape(-1, 2)])
    assert covered.tolist() == list(range(length))


def test_full_batches_are_the_pieces_of_one_process():
    two = rank_spans(24, 3, 2, drop_last=False)
    one = rank_spans(24, 6, 1, drop_last=False)
    assert [(int(b[0, 0]), int(b[-1, 1])) for b in two] == [tuple(b[0].tolist()) for b in one]


def test_drop_last_leaves_only_full_batches():
    spans = rank_spans(23, 4, 2, drop_last=True)
    assert spans.shape == (2, 2, 2)
    assert np.all(spans[..., 1] - spans[..., 0] == 4)


def test_single_samples_on_uneven_ranks_stay_out():
    spans = rank_spans(7, 1, 2, drop_last=False)
    assert spans.shape == (3, 2, 2)
    assert spans.max() == 6


@pytest.mark.parametrize(("length", "drop_last"), [(0, False), (1, False), (7, True)])
def test_too_few_samples_say_what_is_needed(length, drop_last):
    with pytest.raises(InputError, match=f"{length} samples are too few"):
        rank_spans(length, 4, 2, drop_last)


def test_plain_order_is_a_pure_function_of_seed_and_epoch():
    spans = rank_spans(100, 4, 1, drop_last=False)
    order = PlainOrder(100, seed=3)
    first = order(1, spans)
    order(2, spans)
    assert np.array_equal(first, PlainOrder(100, seed=3)(1, spans))
    assert sorted(first) == list(range(100))
    assert not np.array_equal(first, order(2, spans))
    assert not np.array_equal(first, PlainOrder(100, seed=4)(1, spans))
    assert np.array_equal(PlainOrder(5, shuffle=False)(9, spans), np.arange(5))


GROUPS = np.repeat(np.arange(13), [7, 9, 5, 10, 8, 9, 7, 6, 9, 8, 7, 10, 5])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_block_order_visits_every_sample_once(world_size, lanes, shuffle):
    spans = rank_spans(len(GROUPS), 4, world_size, drop_last=False)
    order = BlockOrder(GROUPS, seed=1, shuffle=shuffle, window=12, lanes=lanes)
    assert sorted(order(0, spans)) == list(range(len(GROUPS)))
    assert np.array_equal(order(1, spans), order(1, spans))
    assert np.array_equal(order(0, spans), order(1, spans)) is not shuffle


def test_each_lane_reads_a_groups_rows_together():
    spans = rank_spans(len(GROUPS), 2, 2, drop_last=False)
    order = BlockOrder(GROUPS, window=1, lanes=2)(0, spans)
    for rank in range(2):
        for lane in range(2):
            rows = np.concatenate([order[a:b] for a, b in spans[lane::2, rank]])
            changes = np.count_nonzero(np.diff(GROUPS[rows]))
            assert changes == len(set(GROUPS[rows])) - 1


def test_windows_mix_neighbouring_groups():
    spans = rank_spans(len(GROUPS), 4, 1, drop_last=False)
    order = BlockOrder(GROUPS, window=1000)(0, spans)
    assert np.count_nonzero(np.diff(GROUPS[order])) > 60


def test_drop_last_and_blocks_agree():
    spans = rank_spans(len(GROUPS), 8, 2, drop_last=True)
    order = BlockOrder(GROUPS, lanes=2)(0, spans)
    assert len(order) == spans.size // 2 * 8
    assert len(set(order.tolist())) == len(order)


def test_saved_lanes_are_kept():
    order = BlockOrder(GROUPS, lanes=1)
    order.adopt(BlockOrder(GROUPS, lanes=3).state())
    assert order.lanes == 3
    order.adopt(PlainOrder(4).state())
    assert order.lanes == 3

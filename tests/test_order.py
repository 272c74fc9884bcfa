"""The order of the samples: each epoch a permutation, a function of the position, and its replacements."""

import time

import numpy as np
import pytest

from training.data.order import KEPT, Order, numbers, permutation

COUNTS = np.array([5, 0, 1, 12, 7, 0, 3, 9, 2, 8])
ALL = [(shard, index) for shard, count in enumerate(COUNTS) for index in range(count)]


def order(counts=COUNTS, seed=3, stream="video", pool=3) -> Order:
    return Order(counts, seed=seed, stream=stream, pool=pool)


def epoch(order: Order, number: int) -> list[tuple[int, int]]:
    return [order.at(number * order.size + place) for place in range(order.size)]


@pytest.mark.parametrize("pool", [1, 2, 3, 8, 100])
def test_an_epoch_shows_every_sample_once(pool):
    for number in (0, 1, 7):
        assert sorted(epoch(order(pool=pool), number)) == ALL


@pytest.mark.parametrize("counts", [[1], [0, 1, 0], [2], [1, 1], [20], [4, 0, 0, 0]])
def test_the_smallest_sets(counts):
    few = order(np.array(counts))
    for number in range(4):
        assert sorted(epoch(few, number)) == [(s, i) for s, count in enumerate(counts) for i in range(count)]


def test_random_sets_against_the_same_thing_written_down_in_full():
    """Shards in the epoch's order, cut into pools, each pool's samples listed and taken in its order."""
    rng = np.random.default_rng(0)
    for case in range(30):
        counts = rng.integers(0, rng.integers(2, 40), size=rng.integers(1, 25))
        counts[rng.integers(len(counts))] += 1
        pool, seed, number = int(rng.integers(1, 9)), case, int(rng.integers(0, 50))
        shards = [s for s in permutation(seed, "x shards", number, len(counts)).tolist() if counts[s]]
        expected = []
        for first in range(0, len(shards), pool):
            listed = [(s, i) for s in shards[first : first + pool] for i in range(counts[s])]
            drawn = permutation(seed, "x pool", number * len(counts) + first, len(listed))
            expected += [listed[place] for place in drawn]
        assert epoch(order(counts, seed=seed, stream="x", pool=pool), number) == expected


def test_epochs_seeds_and_streams_differ():
    orders = [epoch(order(), 0), epoch(order(), 1), epoch(order(seed=4), 0), epoch(order(stream="frame"), 0)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean([a == b for a, b in zip(one, other, strict=True)]) < 0.3


def test_orders_of_one_name_take_the_shards_alike():
    """So the buckets of a run read from the same few shards at the same time."""
    rng = np.random.default_rng(0)
    turns = []
    for _ in range(2):
        one = order(np.where(rng.random(40) < 0.7, 10, 0), pool=1)
        turns.append(list(dict.fromkeys(shard for shard, _ in epoch(one, 2))))
    assert turns[0] != turns[1]
    both = set(turns[0]) & set(turns[1])
    assert [s for s in turns[0] if s in both] == [s for s in turns[1] if s in both]


def test_the_order_depends_on_the_position_alone():
    positions = list(range(4 * len(ALL)))
    forward = [order().at(position) for position in positions]
    one = order()  # asked in another order, by which nothing that is kept fits
    shuffled = np.random.default_rng(1).permutation(positions)
    backward = {int(position): one.at(int(position)) for position in shuffled}
    assert [backward[position] for position in positions] == forward
    assert len(one._epochs) <= KEPT and len(one._pools) <= KEPT


def test_samples_of_a_pool_are_mixed_and_pools_are_not():
    many = order(np.full(64, 50), pool=4)
    shards = np.array([shard for shard, _ in epoch(many, 0)]).reshape(16, 200)
    assert sorted({shard for pool in shards for shard in set(pool.tolist())}) == list(range(64))
    for pool in shards:
        assert len(set(pool.tolist())) == 4
        assert len(set(pool[:50].tolist())) == 4  # not one shard after the other


def test_every_place_of_an_epoch_is_equally_likely():
    """Where each of six samples stands in 6,000 epochs: 36 counts near 1,000, as chance has it."""
    few = order(np.array([3, 2, 1]), pool=3)
    table = np.zeros((6, 6))
    names = {sample: number for number, sample in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)])}
    for number in range(6000):
        for place, sample in enumerate(epoch(few, number)):
            table[names[sample], place] += 1
    chi_squared = ((table - 1000) ** 2 / 1000).sum()
    assert chi_squared < 60  # 25 degrees of freedom: 60 is passed once in ten thousand


def test_replacements_are_all_others_once():
    few = order()
    for position in (0, 17, 46, 47, 1000):
        candidates = [few.at(position, attempt) for attempt in range(few.size)]
        assert candidates[0] == few.at(position)
        assert sorted(candidates) == ALL
        with pytest.raises(ValueError, match="attempt below the 47 samples"):
            few.at(position, few.size)
    assert few.at(3, 1) == order().at(3, 1)


def test_replacements_leave_a_shard_that_cannot_be_read():
    many = order(np.full(50, 1000), pool=2)
    shards = [many.at(position)[0] for position in range(200)]
    others = [[many.at(position, attempt)[0] for attempt in (1, 2, 3)] for position in range(200)]
    assert np.mean([shard in other for shard, other in zip(shards, others, strict=True)]) < 0.2
    assert len({shard for other in others for shard in other}) == 50


def test_every_number_of_processes_sees_the_same_batches():
    size = 24
    for step in (0, 1, 5):
        whole = [order().at(position) for position in range(step * size, (step + 1) * size)]
        for processes in (2, 4, 8):
            shares = [
                [order().at(p) for p in range(step * size, (step + 1) * size)[rank::processes]]
                for rank in range(processes)
            ]
            assert [share[i] for i in range(size // processes) for share in shares] == whole


def test_nothing_to_put_in_order():
    with pytest.raises(ValueError, match="at least one sample"):
        order(np.zeros(4, dtype=int))


def test_the_numbers_stay_what_they_are():
    """A run that is resumed under another NumPy or on another machine must not see another order."""
    assert numbers(1, "x", 2, 3).tolist() == [11768646991857499194, 3822087247098706787, 5596085674706906957]
    assert permutation(1, "x", 2, 8).tolist() == [1, 4, 2, 6, 7, 0, 5, 3]
    assert [order().at(position) for position in (0, 46, 47, 10**9)] == [(9, 7), (7, 2), (9, 1), (3, 7)]


def test_600_million_samples_in_60_000_shards():
    counts = np.random.default_rng(0).integers(9_000, 11_001, size=60_000)
    start = time.process_time()
    laion = order(counts, pool=16)
    assert laion.at(300_000_001) != laion.at(300_000_002)
    first = time.process_time() - start
    start = time.process_time()
    for position in range(300_000_000, 300_002_000):
        laion.at(position)
    later = (time.process_time() - start) / 2000
    assert first < 0.2, f"{first:.3f} s"  # of the processor's time; 0.03 s on a quiet core
    assert later < 50e-6, f"{later * 1e6:.1f} us"  # 2.5 us

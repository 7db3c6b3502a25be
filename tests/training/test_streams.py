"""Named randomness: streams, hashed uniforms and keyed permutations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainers.streams import KeyedPermutation, hashed_uniforms, key_of, keyed_permutation, mix64, stream

PURPOSES = st.lists(st.one_of(st.integers(0, 2**70), st.text(max_size=5)), max_size=4).map(tuple)


def unmix64(z: int) -> int:
    """The inverse of SplitMix64's finaliser, step by step, in Python integers."""

    def unshift(y: int, shift: int) -> int:
        x = y
        for _ in range(64 // shift + 1):
            x = y ^ (x >> shift)
        return x

    z = unshift(z, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return unshift(z, 30)


# Streams ---------------------------------------------------------------------------------------------------------


def test_streams_draw_what_they_drew_when_this_was_written():
    assert key_of("batch", 3, 14) == 0x7D62408547738564359D890A8AFA6800
    assert stream("batch", 3, 14).integers(0, 10**6, 5).tolist() == [958197, 347365, 997945, 674897, 131804]
    weights = stream("weights", 0, "embed.weight").standard_normal(3, dtype="float32")
    assert weights.tobytes().hex() == "879c8cbf94891e3f434c863e"


@given(PURPOSES, PURPOSES)
def test_different_purposes_have_different_keys(one, other):
    assert (key_of(*one) == key_of(*other)) == (
        len(one) == len(other) and all(type(a) is type(b) and a == b for a, b in zip(one, other, strict=True))
    )


def test_purposes_that_read_alike_when_joined_have_different_keys():
    alike = [("a", 1), ("a", "1"), ("a1",), ("a,1",), ('a",1',), ("a", 1, ""), ("", "a", 1), ("a", 11), ("a", 1, 1)]
    assert len({key_of(*p) for p in alike}) == len(alike)


def test_neighbouring_streams_share_no_word():
    purposes = [("batch", replicate, step) for replicate in range(4) for step in range(100)]
    words = np.concatenate([stream(*p).integers(0, 2**64, 500, dtype=np.uint64) for p in purposes])
    assert len(np.unique(words)) == 4 * 100 * 500


# Hashed uniforms -------------------------------------------------------------------------------------------------


def test_mix64_is_the_published_finaliser_of_splitmix64():
    counter = np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert mix64(counter).tolist() == published  # SplitMix64 from seed 0


def test_hashed_uniforms_are_what_they_were_when_this_was_written():
    assert hashed_uniforms(np.array([0, 2**40]), 1, "golden")[:, 0].tolist() == [0.9075282142906228, 0.8621723921121148]


def test_hashed_uniforms_of_neighbouring_ids_are_uniform_in_every_direction():
    u = hashed_uniforms(np.arange(20_000), 8, "urns", 8)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    correlations = np.corrcoef(np.hstack([u[:-1], u[1:]]).T)  # columns among each other, and with the next id's
    assert np.abs(correlations[~np.eye(16, dtype=bool)]).max() < 5 / np.sqrt(20_000)
    assert len(np.unique(u)) == u.size


def test_a_hashed_uniform_depends_on_its_purpose_its_id_and_its_position_alone():
    ids = np.array([5, 0, 2**61, 17, 5])
    u = hashed_uniforms(ids, 6, "p", 1)
    for row, task in zip(u, ids, strict=True):
        assert np.array_equal(hashed_uniforms(np.array([task]), 6, "p", 1)[0], row)
    assert np.array_equal(hashed_uniforms(ids, 3, "p", 1), u[:, :3])
    assert not np.isin(hashed_uniforms(ids, 6, "p", 2), u).any()


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_hashed_uniforms_stay_inside_the_open_interval_at_the_extreme_words(word):
    key = key_of("edge")
    low, high = key % 2**64, key >> 64
    step = int(mix64(np.array([0x9E3779B97F4A7C15 ^ high], dtype=np.uint64))[0])  # of the first position
    task = (unmix64(unmix64(word) ^ step) - low) % 2**64  # the id whose first word is `word`
    u = hashed_uniforms(np.array([task], dtype=np.uint64), 1, "edge")[0, 0]
    assert 0 < u < 1
    assert abs(u - word / 2**64) < 1e-15


# Keyed permutations ----------------------------------------------------------------------------------------------


@given(st.integers(1, 2**62), st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=5))
def test_a_keyed_permutation_can_be_undone_at_every_size(size, values):
    permutation, inside = KeyedPermutation(size, "key"), np.array(values) % size
    assert np.array_equal(permutation.inverse(permutation(inside)), inside)
    assert np.array_equal(permutation(permutation.inverse(inside)), inside)


@pytest.mark.parametrize("size", [*range(1, 60), 1000, 1024, 1025, 40_320])
def test_a_keyed_permutation_hits_every_value_exactly_once(size):
    for key in range(3):
        assert np.array_equal(np.sort(KeyedPermutation(size, "test", key)(np.arange(size))), np.arange(size))


def test_keyed_permutations_are_what_they_were_when_this_was_written():
    assert KeyedPermutation(10, "golden")(np.arange(10)).tolist() == [6, 3, 0, 7, 5, 9, 4, 8, 2, 1]
    assert KeyedPermutation(2**62, "golden")(np.array([0, 1])).tolist() == [3834871265054221261, 246495177837452658]


@pytest.mark.parametrize("size", [10**4, 20_922_789_888_000, 2**61])
def test_neighbours_land_far_apart_and_without_structure(size):
    n = 4000
    out = KeyedPermutation(size, "test")(np.arange(n))
    assert stats.kstest(out / size, "uniform").pvalue > 1e-4
    gaps = (out[1:] - out[:-1]) % size
    assert stats.kstest(gaps / size, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 4.5 / np.sqrt(n)
    assert stats.chisquare(np.bincount(out % 7, minlength=7)).pvalue > 1e-4  # the low digits too


def test_over_many_keys_a_small_universe_is_shuffled_evenly():
    draws = np.array([KeyedPermutation(24, "key", key)(np.arange(2)) for key in range(4000)])
    assert stats.chisquare(np.bincount(draws[:, 0], minlength=24)).pvalue > 1e-3
    gap = (draws[:, 1] - draws[:, 0]) % 24
    assert stats.chisquare(np.bincount(gap, minlength=24)[1:]).pvalue > 1e-3


def test_permutations_of_two_purposes_agree_no_more_often_than_chance():
    size = 1000
    maps = [KeyedPermutation(size, "training tasks", replicate)(np.arange(size)) for replicate in range(20)]
    agreements = sum(int((a == b).sum()) for a, b in itertools.combinations(maps, 2))
    assert abs(agreements - 190) < 5 * np.sqrt(190)  # one fixed point expected in each of 190 pairs


def test_values_outside_the_range_are_refused():
    permutation = KeyedPermutation(24, "test")
    for value in (-1, 24, 2**61):
        with pytest.raises(ValueError, match="outside"):
            permutation(np.array([0, value]))
    for size in (0, -5, 2**62 + 1):
        with pytest.raises(ValueError, match="outside"):
            KeyedPermutation(size, "test")


def test_the_remembered_permutation_is_the_computed_one():
    values = np.arange(50)
    for size in (50, 77):
        assert np.array_equal(keyed_permutation(size, "a", 1)(values), KeyedPermutation(size, "a", 1)(values))

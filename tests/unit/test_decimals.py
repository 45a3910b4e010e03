"""Numbers of float32 as the shortest decimals that mean them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ortserve.tasks.decimals import shortest


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8))
def test_they_mean_the_same_float32_and_are_no_longer_than_numpys(values: list[float]) -> None:
    numbers = np.array(values, np.float32)
    found = shortest(numbers)
    assert np.array_equal(np.array(found, np.float32), numbers)
    assert found == [float(str(number)) for number in numbers]


def test_a_column_of_a_matrix_is_taken_too() -> None:
    assert shortest(np.array([[0.1, 1], [0.7, 2]], np.float32)[:, 0]) == [0.1, 0.7]

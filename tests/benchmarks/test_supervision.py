"""The clock of the supervision benchmark: it stops at the first of five answers, and not for an old process."""

from collections.abc import Iterator

from benchmarks.harness.result import Result
from benchmarks.live.supervision import ASK_EVERY_S, BACK_WITHIN_S, PARTS, figures_of, first_of_a_row, targets


class Time:
    """Passes only in sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def measured(answers: Iterator[bool], replaced_at_s: float = 0.0) -> float | None:
    time = Time()
    return first_of_a_row(lambda: next(answers), lambda: time.now_s >= replaced_at_s, time, time.sleep)


def pattern(text: str) -> Iterator[bool]:
    yield from (sign == "+" for sign in text)
    while True:
        yield True


def test_an_answer_that_is_followed_by_silence_is_not_the_end() -> None:
    found = measured(pattern("--+-++--"))
    assert found is not None
    assert abs(found - 8 * ASK_EVERY_S) < 1e-9


def test_answers_of_the_process_that_is_to_be_replaced_count_only_with_its_successor() -> None:
    assert measured(pattern(""), replaced_at_s=7.0) == 0.0
    assert measured(pattern(""), replaced_at_s=2 * BACK_WITHIN_S) is None


def test_one_slow_return_misses_the_target() -> None:
    fast = {part: [1.0, 4.9, 2.0] for part in PARTS}
    assert Result(figures_of(fast), targets(), 3).met
    for part in PARTS:
        assert not Result(figures_of(fast | {part: [1.0, 5.1, 2.0]}), targets(), 3).met

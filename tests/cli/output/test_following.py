"""Following a run to its end, with a clock of our own."""

import io
from dataclasses import dataclass, field

import pytest

from control_plane.api.messages import Restarting, Snapshot
from control_plane.cli.output.formatting import compared_eval_loss, progress, progress_line, summary
from control_plane.cli.output.watch import JobGone, draw, events, follow
from control_plane.cli.output.watch import Lines as PlainLines
from control_plane.core.model.errors import Unavailable


def snapshot(step: int, status: str = "running", **changes: object) -> Snapshot:
    body = {
        "run": "r",
        "name": "r",
        "status": status,
        "seq": 1,
        "term": 1,
        "generation": 1,
        "created_at": "2026-01-01T00:00:00Z",
        "step": step,
        "total_steps": 100,
        "steps_per_s": 2.0,
    }
    return Snapshot.model_validate(body | changes)


@dataclass
class Clock:
    """Time passes only while somebody sleeps."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Script:
    """Answers in turn; the last one for ever."""

    answers: list[Snapshot | Unavailable]
    asked: int = field(default=0)

    def snapshot(self, run: str) -> Snapshot:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Unavailable):
            raise answer
        return answer


def followed(script: Script, **options: object) -> tuple[list[str], Snapshot]:
    clock, written = Clock(), list[str]()
    lines = PlainLines(written.append, clock=clock)
    last = follow(script, "r", lines, sleep=clock.sleep, clock=clock, **options)  # type: ignore[arg-type]
    return written, last


def test_follow_plain_writes_every_five_seconds_and_at_the_end() -> None:
    written, last = followed(Script([*(snapshot(step) for step in range(8)), snapshot(100, "finished")]))
    assert [line.split()[3] for line in written] == ["0/100", "5/100", "100/100"]
    assert last.status == "finished"


def test_follow_outlives_a_gateway_that_comes_back() -> None:
    away = Unavailable("nobody answers")
    written, last = followed(Script([snapshot(1), away, away, snapshot(100, "finished")]))
    assert written.count("(nobody answers; retrying)") == 2
    assert last.step == 100


def test_follow_gives_up_on_a_gateway_that_stays_away() -> None:
    with pytest.raises(Unavailable, match="nobody answers"):
        followed(Script([snapshot(1), Unavailable("nobody answers")]))


def test_follow_of_a_run_whose_job_is_gone_ends_with_seven() -> None:
    with pytest.raises(JobGone, match="job has failed") as died:
        followed(Script([snapshot(1)]), dead=lambda seen: "the job has failed")
    assert died.value.exit_code == 7


def test_progress_line_leaves_out_what_nobody_knows() -> None:
    line = progress_line(snapshot(40, latest={"loss": 2.5}))
    assert line == "status running  step 40/100  loss 2.5  steps/s 2  generation 1  time left 30 s"


def test_panel_draws_what_the_line_says() -> None:
    from rich.console import Console

    drawn = io.StringIO()
    Console(file=drawn, width=80).print(draw(snapshot(40, latest={"loss": 2.5})))
    assert "40/100" in drawn.getvalue()


@pytest.mark.parametrize(
    ("latest", "facts", "said"),
    [
        ({}, {}, "eval loss not measured"),
        ({"eval_loss": 4.0}, {}, "eval loss 4"),
        ({"eval_loss": 4.0}, {"unigram_entropy_nats": 5.5}, "eval loss 4 nats, below the unigram entropy of 5.5 nats"),
        ({"eval_loss": float("nan")}, {"unigram_entropy_nats": 5.5}, "not below"),
    ],
)
def test_summary_compares_the_eval_loss(latest: dict[str, float], facts: dict[str, float], said: str) -> None:
    seen = snapshot(100, "finished", latest=latest, facts=facts)
    assert said in compared_eval_loss(seen)
    assert any(said in line for line in summary(seen))


def test_what_is_left_out_is_said_once_at_the_end_and_not_in_every_line() -> None:
    with_a_tail = snapshot(40, facts={"samples_left_out": 7})
    assert "left out" not in progress_line(with_a_tail)
    assert summary(with_a_tail)[-1] == "left out: 7 samples per epoch that do not fill a global batch"


def test_what_is_not_exact_after_a_failure_is_shown_by_name() -> None:
    inexact = snapshot(40, facts={"not_exact": ["random numbers from train_dataset.rng"]})
    assert "not exact" not in progress_line(inexact)
    assert progress(inexact)["not exact"] == "after a failure: random numbers from train_dataset.rng"


def test_start_that_is_put_off_is_one_event_for_each_failure() -> None:
    told = Restarting(failures=3, wait_s=2.0, left_s=1.5, alert=True, reason="killed")
    first = dict(events(snapshot(4, "recovering", restarting=told)))
    later = dict(events(snapshot(4, "recovering", restarting=told.model_copy(update={"left_s": 0.5}))))
    again = dict(events(snapshot(4, "recovering", restarting=told.model_copy(update={"failures": 4}))))
    assert first.keys() == later.keys() != again.keys()
    assert "starting again in 2 s after 3 failures without a new step: killed" in next(iter(first.values()))

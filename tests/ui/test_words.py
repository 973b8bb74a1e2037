"""The console's sentences."""

from uuid import UUID

import pytest
from pydantic import ValidationError

from control_plane.api.messages import CommandView
from control_plane.api.sentences import format_duration
from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry
from ui.labels import complaint, life, line, plain, read_back

COMMAND = Command(uuid=UUID(int=1), author="ada", intent=SetLearningRate(value=1e-4), reason="loss is flat")


def view(settled: CommandSettled | None) -> CommandView:
    """The command with this end."""
    return CommandView(command=COMMAND, what="lr = 0.0001", status="", accepted_seq=12, accepted_at="", settled=settled)


def end(**more: object) -> CommandSettled:
    """How the command ended."""
    return CommandSettled.model_validate({"uuid": COMMAND.uuid, "status": "applied", "step": 7, "world_size": 2} | more)


def test_life_of_a_waiting_command_names_its_record() -> None:
    assert life(view(None)) == "accepted as record 12; waits for the next step boundary"


def test_life_of_an_applied_command_counts_the_ranks() -> None:
    assert life(view(end())) == "applied at step 7 on 2 of 2 ranks"


def test_life_of_a_rejected_command_says_why() -> None:
    assert life(view(end(status="rejected", reason="rank 1: no"))) == "rejected at step 7: rank 1: no"


def test_read_back_of_ranks_that_agree_is_one_line() -> None:
    said = read_back(end(before={"lr": [2e-4]}, after={"lr": [1e-4]}, ranks=({"lr": [1e-4]},) * 2))
    assert said == ["lr 0.0002 before, lr 0.0001 now, read back on every rank"]


def test_read_back_of_ranks_that_differ_is_a_line_a_rank() -> None:
    said = read_back(end(after={"lr": [1e-4]}, ranks=({"lr": [1e-4]}, {"lr": [3e-4]})))
    assert said == ["rank 0: lr 0.0001", "rank 1: lr 0.0003"]


def test_journal_line_says_who_and_why() -> None:
    entry = Entry(seq=12, time="2026-01-01T09:41:02Z", record=CommandAccepted(command=COMMAND))
    assert line(entry, {}, None).endswith("lr = 0.0001  by ada  “loss is flat”")


def test_journal_line_of_an_end_names_the_command() -> None:
    entry = Entry(seq=13, time="2026-01-01T09:41:02Z", record=end())
    assert "lr = 0.0001: applied at step 7 on 2 of 2 ranks  by ada" in line(entry, {COMMAND.uuid: COMMAND}, None)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (40, "40 s"), (725, "12 min"), (11100, "3 h 05 min"), (190000, "2 d 4 h"), (-1, "-")],
)
def test_duration_is_as_exact_as_an_estimate_deserves(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


@pytest.mark.parametrize("value", [float("nan"), -1.0, 0.0, 1e9, "text"])
def test_complaint_about_a_number_names_it(value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        SetLearningRate.model_validate({"value": value})
    assert complaint(refused.value).startswith(f"Value {value!r} is refused: input should be ")


def test_plain_text_cannot_become_a_link() -> None:
    assert plain("[here](http://x)") == "\\[here\\]\\(http\\:\N{WORD JOINER}//x\\)"

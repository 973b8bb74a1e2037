"""The simulated desktop and the model of it: what it draws, what it learns, and how it is steered on real ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.core.model.records import CommandSettled
from control_plane.storage.data.checking import check_record
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from ray_jobs.data.mixture.dataset import mixture
from ray_jobs.data.mixture.shards import open_shard
from ray_jobs.workloads import desktop
from ray_jobs.workloads import desktop_screen as screen
from ray_jobs.workloads.desktop import Training, held_out, tensors_of
from ray_jobs.workloads.desktop_model import Denoiser, changed_error, event_maps, predict, shifted
from tests.ray_jobs.rank.test_steering import command
from tests.ray_jobs.support.ranks import run_ranks
from tests.ray_jobs.workloads import desktop_trial as trial

STEPS, KNOB_AT, SHARD_AT = 6, 2, 3
SAME = 1e-3
"""Differences of weights, of the order of 0.01, that come from the order in which ranks add up."""

EVERY = screen.OLD + screen.MISSING


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def has(frames: Any, colour: tuple[int, int, int]) -> bool:
    """Whether some pixel of frames `(..., 3, h, w)` has a colour."""
    return bool((np.moveaxis(frames, -3, -1) == colour).all(-1).any())


# --- Frames ---


@pytest.mark.parametrize("behaviour", EVERY)
def test_sequence_depends_on_its_seed_only_and_its_frames_follow_each_other(behaviour: str) -> None:
    one, again, other = (screen.sequence(behaviour, seed) for seed in (5, 5, 6))
    assert np.array_equal(one.after, again.after)
    assert one.after.shape != other.after.shape or not np.array_equal(one.after, other.after)
    assert np.array_equal(one.frames[1:, -1], one.after[:-1])
    assert np.array_equal(one.frames[1:, 0], one.frames[:-1, -1])


def test_what_the_base_data_lacks_is_in_none_of_its_frames() -> None:
    marks = {"open_browser": screen.WHITE, "new_folder": screen.YELLOW}
    old = screen.records_of(screen.sequence(behaviour, seed) for behaviour in screen.OLD for seed in range(15))
    for behaviour, mark in marks.items():
        assert not has(old["next"], mark)
        assert not has(old["next"], screen.GREY)
        for seed in range(15):
            assert has(screen.sequence(behaviour, seed).after[-1], mark), (behaviour, seed)


def test_document_follows_the_cursor_that_drags_it() -> None:
    for seed in range(20):
        dragged = screen.sequence("drag", seed)
        assert dragged.telling.any()
        held = dragged.events[:, 2] == 1
        assert not dragged.telling[~held].any()


def test_unknown_behaviour_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no behaviour 'scroll'; there are move, drag"):
        screen.sequence("scroll", 1)


def test_shard_is_what_the_schema_of_a_source_asks_for(tmp_path: Path) -> None:
    sequences = [screen.sequence(behaviour, 1) for behaviour in EVERY]
    (tmp_path / "one.npz").write_bytes(screen.shard(sequences))
    read_back = open_shard(tmp_path / "one.npz", "arrays")
    assert len(read_back) == sum(len(one.events) for one in sequences)
    settings = SourceSettings.model_validate({"format": "arrays", "live": True, "fields": screen.FIELDS})
    for row in (0, len(read_back) - 1):
        check_record(read_back[row], settings.schema_of_records)
    assert np.array_equal(read_back[0]["next"], sequences[0].after[0])


# --- The model ---


def test_event_is_a_mark_where_the_cursor_is() -> None:
    maps = event_maps(torch.tensor([[31, 23, 0, 1], [0, 7, 1, 0]]))
    assert maps.sum(dim=(2, 3)).tolist() == [[1, 0, 1], [1, 1, 0]]
    assert maps[0, 0, 23, 31] == maps[0, 2, 23, 31] == maps[1, 1, 7, 0] == 1


def test_levels_are_shifted_towards_noise_and_stay_between_0_and_1() -> None:
    levels = torch.tensor([0.0, 0.5, 1.0])
    assert shifted(levels, 1.0).tolist() == [0.0, 0.5, 1.0]
    assert shifted(levels, 3.0).tolist() == [0.0, 0.75, 1.0]


def test_untrained_model_repeats_the_last_frame_and_its_error_is_of_what_changes() -> None:
    frames, event, after = (part[:4] for part in held_out()["missing"])
    predicted = predict(Denoiser(), frames, event)
    assert torch.equal(predicted, frames[:, -1])
    assert changed_error(predicted, frames, after) > 0.2
    assert changed_error(after, frames, after) == 0.0


def test_model_learns_what_it_is_shown(tmp_path: Path, monkeypatch: Any) -> None:
    """One process, without a run."""
    monkeypatch.setattr(desktop, "OLD_SEQUENCES", 1)
    monkeypatch.setattr(desktop, "MISSING_SEQUENCES", 1)
    (tmp_path / "one.npz").write_bytes(screen.shard([screen.sequence("move", seed) for seed in range(1)]))
    given = {"base": {"format": "arrays", "path": str(tmp_path / "*.npz"), "fields": screen.FIELDS}}
    training = Training(30, samples=8, data=mixture(tensors_of, sources=given), evaluate_every=30, shown=tmp_path)
    frames, event, after = tensors_of(screen.records_of(screen.sequence("move", seed) for seed in range(2)))
    before = changed_error(predict(training.model, frames, event), frames, after)
    training.train()
    assert changed_error(predict(training.model, frames, event), frames, after) < 0.8 * before
    shown = np.load(tmp_path / "frames-30.npz")
    assert shown["predicted"].shape == shown["next"].shape
    assert np.array_equal(shown["next"], np.rint((held_out()["missing"][2].numpy() + 1) * 127.5).astype(np.uint8))


def test_samples_that_the_ranks_do_not_divide_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(Invalid, match="7 samples of a step cannot be divided evenly among 2 ranks"):
        Training(1, samples=7)


# --- Real ranks ---


def commands(files: RunFiles) -> list[dict[str, Any]]:
    return [
        command(KNOB_AT, kind="set_knobs", changes=[{"knob": "noise/shift", "value": 3.0}]),
        command(KNOB_AT, kind="set_knobs", changes=[{"knob": "noise/shift", "value": 30.0}]),
        command(SHARD_AT, kind="add_shards", source=trial.SOURCE, shards=[trial.write_fresh(files)]),
    ]


def farthest(weights: list[float], others: list[float]) -> float:
    return max(abs(weight - other) for weight, other in zip(weights, others, strict=True))


@pytest.mark.jobs
def test_knob_and_data_are_steered_and_the_number_of_ranks_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "base.npz").write_bytes(screen.shard([screen.sequence("drag", seed) for seed in range(6)]))
    ended = {}
    for ranks, arms in {1: ["steered"], 2: ["steered", "alone"]}.items():
        trainings = {}
        for arm in arms:
            files = RunFiles(tmp_path / f"{arm}-{ranks}")
            given = commands(files) if arm == "steered" else []
            spec = {"root": str(files.root), "base": str(tmp_path / "*.npz"), "steps": STEPS, "commands": given}
            trainings[arm] = spec
        function = "tests.ray_jobs.workloads.desktop_trial:everything"
        ended[ranks] = run_ranks(function, ranks, {"trainings": trainings}, tmp_path / f"out-{ranks}")
    (one,), two = ended[1], ended[2]
    assert two[0] == two[1]
    steered, alone = two[0]["steered"], two[0]["alone"]
    assert (steered["shift"], steered["fresh_share"], alone["fresh_share"]) == (3.0, 0.5, 0.0)
    assert steered["fresh_records"] > 50
    assert steered["weights"] == pytest.approx(one["steered"]["weights"], abs=SAME)
    assert farthest(steered["weights"], alone["weights"]) > 10 * farthest(steered["weights"], one["steered"]["weights"])
    settled = [entry.record for entry in read(RunFiles(tmp_path / "steered-2").journal)]
    knob, refused, data = (each for each in settled if isinstance(each, CommandSettled))
    assert (knob.status, knob.after, knob.step) == ("applied", {"noise/shift": 3.0}, KNOB_AT)
    assert refused.status == "rejected"
    assert "noise/shift" in (refused.reason or "")
    assert (data.status, (data.after or {})["first_step"]) == ("applied", SHARD_AT + 1)

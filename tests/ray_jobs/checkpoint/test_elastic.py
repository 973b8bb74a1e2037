"""A run goes on with fewer or more ranks: 4, then 3, then 2, then 4, held against 4 ranks that nobody disturbed."""

import json
import multiprocessing
import os
import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from control_plane.core.model.errors import Damaged, Refused, Unavailable
from control_plane.storage.checkpoint.store import Manifest, SigningKey, commit, hash_shard, list_checkpoints, verify
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint import convert as converting
from ray_jobs.checkpoint.convert import convert, ensure_universal, universal_name
from ray_jobs.checkpoint.universal import consolidated_files, described, digest
from ray_jobs.data.sample_order import sample_order
from tests.ray_jobs.support.ranks import run_ranks

pytestmark = [pytest.mark.jobs, pytest.mark.timeout(900)]

RANKS, STEPS = (4, 3, 2, 4), (2, 4, 6, 8)
"""So many ranks train up to these steps. An epoch has three: two switches are in the middle of one."""

SAMPLES, GLOBAL_BATCH, SEED = 41, 12, 11
LOSS_TOLERANCE = 5e-6
"""Measured: at most 2.4e-7 in losses of about 3.8 (gradients are added up in another order)."""

RANK_TIMEOUT_S = 200

DEFAULT = [(2, "deepspeed"), (3, "hf")]
ALL = [(stage, optimizer) for stage in (1, 2, 3) for optimizer in ("deepspeed", "hf")]


@dataclass
class Journey:
    """One training that changed its number of ranks: what every rank saw on each leg, and in the undisturbed one."""

    case: tuple[int, str]
    files: RunFiles
    undisturbed: list[Any] = field(default_factory=list)
    legs: list[list[Any]] = field(default_factory=list)

    def state(self, file: str) -> dict[str, dict[str, torch.Tensor]]:
        return dict(torch.load(self.files.root / "seen" / file, weights_only=False))


@dataclass
class Travelled:
    key_file: Path
    journeys: list[Journey]

    @property
    def key(self) -> SigningKey:
        return SigningKey.of_installation(self.key_file)

    def training(
        self, journey: Journey, until: int, leg: int | None = None, begin: int | None = None
    ) -> dict[str, Any]:
        stage, optimizer = journey.case
        found = {"run": str(journey.files.root), "key": str(self.key_file), "stage": stage, "optimizer": optimizer}
        name = "undisturbed" if leg is None else f"after-{until}"
        return found | {"name": name, "until": until, "from": f"after-{begin}" if begin else None}


@pytest.fixture(scope="module", params=["default", pytest.param("all", marks=pytest.mark.slow)])
def travelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Travelled:
    """All cases go through the same processes: importing everything costs more than training."""
    folder = tmp_path_factory.mktemp(f"elastic-{request.param}")
    cases = DEFAULT if request.param == "default" else ALL
    done = Travelled(folder / "key", [Journey(case, RunFiles(folder / f"zero{case[0]}-{case[1]}")) for case in cases])
    legs = [{"ranks": RANKS[0], "trainings": [done.training(journey, STEPS[-1]) for journey in done.journeys]}]
    for leg, (ranks, until) in enumerate(zip(RANKS, STEPS, strict=True)):
        begin = STEPS[leg - 1] if leg else None
        legs.append({"ranks": ranks, "trainings": [done.training(one, until, leg, begin) for one in done.journeys]})
    spec = {"legs": legs, "rank_timeout_s": RANK_TIMEOUT_S}
    undisturbed, *on_the_way = run_ranks("tests.ray_jobs.trials.elastic_trials:travel", 1, spec, folder)[0]
    for index, journey in enumerate(done.journeys):
        journey.undisturbed, journey.legs = undisturbed[index], [leg[index] for leg in on_the_way]
    return done


def test_elastic_switches_keep_the_consolidated_state_exactly(travelled: Travelled) -> None:
    for journey in travelled.journeys:
        for leg, step in enumerate(STEPS[:-1]):
            saved, loaded = journey.state(f"after-{step}.saved.pt"), journey.state(f"after-{step}-universal.loaded.pt")
            assert {key for state in saved.values() for key in state} == {"fp32", "exp_avg", "exp_avg_sq", "step"}
            assert saved.keys() == loaded.keys()
            different = [
                (journey.case, step, name, key)
                for name in saved
                for key in saved[name]
                if not torch.equal(saved[name][key], loaded[name][key])
            ]
            assert not different
            told = {rank["ended"]["digest"] for rank in journey.legs[leg]}
            told |= {rank["loaded"]["digest"] for rank in journey.legs[leg + 1]}
            assert told == {described(journey.files.checkpoints / f"after-{step}-universal")["sha256"]}


def test_elastic_switches_keep_the_hyper_parameters_of_every_group(travelled: Travelled) -> None:
    for journey in travelled.journeys:
        steered = journey.undisturbed[0]["ended"]["groups"]
        if journey.case[1] == "hf":
            assert [(group["lr"], group["weight_decay"]) for group in steered] == [(1e-2, 0.1), (4e-3, 0.0)]
        for leg in range(1, len(RANKS)):
            saved = journey.legs[leg - 1][0]["ended"]["groups"]
            assert saved == steered, journey.case
            assert [rank["loaded"]["groups"] for rank in journey.legs[leg]] == [saved] * RANKS[leg], journey.case


def test_elastic_steps_consume_the_same_samples_in_the_same_order(travelled: Travelled) -> None:
    for journey in travelled.journeys:
        on_the_way = {step: samples for leg in journey.legs for step, samples in consumed(leg).items()}
        assert on_the_way == consumed(journey.undisturbed) == due()


def test_elastic_ranks_share_the_global_batch_by_accumulation(travelled: Travelled) -> None:
    for journey in travelled.journeys:
        assert [leg[0]["batch"] for leg in journey.legs] == [[3, 1], [2, 2], [3, 2], [3, 1]]
        assert {rank["engine_batch"] for leg in journey.legs for rank in leg} == {GLOBAL_BATCH}


def test_elastic_losses_stay_close_to_the_undisturbed_run(travelled: Travelled) -> None:
    for journey in travelled.journeys:
        expected = journey.undisturbed[0]["losses"]
        losses = {step: loss for leg in journey.legs for step, loss in leg[0]["losses"].items()}
        assert losses.keys() == expected.keys()
        far = {step: abs(losses[step] - expected[step]) for step in expected}
        print(f"ZeRO {journey.case}: largest difference of losses {max(far.values()):.2e}")
        assert max(far.values()) < LOSS_TOLERANCE, (journey.case, far)
        assert losses["1"] == expected["1"]
        assert losses["2"] == expected["2"]


def test_elastic_adam_has_counted_every_step_once(travelled: Travelled) -> None:
    for journey in travelled.journeys:
        ended, expected = journey.state(f"after-{STEPS[-1]}.saved.pt"), journey.state("undisturbed.saved.pt")
        assert {name: float(ended[name]["step"]) for name in ended} == {
            name: float(expected[name]["step"]) for name in expected
        }


def consumed(ranks: list[Any]) -> dict[str, list[int]]:
    """Samples of each step, in the order of micro-batches, then ranks."""
    return {
        step: [number for micro in range(len(taken)) for rank in ranks for number in rank["samples"][step][micro]]
        for step, taken in ranks[0]["samples"].items()
    }


def due() -> dict[str, list[int]]:
    """What each step is to consume: a pure function of the seed."""
    per_epoch = SAMPLES // GLOBAL_BATCH
    found = {}
    for step in range(STEPS[-1]):
        epoch, at = divmod(step, per_epoch)
        order = sample_order(SEED, epoch, SAMPLES)
        found[str(step + 1)] = order[at * GLOBAL_BATCH : (at + 1) * GLOBAL_BATCH].tolist()
    return found


# --- The converter ---


@pytest.fixture
def saved(travelled: Travelled, tmp_path: Path) -> RunFiles:
    """A run with one checkpoint of four ranks, nothing converted yet."""
    source = travelled.journeys[0].files.checkpoints / "after-2"
    files = RunFiles(tmp_path / "run")
    shutil.copytree(source, files.checkpoints / source.name)
    return files


def test_convert_carries_the_manifest_and_our_own_files_over(travelled: Travelled, saved: RunFiles) -> None:
    assert convert(saved, "after-2", travelled.key) == "after-2-universal"
    source = verify(saved.checkpoints / "after-2", travelled.key)
    made = verify(saved.checkpoints / "after-2-universal", travelled.key)
    assert (made.kind, made.converted_from, made.ranks) == ("universal", "after-2", ())
    own = {"checkpoint", "kind", "converted_from", "shards", "ranks", "signature"}
    assert made.model_dump(exclude=own) == source.model_dump(exclude=own)
    paths = {shard.path for shard in made.shards}
    assert {f"state/rank-{rank}-progress.pt" for rank in range(4)} | {"state/trainer_state.json"} <= paths
    root = saved.checkpoints / "after-2-universal"
    assert digest(consolidated_files(root)) == described(root)["sha256"]
    assert not (saved.checkpoints / "latest_universal").exists()


def test_convert_twice_changes_nothing(travelled: Travelled, saved: RunFiles) -> None:
    name = convert(saved, "after-2", travelled.key)
    before = (saved.checkpoints / name / "manifest.json").stat()
    assert convert(saved, "after-2", travelled.key) == name
    assert convert(saved, name, travelled.key) == name
    after = (saved.checkpoints / name / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_convert_replaces_a_damaged_result(travelled: Travelled, saved: RunFiles) -> None:
    root = saved.checkpoints / convert(saved, "after-2", travelled.key)
    (root / "state" / "trainer_state.json").write_text("{ }")
    (root / "manifest.json").unlink()
    convert(saved, "after-2", travelled.key)
    assert verify(root, travelled.key).kind == "universal"


def test_convert_of_a_damaged_source_unpickles_nothing(travelled: Travelled, saved: RunFiles, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, Any]:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    for path in (saved.checkpoints / "after-2" / "state").glob("*.pt"):
        size = path.stat().st_size
        path.write_bytes(pickle.dumps(Bomb()).ljust(size, b"\0"))
    with pytest.raises(Damaged, match="differs from what was saved"):
        convert(saved, "after-2", travelled.key)
    assert not (tmp_path / "unpickled").exists()
    assert [one.name for one in saved.checkpoints.iterdir() if not one.name.startswith(".")] == ["after-2"]


def test_convert_of_a_checkpoint_without_shares_answers_itself(travelled: Travelled, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "plain")
    root = files.checkpoints / "whole"
    (root / "state").mkdir(parents=True)
    (root / "state" / "mp_rank_00_model_states.pt").write_bytes(b"every rank has everything")
    shards = (hash_shard(root, root / "state" / "mp_rank_00_model_states.pt", 0),)
    manifest = Manifest(
        checkpoint="whole", run="plain", generation=1, step=3, world_size=2, shards=shards, samples_consumed=0
    )
    commit(root, manifest, travelled.key)
    assert convert(files, "whole", travelled.key) == "whole"


def test_convert_of_what_deepspeed_refuses_is_refused_and_leaves_nothing(travelled: Travelled, saved: RunFiles) -> None:
    root = saved.checkpoints / "after-2"
    manifest = verify(root, travelled.key)
    (root / "manifest.json").unlink()
    path = root / "state" / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=False)
    del state["universal_checkpoint_info"]
    torch.save(state, path)
    shards = tuple(hash_shard(root, one, 0) for one in sorted((root / "state").iterdir()))
    commit(root, manifest.model_copy(update={"shards": shards}), travelled.key)
    with pytest.raises(Refused, match=r"cannot convert checkpoint after-2: .*universal_checkpoint_info"):
        convert(saved, "after-2", travelled.key)
    assert [one.checkpoint for one in list_checkpoints(saved.checkpoints, travelled.key)] == ["after-2"]
    assert not any((saved.checkpoints / ".converting").iterdir())


def test_conversions_that_race_end_with_one_good_result(travelled: Travelled, saved: RunFiles) -> None:
    racers = [forked(convert_and_exit, saved.root, travelled.key_file, "nowhere") for _ in range(2)]
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert verify(saved.checkpoints / "after-2-universal", travelled.key).converted_from == "after-2"
    assert not any((saved.checkpoints / ".converting").iterdir())


@pytest.mark.parametrize("at", ["before the commit", "after the commit"])
def test_convert_that_dies_leaves_nothing_selectable(travelled: Travelled, saved: RunFiles, at: str) -> None:
    victim = forked(convert_and_exit, saved.root, travelled.key_file, at)
    victim.join(120)
    assert victim.exitcode == 9
    assert [one.checkpoint for one in list_checkpoints(saved.checkpoints, travelled.key)] == ["after-2"]
    assert any((saved.checkpoints / ".converting").iterdir())
    convert(saved, "after-2", travelled.key)
    assert verify(saved.checkpoints / "after-2-universal", travelled.key).kind == "universal"
    assert not any((saved.checkpoints / ".converting").iterdir())


def forked(function: Any, *args: Any) -> Any:
    """A process that need not import everything again."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def convert_and_exit(root: Path, key_file: Path, dies: str) -> None:
    def commit_and_die(*args: Any) -> None:
        if dies == "after the commit":
            commit(*args)
        os._exit(9)

    if dies != "nowhere":
        converting.commit = commit_and_die  # type: ignore[assignment]
    convert(RunFiles(root), "after-2", SigningKey.of_installation(key_file))


def test_ensure_universal_converts_in_a_process_of_its_own(travelled: Travelled, saved: RunFiles) -> None:
    said: list[str] = []
    assert ensure_universal(saved, "after-2", travelled.key_file, said.append) == universal_name("after-2")
    assert verify(saved.checkpoints / "after-2-universal", travelled.key).step == 2
    assert len(said) == 2
    assert "after-2-universal is ready" in said[1]


def test_ensure_universal_of_a_damaged_source_tells_the_sentence(travelled: Travelled, saved: RunFiles) -> None:
    path = saved.checkpoints / "after-2" / "state" / "trainer_state.json"
    path.write_text("[]")
    with pytest.raises(Damaged, match=r"trainer_state\.json of checkpoint after-2 differs from what was saved"):
        ensure_universal(saved, "after-2", travelled.key_file, print)


def test_ensure_universal_of_another_checkpoint_than_was_recorded_converts_nothing(
    travelled: Travelled, saved: RunFiles
) -> None:
    with pytest.raises(Damaged, match="checkpoint after-2 differs from the one recorded in the journal"):
        ensure_universal(saved, "after-2", travelled.key_file, print, recorded_sha256="0" * 64)


def test_ensure_universal_does_not_wait_for_ever(travelled: Travelled, saved: RunFiles) -> None:
    with pytest.raises(Unavailable, match=r"did not end within 0\.1 s and was stopped"):
        ensure_universal(saved, "after-2", travelled.key_file, print, timeout_s=0.1)


@pytest.mark.parametrize("name", ["../after-2", ".converting", "nothing"])
def test_command_line_refuses_with_a_sentence(
    travelled: Travelled, saved: RunFiles, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = converting.main([str(saved.root), name, "--key-file", str(travelled.key_file), "--json"])
    out, err = capsys.readouterr()
    assert status != 0
    assert json.loads(out)["reason"] == err.strip()
    assert "Traceback" not in err

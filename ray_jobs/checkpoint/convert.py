"""Conversion of a checkpoint to DeepSpeed's universal format, for any number of ranks, in a subprocess.

    python -m ray_jobs.checkpoint.convert RUN_FOLDER CHECKPOINT --key-file KEY [--json]

The whole source is verified before any of it is unpickled. The result is a checkpoint of its own, signed and committed
as any other, in a folder below `.converting`, which no listing of checkpoints reads; then one rename puts it in place.
So a crash leaves nothing that could be selected, and of concurrent conversions one wins: converting is idempotent.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from control_plane.core.model.errors import Damaged, Invalid, Refused, SteerwayError, Unavailable
from control_plane.core.model.records import UNIVERSAL
from control_plane.programs import program
from control_plane.storage.checkpoint.cleanup import space_shortage
from control_plane.storage.checkpoint.shards import sync_folder
from control_plane.storage.checkpoint.store import (
    Manifest,
    SigningKey,
    commit,
    discard,
    hash_shard,
    read_manifest,
    verify,
)
from control_plane.storage.failpoints import reach
from control_plane.storage.layout import STATE, RunFiles
from control_plane.storage.private import FOLDER_MODE, make_folder, write_file
from ray_jobs.process.error_text import error_text

WORKSHOP = ".converting"
"""Working folder beside the checkpoints; a hidden folder is never listed as a checkpoint."""

OPTIMIZER_FILES, MODEL_FILES = "*_optim_states.pt", "*_model_states.pt"

MAX_WORKERS = 8
"""More do not help: they wait for the same disk, and each holds one rank's share in memory."""

ROOM_FACTOR = 2.5
"""Peak disk use in source sizes: fragments, merged tensors, and copies of the model's files."""

TIMEOUT_S = 3600.0
"""A conversion reads and writes the checkpoint about three times; one that takes longer has hung."""

TOLD_CHARS = 2000


def universal_name(name: str) -> str:
    """Return the name of the universal checkpoint that is converted from `name`."""
    return f"{name}{UNIVERSAL}"


def ensure_universal(
    files: RunFiles,
    name: str,
    key_file: Path,
    say: Callable[[str], None],
    timeout_s: float = TIMEOUT_S,
    recorded_sha256: str = "",
) -> str:
    """Convert in a subprocess; return the name of a checkpoint that loads on any number of ranks.

    That is `name` itself if it already does. `say` gets progress messages. Raises `Damaged` or `Refused` with
    the converter's sentence, `Unavailable` if it did not end within `timeout_s` seconds or died.
    """
    say(f"converting checkpoint {name} for another number of ranks")
    command = program("ray_jobs.checkpoint.convert", str(files.root), name, "--key-file", str(key_file), "--json")
    command += ["--recorded-sha256", recorded_sha256] if recorded_sha256 else []
    began_s = time.monotonic()
    status, out, err = _run_bounded(command, timeout_s)
    answer = _answer(out)
    if status == 0 and "checkpoint" in answer:
        say(f"checkpoint {answer['checkpoint']} is ready after {time.monotonic() - began_s:.1f} s")
        return str(answer["checkpoint"])
    if "reason" in answer:
        raise (Damaged if answer.get("slug") == Damaged.slug else Refused)(str(answer["reason"]))
    last = err.strip()[-TOLD_CHARS:]
    raise Unavailable(f"converting checkpoint {name} ended with status {status} and no answer; it said last: {last}")


def convert(files: RunFiles, name: str, key: SigningKey, recorded_sha256: str = "") -> str:
    """Convert in this process; return the name of a checkpoint that loads on any number of ranks. Imports DeepSpeed.

    `recorded_sha256` is what the journal says of the source's manifest. Idempotent.
    Raises `Damaged` if the source does not verify (then nothing of it was unpickled), `Refused` if it cannot be
    converted or the disk is too full, `Unavailable` if the disk fails.
    """
    source = files.checkpoints / name
    manifest = read_manifest(source, key, recorded_sha256)
    if manifest.kind == "universal" or not _is_partitioned(source):
        verify(source, key, recorded_sha256=recorded_sha256)
        return name
    target = files.checkpoints / universal_name(name)
    if _is_ready(target, manifest, key):
        return target.name
    manifest = verify(source, key, recorded_sha256=recorded_sha256)
    if refusal := space_shortage(files.checkpoints, int(manifest.size_bytes * ROOM_FACTOR)):
        raise Refused(refusal)
    try:
        with _workplace(files.checkpoints) as place:
            made = place / target.name
            with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed's loggers and converter print
                _build(source, made)
            _commit(made, manifest, key)
            _take_place(made, target, manifest, key)
    except OSError as error:
        raise Unavailable(f"checkpoint {name} could not be converted: {error}") from error
    return target.name


def _is_partitioned(source: Path) -> bool:
    """Return whether optimizer state is partitioned; without ZeRO the checkpoint loads on any number of ranks."""
    return any((source / STATE).glob(OPTIMIZER_FILES))


def _is_ready(target: Path, source: Manifest, key: SigningKey) -> bool:
    """Return whether a complete conversion of this very source exists already."""
    try:
        converted = verify(target, key)
    except Damaged:
        return False
    same = all(
        getattr(converted, field) == getattr(source, field) for field in ("run", "generation", "step", "saved_at")
    )
    return same and converted.kind == "universal" and converted.converted_from == source.checkpoint


# --- Building ---


def _build(source: Path, made: Path) -> None:
    """Run DeepSpeed's conversion, then copy the files that it does not carry over."""
    make_folder(made / STATE)
    _convert_state(source / STATE, made / STATE)
    left_out = {path.name for pattern in (OPTIMIZER_FILES, MODEL_FILES) for path in (source / STATE).glob(pattern)}
    for path in sorted((source / STATE).iterdir()):
        if path.is_file() and path.name not in left_out:
            shutil.copy2(path, made / STATE)
    _describe(made)


def _convert_state(source: Path, made: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    workers = max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)), len(list(source.glob(OPTIMIZER_FILES)))))
    settings = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(made),
        num_extract_workers=workers,
        num_merge_workers=workers,
        keep_temp_folder=False,
        inject_missing_state=False,
        strict=True,
    )
    try:
        ds_to_universal.main(settings)
    except (AssertionError, NotImplementedError, RuntimeError, ValueError, KeyError, FileNotFoundError) as error:
        why = error_text(error)[:TOLD_CHARS]
        raise Refused(f"DeepSpeed cannot convert checkpoint {source.parent.name}: {why}") from error
    # It names the newest of several, which the manifests do.
    (made.parent / "latest_universal").unlink(missing_ok=True)
    if (made / "tmp").exists():
        raise Unavailable(f"DeepSpeed left its fragments of {source.parent.name} behind")


def _describe(made: Path) -> None:
    """Write the digest and parameter groups that a load is compared with, from the files that it will read."""
    import torch

    from ray_jobs.checkpoint.universal import CONSOLIDATED, consolidated_files, digest, plain_groups

    about = torch.load(made / STATE / "zero" / "optimizer_state.pt", map_location="cpu", weights_only=False)
    described = {
        "zero_stage": int(about["zero_stage"]),
        "sha256": digest(consolidated_files(made)),
        "groups": plain_groups(about["param_groups"]),
    }
    write_file(made / CONSOLIDATED, json.dumps(described, indent=1, sort_keys=True, allow_nan=False))


# --- Committing ---


def _commit(made: Path, source: Manifest, key: SigningKey) -> None:
    """Sign and commit the converted checkpoint, with the source manifest's facts about the training."""
    paths = sorted(path for path in made.rglob("*") if path.is_file())
    changed = {
        "checkpoint": made.name,
        "kind": "universal",
        "converted_from": source.checkpoint,
        "shards": tuple(hash_shard(made, path, rank=0) for path in paths),
        # They are of ranks' shares, of which there are none here; see CONSOLIDATED.
        "ranks": (),
        "signature": "",
    }
    commit(made, source.model_copy(update=changed), key)


def _take_place(made: Path, target: Path, source: Manifest, key: SigningKey) -> None:
    """Rename into place, unless a concurrent conversion did; a broken folder of that name is discarded first."""
    if os.path.lexists(target) and not _is_ready(target, source, key):
        discard(target.parent, target.name)
    reach("conversion.name", "before_rename")
    try:
        os.rename(made, target)
    except OSError:
        if not _is_ready(target, source, key):
            raise
    sync_folder(target.parent, "conversion.name")


@contextlib.contextmanager
def _workplace(checkpoints: Path) -> Iterator[Path]:
    """Yield a private working folder; those of dead processes are removed first."""
    workshop = checkpoints / WORKSHOP
    workshop.mkdir(mode=FOLDER_MODE, exist_ok=True)
    with contextlib.ExitStack() as held:
        with _locked(workshop, wait=True):  # nobody takes our folder for an abandoned one before it is locked
            for abandoned in workshop.iterdir():
                _remove_abandoned(abandoned)
            place = Path(tempfile.mkdtemp(dir=workshop))
            held.enter_context(_locked(place))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    try:
        with _locked(place) as free:
            if free:
                shutil.rmtree(place, ignore_errors=True)
    except (FileNotFoundError, NotADirectoryError):
        return  # its owner is done, or it is no work of ours


@contextlib.contextmanager
def _locked(place: Path, wait: bool = False) -> Iterator[bool]:
    """Lock a folder; yields whether it was free. The kernel releases the lock when the process dies."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


# --- A process of its own ---


def _run_bounded(command: list[str], timeout_s: float) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr; on timeout the process and its workers are killed."""
    # Converting needs no accelerator, and must not take memory of one that is training.
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # Into files: the workers of a converter that was killed would hold pipes open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err, start_new_session=True)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"converting a checkpoint did not end within {timeout_s:g} s and was stopped") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return status, _text(out), _text(err)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _answer(out: str) -> dict[str, Any]:
    try:
        answer = json.loads(out)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code. stdout has only the result."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.checkpoint.convert", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--key-file", type=Path, required=True, help="the installation's signing key")
    parser.add_argument("--recorded-sha256", default="", help="what the journal says of the checkpoint's manifest")
    parser.add_argument("--json", action="store_true", help="answer with one JSON object, also when refusing")
    given = parser.parse_args(arguments)
    try:
        if given.checkpoint != Path(given.checkpoint).name or given.checkpoint.startswith("."):
            raise Invalid(f"{given.checkpoint!r} is not the name of a checkpoint")
        key = SigningKey.of_installation(given.key_file)
        name = convert(RunFiles(given.run_folder), given.checkpoint, key, given.recorded_sha256)
    except SteerwayError as error:
        print(json.dumps({"slug": error.slug, "reason": error.reason}) if given.json else "", end="")
        print(error.reason, file=sys.stderr)
        return error.exit_code
    print(json.dumps({"checkpoint": name}) if given.json else name)
    return 0


if __name__ == "__main__":
    os.umask(0o077)  # for what DeepSpeed's converter makes
    sys.exit(main())

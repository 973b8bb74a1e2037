"""Export and import of a run's journal as one verifiable file.

A ZIP with exactly these members:

    manifest.json         the contents: `ExportManifest`
    config.yaml           the run's resolved configuration; possible secrets are replaced
    journal/000001.jsonl  the segments, as far as they are honoured, byte for byte; ...

Deterministic: two exports of one journal on one machine are identical. An import trusts nothing: names, sizes, hashes
and the journal's hash chain are verified before anything is written, and the run folder appears atomically.

The run's code does not travel: its config names the hash of its code bundle, and whoever wants to run it uploads the
same folder. A journal may be shown to people who may not have the code.

Not covered: secrets that people wrote into reasons, labels and arguments of commands: records are hash-chained.
"""

import io
import json
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from control_plane.config_text import compose, from_yaml
from control_plane.core.model.errors import Conflict, Damaged, Invalid, NotFound, Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import Entry, RunCreated
from control_plane.core.model.redaction import Redaction, concealed_arguments, conceals, names_secret
from control_plane.storage.checkpoint.shards import sync, sync_folder, write_all
from control_plane.storage.journal.audit import Head, audit
from control_plane.storage.journal.provenance import Machine, Trainers, this_machine, trainers_of
from control_plane.storage.journal.segments import SEGMENT_NAME, Segment, honoured, segment_name, verify
from control_plane.storage.layout import IMPORTED, RunFiles, check_run_id
from control_plane.storage.private import FILE_MODE, make_folder
from control_plane.storage.regular import read_regular

FORMAT = 1
MANIFEST, CONFIG, SEGMENTS = "manifest.json", "config.yaml", "journal/"
MEMBER = re.compile(rf"config\.yaml|journal/{SEGMENT_NAME.pattern}")

MAX_EXPORT_BYTES = 2 * 2**30
"""Limit of all members together, unpacked: a journal of a million commands has a quarter of that."""

MAX_RATIO, SMALL_BYTES = 100, 64 * 2**20
"""Limit of the compression ratio of an export that is not small (zip bombs): no two lines of a journal are equal."""

MAX_MEMBERS = 20_000
"""One segment per start of a control server."""

MAX_MANIFEST_BYTES = 8 * 2**20
REMOVED = "removed-by-export"
SHAPES = Redaction()
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time stamp of every member: the oldest that a ZIP can hold."""


class Member(Message):
    """Size and hash of one file in an export."""

    size_bytes: int = Field(ge=0)
    sha256: str


class ExportManifest(Message):
    """Manifest of an export: contents and origin. `removed`: config keys whose values were removed as secrets."""

    format: int = FORMAT
    run: str
    records: int
    head: Head
    machine: Machine
    trainers: Trainers
    removed: tuple[str, ...] = ()
    files: dict[str, Member]


@dataclass(frozen=True, slots=True)
class Export:
    """A verified export; `settings` is its config, parsed strictly."""

    manifest: ExportManifest
    files: dict[str, bytes]
    entries: list[Entry]
    settings: Any

    @property
    def config_is_the_runs(self) -> bool:
        """Return whether the config is byte for byte the one that the run was created with."""
        created = self.entries[0].record if self.entries else None
        return isinstance(created, RunCreated) and created.config_sha256 == sha256(self.files[CONFIG]).hexdigest()


def export(run: RunFiles, target: Path) -> ExportManifest:
    """Export the run's journal to a file. A torn tail is left out.

    Raises `Damaged` if the journal does not verify, `Conflict` if the file exists, `Unavailable` if the disk fails,
    `NotFound`.
    """
    audited = audit(run.journal)
    if audited.verdict == "damaged":
        raise Damaged(f"run {run.run} cannot be exported: {audited.sentence()}")
    if target.exists():
        raise Conflict(f"the file {target} already exists; choose another name with -o, or remove it")
    try:
        manifest, data = _packed(run)
        _write_new(target, data)
    except FileExistsError:
        raise Conflict(f"the file {target} already exists; choose another name with -o, or remove it") from None
    except OSError as error:
        raise Unavailable(f"the export could not be written: {error.strerror or error}: {target}") from error
    return manifest


def _packed(run: RunFiles) -> tuple[ExportManifest, bytes]:
    segments = honoured(run.journal)
    entries, end = verify(segments)
    if not entries:
        raise NotFound(f"the journal of run {run.run} has no records yet")
    files = {SEGMENTS + segment_name(one.number): one.data for one in segments}
    newest = SEGMENTS + segment_name(segments[-1].number)
    files[newest] = files[newest][: end.size_bytes]
    config, removed = without_secrets(read_regular(run.config))
    files = {CONFIG: config, **files}
    # The last record's hash, not that of a segment header without records after it.
    manifest = ExportManifest(
        run=_run_of(entries),
        records=len(entries),
        head=Head(seq=len(entries), hash=_last_record(segments, end.size_bytes)),
        machine=this_machine(),
        trainers=trainers_of(entries),
        removed=removed,
        files={name: Member(size_bytes=len(data), sha256=sha256(data).hexdigest()) for name, data in files.items()},
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"
    return manifest, _zipped({MANIFEST: text, **files})


def _last_record(segments: list[Segment], end_bytes: int) -> str:
    for segment in reversed(segments):
        data = segment.data[:end_bytes] if segment is segments[-1] else segment.data
        lines = data.splitlines()[1:]
        if lines:
            return sha256(lines[-1]).hexdigest()
    return ""


def _run_of(entries: list[Entry]) -> str:
    created = entries[0].record
    return created.run if isinstance(created, RunCreated) else ""


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o600 << 16
            archive.writestr(info, data, compresslevel=6)
    return buffer.getvalue()


def _write_new(path: Path, data: bytes) -> None:
    """Write a new file atomically and durably, under a temporary name first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write(temporary, data)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.absolute().parent, "export.folder")


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(descriptor, data, "export.file")
        sync(descriptor, "export.file")
    finally:
        os.close(descriptor)


def without_secrets(config: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Replace possible secrets in a config (see `core.redaction`); return it and their keys. All else stays as it is.

    Raises `Damaged` if it cannot be parsed.
    """
    try:
        text = config.decode()
        secret_nodes = list(_secrets(compose(text, CONFIG), "", ""))
    except (UnicodeDecodeError, Invalid) as error:
        raise Damaged(f"the run's config.yaml cannot be parsed, so nothing is exported: {error}") from None
    for _, node, kept in reversed(secret_nodes):
        start, stop = node.start_mark.index, node.end_mark.index
        after = text[start:stop].rstrip()  # the end of a block's last line belongs to what follows
        text = text[:start] + (json.dumps(kept) if kept != REMOVED else kept) + text[start + len(after) :]
    return text.encode(), tuple(name for name, _, _ in secret_nodes)


def _secrets(node: yaml.Node | None, within: str, key: str) -> Iterator[tuple[str, yaml.Node, str]]:
    """Yield possible secrets in text order: name, node, and replacement. `key`: the key that the node belongs to."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            named = str(name.value)
            inside = f"{within}.{named}" if within else named
            yield from _secrets(value, inside, key if names_secret(key) else named)
    elif isinstance(node, yaml.SequenceNode):
        arguments = dict(concealed_arguments([_plain(item) for item in node.value]))
        for number, inner in enumerate(node.value):
            if number in arguments:
                yield f"{within}[{number}]", inner, arguments[number] + REMOVED
            else:
                yield from _secrets(inner, f"{within}[{number}]", key)
    elif isinstance(node, yaml.ScalarNode):
        if conceals(key, _plain(node)):
            yield within, node, REMOVED
        elif (kept := SHAPES.text(node.value)) != node.value:
            yield within, node, kept


def _plain(node: yaml.Node) -> str | bool | None:
    """Return a scalar as text; None for null, a boolean or a collection."""
    if not isinstance(node, yaml.ScalarNode) or node.tag.endswith((":null", ":bool")):
        return None
    return str(node.value)


def read_export(path: Path) -> Export:
    """Read and verify an export. Changes nothing.

    Raises `NotFound`, `Invalid` if it is not an export or one of a later release, `Damaged` if it does not verify.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive, path)
            files = {name: _member(archive, name, member, path) for name, member in manifest.files.items()}
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except zipfile.BadZipFile as error:
        raise _no_zip(path, error) from None
    except (OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from None
    return Export(manifest, files, _chain(manifest, files, path), _settings(files[CONFIG], path))


def _settings(config: bytes, path: Path) -> Any:
    try:
        return from_yaml(config.decode(), CONFIG)
    except (UnicodeDecodeError, Invalid) as error:
        raise Damaged(f"{path} contains no usable config: {error}") from None


def _no_zip(path: Path, error: Exception) -> Invalid | Damaged:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        return Damaged(f"{path} does not verify: it was truncated or changed ({error})")
    return Invalid(f"{path} is not a journal export: not a ZIP file")


def _manifest(archive: zipfile.ZipFile, path: Path) -> ExportManifest:
    names = archive.namelist()
    if MANIFEST not in names:
        raise Invalid(f"{path} is not a journal export: it has no {MANIFEST}")
    if len(names) > MAX_MEMBERS or archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
        raise Invalid(f"{path} exceeds the limits of an export: {len(names)} members")
    try:
        plain = json.loads(_bounded(archive, MANIFEST, MAX_MANIFEST_BYTES))
        if isinstance(plain, dict) and plain.get("format", FORMAT) != FORMAT:
            format_ = repr(plain["format"])[:40]
            raise Invalid(f"{path} has format {format_}; this release reads format {FORMAT}: upgrade Steerway")
        manifest = ExportManifest.model_validate(plain)
    except (ValidationError, ValueError, RecursionError) as error:
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)[:200]
        raise Damaged(f"the manifest of {path} is invalid: {what}") from None
    strange = [name for name in manifest.files if not MEMBER.fullmatch(name)]
    if strange or sorted(names) != sorted([MANIFEST, *manifest.files]) or CONFIG not in manifest.files:
        named = (strange or sorted(set(names) ^ {MANIFEST, *manifest.files}) or [CONFIG])[0]
        raise Damaged(
            f"{path} does not verify: {named[:80]!r} is not allowed, or is missing in the archive or in its manifest"
        )
    unpacked_bytes = sum(member.size_bytes for member in manifest.files.values())
    if unpacked_bytes > MAX_EXPORT_BYTES:
        raise Invalid(f"{path} exceeds the limit of an export, {MAX_EXPORT_BYTES:,} bytes unpacked")
    if unpacked_bytes > max(SMALL_BYTES, MAX_RATIO * path.stat().st_size):
        raise Invalid(
            f"{path} would unpack to {unpacked_bytes:,} bytes, more than {MAX_RATIO} times its size (a zip bomb?)"
        )
    for name, member in manifest.files.items():  # before a byte of it is unpacked
        if archive.getinfo(name).file_size != member.size_bytes:
            raise Damaged(f"{path} does not verify: {name} does not match its manifest")
    return manifest


def _bounded(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        return file.read(limit + 1)


def _member(archive: zipfile.ZipFile, name: str, member: Member, path: Path) -> bytes:
    data = _bounded(archive, name, member.size_bytes)
    if (len(data), sha256(data).hexdigest()) != (member.size_bytes, member.sha256):
        raise Damaged(f"{path} does not verify: {name} does not match its manifest")
    return data


def _chain(manifest: ExportManifest, files: dict[str, bytes], path: Path) -> list[Entry]:
    segments = [
        Segment(int(match[1]), data)
        for name, data in files.items()
        if (match := SEGMENT_NAME.fullmatch(name.removeprefix(SEGMENTS)))
    ]
    segments.sort(key=lambda one: one.number)
    try:
        entries, end = verify(segments)
    except Damaged as error:
        raise Damaged(f"{path} does not verify: {error.reason}") from None
    newest_bytes = len(segments[-1].data) if segments else 0
    head = Head(seq=len(entries), hash=_last_record(segments, end.size_bytes))
    if not entries or end.size_bytes != newest_bytes or (manifest.records, manifest.head) != (len(entries), head):
        raise Damaged(f"{path} does not verify: its journal ends at {head}, but its manifest says {manifest.head}")
    if _run_of(entries) != manifest.run:
        raise Damaged(f"{path} does not verify: its manifest names run {manifest.run!r}, but its journal names another")
    return entries


def import_run(exported: Export, runs_dir: Path, run: str | None = None) -> RunFiles:
    """Create a run folder from an export, atomically, under the run's own id or another one.

    Raises `Invalid` for a malformed id, `Conflict` if the run exists, `Damaged` if its journal contradicts itself,
    `Unavailable` if the disk fails.
    """
    files = RunFiles(runs_dir / check_run_id(run or exported.manifest.run))
    if files.root.exists():
        raise Conflict(f"run {files.run!r} already exists and was not changed; choose another id with --run")
    temporary = RunFiles(runs_dir / f".import-{secrets.token_hex(4)}")
    try:
        _fill(temporary, exported)
        audited = audit(temporary.journal)
        if audited.verdict != "intact":
            raise Damaged(f"nothing was imported: {audited.sentence()}")
        os.rename(temporary.root, files.root)
        sync_folder(runs_dir, "import.name")
    except FileExistsError:
        raise Conflict(f"run {files.run!r} already exists and was not changed") from None
    except OSError as error:
        raise Unavailable(f"the run could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary.root, ignore_errors=True)
    return files


def _fill(run: RunFiles, exported: Export) -> None:
    for folder in (run.journal, run.logs):
        make_folder(folder)
    for name, data in exported.files.items():
        _write(run.root / name, data)
    manifest = json.dumps(exported.manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"
    _write(run.root / IMPORTED, manifest)
    sync_folder(run.journal, "import.folders")
    sync_folder(run.root, "import.folders")

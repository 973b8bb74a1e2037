"""A run's journal as one file that another machine can read, verify and lay down again.

A ZIP with these members, and no others:

    manifest.json         what is in it: `Manifest`
    config.yaml           the run's resolved configuration; what may be a secret is replaced
    journal/000001.jsonl  the segments, as far as they are honoured, byte for byte; ...

Two exports of one journal on one machine are the same bytes. Reading one trusts nothing: names, sizes, hashes and the
journal's own chain are verified before anything is written, and then the whole run folder appears at once.

Not covered: what people wrote into reasons, labels and arguments of commands. The chain fixes it, so it is exported.
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
from control_plane.core.model.commands import Message
from control_plane.core.model.errors import Conflict, Damaged, Invalid, NotFound, Unavailable
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
"""All members together, unpacked: a journal of a million commands is a quarter of that."""

MAX_RATIO, SMALL_BYTES = 100, 64 * 2**20
"""Unpacked, an export has at most so many times its size, or is small: no two lines of a journal are the same."""

MAX_MEMBERS = 20_000
"""One segment a life of a control server."""

MAX_MANIFEST_BYTES = 8 * 2**20
REMOVED = "removed-by-export"
SHAPES = Redaction()
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member: the oldest that a ZIP can say."""


class Member(Message):
    """One file in an export."""

    size_bytes: int = Field(ge=0)
    sha256: str


class Manifest(Message):
    """What an export holds, and where it comes from. `removed` are the keys of the config whose values were secrets."""

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
    """An export that was read and verified; `settings` is its config, read strictly."""

    manifest: Manifest
    files: dict[str, bytes]
    entries: list[Entry]
    settings: Any

    @property
    def config_is_the_runs(self) -> bool:
        """Whether the config is, byte for byte, the one that the run was created with."""
        created = self.entries[0].record if self.entries else None
        return isinstance(created, RunCreated) and created.config_sha256 == sha256(self.files[CONFIG]).hexdigest()


def export(run: RunFiles, target: Path) -> Manifest:
    """Write the run's journal to one file. A torn tail is left out.

    Raises: `Damaged` for a journal that does not verify, `Conflict` if there is such a file already, `Unavailable` if
    the disk fails, `NotFound`.
    """
    found = audit(run.journal)
    if found.verdict == "damaged":
        raise Damaged(f"run {run.run} is not exported: {found.sentence()}")
    if target.exists():
        raise Conflict(f"there is a file {target} already; choose another name with -o, or remove it")
    try:
        manifest, data = _packed(run)
        _write_new(target, data)
    except FileExistsError:
        raise Conflict(f"there is a file {target} already; choose another name with -o, or remove it") from None
    except OSError as error:
        raise Unavailable(f"the export could not be written: {error.strerror or error}: {target}") from error
    return manifest


def _packed(run: RunFiles) -> tuple[Manifest, bytes]:
    segments = honoured(run.journal)
    entries, end = verify(segments)
    if not entries:
        raise NotFound(f"the journal of run {run.run} holds no record yet")
    files = {SEGMENTS + segment_name(one.number): one.data for one in segments}
    newest = SEGMENTS + segment_name(segments[-1].number)
    files[newest] = files[newest][: end.size_bytes]
    config, removed = without_secrets(read_regular(run.config))
    files = {CONFIG: config, **files}
    # The last line's hash, and not the header's of a segment without records behind it.
    manifest = Manifest(
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
    """The whole file, durable, or none: under another name first."""
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
    """The config without the values that may be secrets, see `core.redaction`, and their keys. All else stays.

    Raises `Damaged` if it cannot be read.
    """
    try:
        text = config.decode()
        found = list(_secrets(compose(text, CONFIG), "", ""))
    except (UnicodeDecodeError, Invalid) as error:
        raise Damaged(f"the run's config.yaml cannot be read, so nothing is exported: {error}") from None
    for _, node, kept in reversed(found):
        start, stop = node.start_mark.index, node.end_mark.index
        after = text[start:stop].rstrip()  # of a block of lines the last line's end belongs to what follows
        text = text[:start] + (json.dumps(kept) if kept != REMOVED else kept) + text[start + len(after) :]
    return text.encode(), tuple(name for name, _, _ in found)


def _secrets(node: yaml.Node | None, within: str, key: str) -> Iterator[tuple[str, yaml.Node, str]]:
    """What may be a secret: its name, where it lies, and what stays; in the order of the text. `key`: what it is of."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            named = str(name.value)
            inside = f"{within}.{named}" if within else named
            yield from _secrets(value, inside, key if names_secret(key) else named)
    elif isinstance(node, yaml.SequenceNode):
        arguments = dict(concealed_arguments([_plain(each) for each in node.value]))
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
    """A scalar as text: for `conceals` a number's text is as good as the number."""
    if not isinstance(node, yaml.ScalarNode) or node.tag.endswith((":null", ":bool")):
        return None
    return str(node.value)


def read_export(path: Path) -> Export:
    """What this file holds, after all of it was verified. Changes nothing.

    Raises: `NotFound`, `Invalid` for what is no export or one of a later release, `Damaged` if it does not verify.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive, path)
            files = {name: _member(archive, name, told, path) for name, told in manifest.files.items()}
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except zipfile.BadZipFile as error:
        raise _no_zip(path, error) from None
    except (OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from None
    return Export(manifest, files, _chain(manifest, files, path), _settings(files[CONFIG], path))


def _settings(config: bytes, path: Path) -> Any:
    try:
        return from_yaml(config.decode(), CONFIG)
    except (UnicodeDecodeError, Invalid) as error:
        raise Damaged(f"{path} holds no usable config: {error}") from None


def _no_zip(path: Path, error: Exception) -> Invalid | Damaged:
    with path.open("rb") as file:
        begins_like_one = file.read(4) == b"PK\x03\x04"
    if begins_like_one:
        return Damaged(f"{path} does not verify: it was cut short or changed ({error})")
    return Invalid(f"{path} is not an export of a journal: it is not a ZIP file")


def _manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    names = archive.namelist()
    if MANIFEST not in names:
        raise Invalid(f"{path} is not an export of a journal: it has no {MANIFEST}")
    if len(names) > MAX_MEMBERS or archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
        raise Invalid(f"{path} is larger than an export may be: {len(names)} members")
    try:
        plain = json.loads(_bounded(archive, MANIFEST, MAX_MANIFEST_BYTES))
        if isinstance(plain, dict) and plain.get("format", FORMAT) != FORMAT:
            told = repr(plain["format"])[:40]
            raise Invalid(f"{path} has format {told}; this release reads format {FORMAT}: a newer one is needed")
        manifest = Manifest.model_validate(plain)
    except (ValidationError, ValueError, RecursionError) as error:
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)[:200]
        raise Damaged(f"the manifest of {path} makes no sense: {what}") from None
    strange = [name for name in manifest.files if not MEMBER.fullmatch(name)]
    if strange or sorted(names) != sorted([MANIFEST, *manifest.files]) or CONFIG not in manifest.files:
        named = (strange or sorted(set(names) ^ {MANIFEST, *manifest.files}) or [CONFIG])[0]
        raise Damaged(
            f"{path} does not verify: {named[:80]!r} is in it or in its manifest, and not in both as it should"
        )
    unpacked_bytes = sum(told.size_bytes for told in manifest.files.values())
    if unpacked_bytes > MAX_EXPORT_BYTES:
        raise Invalid(f"{path} is larger than an export may be: the limit is {MAX_EXPORT_BYTES:,} bytes, unpacked")
    if unpacked_bytes > max(SMALL_BYTES, MAX_RATIO * path.stat().st_size):
        raise Invalid(
            f"{path} would unpack to {unpacked_bytes:,} bytes, more than {MAX_RATIO} times its size, as no journal does"
        )
    for name, member in manifest.files.items():  # before a byte of it is unpacked
        if archive.getinfo(name).file_size != member.size_bytes:
            raise Damaged(f"{path} does not verify: {name} is not what its manifest says")
    return manifest


def _bounded(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        return file.read(limit + 1)


def _member(archive: zipfile.ZipFile, name: str, told: Member, path: Path) -> bytes:
    data = _bounded(archive, name, told.size_bytes)
    if (len(data), sha256(data).hexdigest()) != (told.size_bytes, told.sha256):
        raise Damaged(f"{path} does not verify: {name} is not what its manifest says")
    return data


def _chain(manifest: Manifest, files: dict[str, bytes], path: Path) -> list[Entry]:
    segments = [
        Segment(int(match[1]), data)
        for name, data in files.items()
        if (match := SEGMENT_NAME.fullmatch(name.removeprefix(SEGMENTS)))
    ]
    segments.sort(key=lambda one: one.number)
    try:
        entries, end = verify(segments)
    except Damaged as refusal:
        raise Damaged(f"{path} does not verify: {refusal.reason}") from None
    newest_bytes = len(segments[-1].data) if segments else 0
    head = Head(seq=len(entries), hash=_last_record(segments, end.size_bytes))
    if not entries or end.size_bytes != newest_bytes or (manifest.records, manifest.head) != (len(entries), head):
        raise Damaged(f"{path} does not verify: its journal ends at {head}, and its manifest says {manifest.head}")
    if _run_of(entries) != manifest.run:
        raise Damaged(f"{path} does not verify: it says that it is of run {manifest.run!r}, and its journal does not")
    return entries


def lay_down(found: Export, runs_dir: Path, run: str | None = None) -> RunFiles:
    """Make a run folder of an export, under the run's own id or another. It appears whole, or not at all.

    Raises: `Invalid` for a malformed id, `Conflict` if there is such a run, `Damaged` if its journal cannot be a run's,
    `Unavailable` if the disk fails.
    """
    files = RunFiles(runs_dir / check_run_id(run or found.manifest.run))
    if files.root.exists():
        raise Conflict(f"there is a run {files.run!r} already, and it is left as it is; choose another id with --run")
    temporary = RunFiles(runs_dir / f".import-{secrets.token_hex(4)}")
    try:
        _fill(temporary, found)
        wrong = audit(temporary.journal)
        if wrong.verdict != "intact":
            raise Damaged(f"nothing is imported: {wrong.sentence()}")
        os.rename(temporary.root, files.root)
        sync_folder(runs_dir, "import.name")
    except FileExistsError:
        raise Conflict(f"there is a run {files.run!r} already, and it is left as it is") from None
    except OSError as error:
        raise Unavailable(f"the run could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary.root, ignore_errors=True)
    return files


def _fill(run: RunFiles, found: Export) -> None:
    for folder in (run.journal, run.logs):
        make_folder(folder)
    for name, data in found.files.items():
        _write(run.root / name, data)
    told = json.dumps(found.manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"
    _write(run.root / IMPORTED, told)
    sync_folder(run.journal, "import.folders")
    sync_folder(run.root, "import.folders")

"""Quotas: the file, its changes, and what a running gateway reads of it."""

from pathlib import Path

import pytest

from control_plane.core.model.errors import Damaged, Invalid
from control_plane.core.rules.start_order import Quota
from control_plane.runs.quotas import QuotaBook, QuotaFile, change_quota, forget_quota, keep_ended, quotas_path


def test_without_a_file_nothing_is_limited(tmp_path: Path) -> None:
    assert QuotaFile(quotas_path(tmp_path)).book().of("ana") == Quota()


def test_changes_are_read_by_a_running_gateway(tmp_path: Path) -> None:
    file = QuotaFile(quotas_path(tmp_path))
    change_quota(tmp_path, "ana", {"runs": 2})
    change_quota(tmp_path, None, {"cpus": 8.0})
    assert file.book().of("ana") == Quota(runs=2)
    assert file.book().of("ben") == Quota(cpus=8.0)
    change_quota(tmp_path, "ana", {"runs": None, "gpus": 1.0})
    assert file.book().of("ana") == Quota(gpus=1.0)
    forget_quota(tmp_path, "ana")
    assert file.book().of("ana") == Quota(cpus=8.0)
    keep_ended(tmp_path, 30.0)
    assert file.book().keep_ended_days == 30.0
    assert quotas_path(tmp_path).stat().st_mode & 0o777 == 0o600


def test_an_owner_begins_with_the_default(tmp_path: Path) -> None:
    change_quota(tmp_path, None, {"runs": 3})
    assert change_quota(tmp_path, "ana", {"cpus": 1.0}).of("ana") == Quota(runs=3, cpus=1.0)


@pytest.mark.parametrize("text", ["", "[]", '{"owners": {"ana": {"runs": -1}}}', '{"surprise": 1}'])
def test_a_file_that_cannot_be_used_leaves_the_last_one_in_force(tmp_path: Path, text: str) -> None:
    change_quota(tmp_path, "ana", {"runs": 1})
    file = QuotaFile(quotas_path(tmp_path))
    assert file.book().of("ana") == Quota(runs=1)
    quotas_path(tmp_path).write_text(text)
    assert file.book().of("ana") == Quota(runs=1)
    with pytest.raises(Damaged):
        QuotaBook.from_file(quotas_path(tmp_path))


def test_a_file_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    change_quota(tmp_path, "ana", {"runs": 1})
    quotas_path(tmp_path).chmod(0o666)
    with pytest.raises(Damaged, match="other users may write"):
        QuotaBook.from_file(quotas_path(tmp_path))


def test_a_malformed_limit_changes_nothing(tmp_path: Path) -> None:
    change_quota(tmp_path, "ana", {"runs": 1})
    with pytest.raises(Invalid, match="runs"):
        change_quota(tmp_path, "ana", {"runs": -1})
    assert QuotaBook.from_file(quotas_path(tmp_path)).of("ana") == Quota(runs=1)

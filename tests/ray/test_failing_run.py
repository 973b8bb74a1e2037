"""A run whose training fails says why, in its journal and to whoever asks."""

from pathlib import Path

import pytest

from control_plane.client import SteerwayClient
from control_plane.core.commands import Evaluate
from control_plane.core.errors import RunEnded
from control_plane.core.records import RunClosed
from tests.ray.cluster import REPOSITORY, Cluster, wait_closed, whole_journal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_a_script_that_raises_fails_its_run_with_the_reason(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    script = tmp_path / "broken.py"
    script.write_text('raise ValueError("there is no data today")\n')
    run = cluster.submit(str(REPOSITORY / "configs/own-script.yaml"), f"workload.path={script}")
    receipt = client.submit(run, Evaluate())
    snapshot = wait_closed(client, run)
    assert snapshot.status == "failed"
    assert "there is no data today" in str(snapshot.reason)
    assert isinstance(whole_journal(client, run)[-1].record, RunClosed)
    expired = client.command(run, receipt.uuid)
    assert expired.status == "expired"
    assert expired.settled is not None
    assert "before this command was applied" in str(expired.settled.reason)
    assert "there is no data today" in client.logs(run, "rank-0")
    with pytest.raises(RunEnded):
        client.submit(run, Evaluate())

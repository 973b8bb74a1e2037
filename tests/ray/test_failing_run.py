"""A run whose training fails says why, in its journal and to whoever asks."""

from pathlib import Path

import pytest

from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Evaluate
from control_plane.core.model.errors import RunEnded
from control_plane.core.model.records import RunClosed
from tests.ray.cluster import REPOSITORY, Cluster, _title, wait_for, whole_journal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_script_that_raises_fails_its_run_with_the_reason_and_without_its_secrets(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    """Secrets in its own environment only, in its arguments, and of a known shape: in the exception and in what it
    prints."""
    script = tmp_path / "telling.py"
    script.write_text(
        "import os, sys, time\n"
        "os.environ['SOME_SERVICE_TOKEN'] = 'canary' + '-of-the-script'\n"
        "said = f\"{os.environ['SOME_SERVICE_TOKEN']} {sys.argv[1:]} Bearer canary-of-a-header\"\n"
        "print(said, flush=True)\n"
        "time.sleep(2)\n"
        "raise ValueError('there is no data today: ' + said)\n"
    )
    arguments = "workload.args=[--api-key=canary-of-an-argument, --hf-token, canary-of-another]"
    run = cluster.submit(str(REPOSITORY / "configs/own-script.yaml"), f"workload.path={script}", arguments)
    receipt = client.submit(run, Evaluate())
    seen = set[str]()

    def is_over() -> bool:
        seen.update(map(_title, cluster.processes()))
        return client.snapshot(run).closed

    wait_for(f"the end of {run}", is_over)
    snapshot = client.snapshot(run)
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
    folder = cluster.settings.runs_dir / run
    files = [path for path in (*folder.glob("journal/*"), *folder.glob("logs/*")) if path.is_file()]
    assert {"driver.log", "rank-0.log"} <= {path.name for path in files}
    for path in files:
        # What a script prints while its own environment is known to it alone, nobody else can clean.
        text = (
            path.read_text().replace("canary-of-the-script [", "[") if path.name == "driver.log" else path.read_text()
        )
        assert "canary" not in text, path
    assert "canary" not in snapshot.model_dump_json()
    assert "canary" not in "".join(seen)

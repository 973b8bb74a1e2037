"""Private interfaces of frameworks are used in few named files, which say the version that was read."""

import re
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

FOLDERS = ("steerway", "control_plane", "ray_jobs", "ui", "cluster", "benchmarks")
PRIVATE = {
    "Ray": r"^\s*(from|import) ray[\w.]*\._(private|internal)\b|\bray\._private\b|ray\.core\.generated",
    "DeepSpeed": r"\bengine\._|\b_hp_(mapping|optimizer)|\bds_(id|tensor|numel|shape|persist)\b|\bFWD_MODULE_STACK\b"
    r"|\bfp32_partitioned_groups_flat\b|\bbit16_groups\b|\b_get_param_partition_rank\b",
    "Transformers": r"\b_tr_loss\b|\b_train_batch_size\b(?<!per_device_train_batch_size)|\b_run_epoch\b"
    r"|\b_(prepare_for_training|load_rng_state|load_callback_state|maybe_log_save_evaluate|init_training_state)\b",
}
ALLOWED = {
    "Ray": {"ray_jobs/driver/ray_internals.py", "cluster/join.py", "control_plane/actor/cluster_state.py"},
    # The benchmark breaks DeepSpeed's own save where it writes.
    "DeepSpeed": {"ray_jobs/process/deepspeed_internals.py", "benchmarks/checkpoints/torn_saves_rank.py"},
    # What it reads and writes, and the methods that it overrides.
    "Transformers": {"ray_jobs/hf/live.py", "ray_jobs/hf/trainer.py", "ray_jobs/hf/steered_data.py"},
}


def users(root: Path, framework: str) -> set[str]:
    """Return the source files that use a private interface of a framework."""
    private = re.compile(PRIVATE[framework], re.M)
    paths = (path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return {str(path.relative_to(root)) for path in paths if private.search(path.read_text())}


@pytest.mark.parametrize("framework", PRIVATE)
def test_private_interfaces_are_used_in_named_files(framework: str) -> None:
    assert users(ROOT, framework) == ALLOWED[framework]


@pytest.mark.parametrize("framework", ["DeepSpeed", "Transformers"])
def test_named_files_of_the_training_side_say_the_version_that_was_read(framework: str) -> None:
    for name in ALLOWED[framework]:
        if name.startswith("ray_jobs/"):
            assert re.search(rf"{framework} \d+\.\d+", (ROOT / name).read_text()), name


@pytest.mark.parametrize(
    ("framework", "planted"),
    [
        ("Ray", "from ray._private import state\n"),
        ("Ray", "    x = ray._private.state\n"),
        ("Ray", "from ray.train._internal import a\n"),
        ("DeepSpeed", "x = engine._config\n"),
        ("DeepSpeed", "x = parameter.ds_tensor\n"),
        ("Transformers", "x = trainer._tr_loss\n"),
    ],
)
def test_a_planted_use_is_found(tmp_path: Path, framework: str, planted: str) -> None:
    (tmp_path / "ui").mkdir()
    (tmp_path / "ui" / "page.py").write_text(planted)
    assert users(tmp_path, framework) == {"ui/page.py"}

"""Config files: what is accepted, what is refused, and in which words."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.model.errors import Invalid
from control_plane.core.rules.retention import Retention
from ray_jobs.config.run_config import RunConfig, load
from ray_jobs.config.training_keys import OWN_TRAINING_KEYS, check_training_keys

CONFIGS = Path(__file__).parents[3] / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
DEEPSPEED = sorted((CONFIGS / "deepspeed").glob("*.json"))

GOOD: dict[str, Any] = {
    "name": "small",
    "seed": 7,
    "workload": {"kind": "gpt2"},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 8},
    "data": {"source": "stdlib"},
    "training": {"max_steps": 3},
    "deepspeed": {"zero_optimization": {"stage": 1}, "train_batch_size": "auto"},
}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return written(tmp_path, yaml.safe_dump(GOOD))


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(Invalid) as refused:
        load(path, overrides)
    return refused.value.reason


def test_configs_folder_holds_the_shipped_files() -> None:
    assert {path.name for path in RUNS} >= {"gpt2-local.yaml", "gpt2-wikitext2.yaml"}
    names = {path.name for path in DEEPSPEED}
    assert names >= {"zero1.json", "zero2.json", "zero3.json", "zero2-warmupdecay.json"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_config_shipped_run_loads_and_survives_the_round_trip(path: Path) -> None:
    config = load(path)
    assert config.workload.kind == "script" or config.deepspeed is not None
    assert RunConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_config_shipped_run_has_training_keys_that_transformers_takes(path: Path) -> None:
    check_training_keys(load(path))


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.name)
def test_config_shipped_deepspeed_file_goes_inline_untouched(path: Path) -> None:
    written_there = json.loads(path.read_text())
    assert load(CONFIGS / "gpt2-local.yaml", [f"deepspeed=deepspeed/{path.name}"]).deepspeed == written_there
    assert written_there["optimizer"]["params"]["torch_adam"] is True


def test_config_import_brings_no_framework() -> None:
    heavy = "{'torch', 'ray', 'transformers', 'deepspeed', 'datasets', 'numpy'} & set(sys.modules)"
    code = f"import sys, ray_jobs.config.run_config; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_config_defaults_are_two_ranks_on_what_there_is(good: Path) -> None:
    config = load(good)
    assert (config.scaling.ranks, config.scaling.use_gpu) == (2, "auto")
    assert config.scaling.bounds == (2, 2)


def test_config_defaults_save_and_recover_without_being_asked(good: Path) -> None:
    config = load(good)
    assert config.checkpoint.every_steps == 100
    assert config.digest.every_steps == 100
    assert Retention.model_validate(config.checkpoint.retention()) == Retention()
    assert (config.recovery.hang_after_s, config.recovery.spares, config.recovery.start_timeout_s) == (5, "auto", 20)
    assert config.recovery.user_code_s == 1800


@pytest.mark.parametrize(
    ("overrides", "bounds"),
    [
        ((), (4, 4)),
        (("scaling.min_ranks=2",), (2, 4)),
        (("scaling.max_ranks=6",), (4, 6)),
        (("scaling.min_ranks=1", "scaling.max_ranks=8"), (1, 8)),
        (("scaling.min_ranks=4", "scaling.max_ranks=4"), (4, 4)),
        (("scaling.min_ranks=",), (4, 4)),
    ],
)
def test_config_bounds_of_ranks_are_the_ranks_where_they_are_left_out(
    good: Path, overrides: tuple[str, ...], bounds: tuple[int, int]
) -> None:
    assert load(good, ["scaling.ranks=4", *overrides]).scaling.bounds == bounds


def test_config_retention_is_told_in_the_words_of_the_core(good: Path) -> None:
    wanted = {
        "keep_last": 2,
        "keep_every_steps": 500,
        "keep_best": 3,
        "best_metric": "eval_accuracy",
        "best_mode": "max",
    }
    config = load(good, [f"checkpoint.{key}={value}" for key, value in wanted.items()])
    assert Retention.model_validate(config.checkpoint.retention()) == Retention.model_validate(wanted)


@pytest.mark.parametrize("spares", [0, 1, 64])
def test_config_number_of_spares_may_be_said(good: Path, spares: int) -> None:
    assert load(good, [f"recovery.spares={spares}"]).recovery.spares == spares


def test_config_recovery_and_scaling_survive_the_round_trip(good: Path) -> None:
    overrides = ["recovery.spares=2", "recovery.hang_after_s=30", "scaling.min_ranks=1", "scaling.placement=spread"]
    config = load(good, [*overrides, "pause.offload=true"])
    assert (config.pause.offload, load(good).pause.offload) == (True, False)
    assert RunConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate=1E+2", 100.0),
        ("training.learning_rate=.5", 0.5),
        ("training.learning_rate=3", 3.0),
    ],
)
def test_config_number_in_an_override_is_a_float(good: Path, override: str, read: float) -> None:
    rate = load(good, [override]).training["learning_rate"]
    assert rate == read
    assert isinstance(rate, float)


def test_config_exponent_without_a_point_in_the_file_is_a_float(tmp_path: Path) -> None:
    text = yaml.safe_dump({**GOOD, "training": None}).replace("training: null", "training: {learning_rate: 1e-4}")
    assert load(written(tmp_path, text)).training["learning_rate"] == 1e-4


def test_config_overrides_make_groups_and_the_last_one_wins(good: Path) -> None:
    config = load(good, ["scaling.ranks=3", "scaling.ranks=4", "deepspeed.zero_optimization.stage=3"])
    assert config.scaling.ranks == 4
    assert config.deepspeed is not None
    assert config.deepspeed["zero_optimization"]["stage"] == 3


def test_config_override_inside_a_named_deepspeed_file_keeps_the_rest_of_it() -> None:
    config = load(CONFIGS / "gpt2-local.yaml", ["deepspeed.zero_optimization.stage=0"])
    assert config.deepspeed is not None
    assert config.deepspeed["zero_optimization"] == {"stage": 0, "overlap_comm": False}


def test_config_relative_paths_are_taken_from_the_folder_of_the_file(good: Path) -> None:
    config = load(good, ["data.source=wikitext2", "data.path=texts/here"])
    assert config.data is not None
    assert config.data.path == str(good.parent / "texts/here")


def test_config_script_workload_needs_neither_model_nor_data(tmp_path: Path) -> None:
    (tmp_path / "my_train.py").write_text("print()\n")
    text = "name: mine\nseed: 1\nworkload: {kind: script, path: my_train.py, args: [--rate, '1e-4']}\n"
    config = load(written(tmp_path, text))
    assert config.workload.kind == "script"
    assert config.workload.path == str(tmp_path / "my_train.py")
    assert config.workload.args == ["--rate", "1e-4"]
    assert RunConfig.from_yaml(config.to_yaml()) == config


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"))),
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_config_any_text_and_number_survive_the_round_trip(args: list[str], extra: dict[str, float]) -> None:
    config = RunConfig.model_validate(
        {
            "name": "mine",
            "seed": 1,
            "workload": {"kind": "script", "path": "/x.py", "args": args},
            "deepspeed": {"zero_optimization": {"stage": 0}, "extra": extra},
        }
    )
    assert RunConfig.from_yaml(config.to_yaml()) == config


BAD_FILES = {
    "empty": (b"", "is empty, but must be a mapping with the keys name, seed"),
    "comment only": (b"# nothing\n", "is empty"),
    "a list": (b"- 1\n", "is [1] (a list), but must be a mapping"),
    "a word": (b"hello\n", "is 'hello' (text), but must be a mapping"),
    "not YAML": (b"name: [1\n", "is not usable YAML, line 2"),
    "tab": (b"a:\n\tb: 1\n", "is not usable YAML, line 2"),
    "binary": (bytes(range(256)), "is not text in UTF-8"),
    "control characters": (b"name: \x00\x01\n", "is not usable YAML"),
    "a Python object": (b"name: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    "an alias": (b"name: &a x\nseed: *a\n", "aliases (*name) are not supported"),
    "a repeated key": (b"name: a\nname: b\n", "a key is given twice"),
    "two documents": (b"name: a\n---\nname: b\n", "is not usable YAML"),
    "too deep": (b"[" * 5000, "is nested too deeply"),
    "an endless integer": (b"seed: " + b"9" * 6000, "is not usable YAML"),
    "too large": (b"#" * (1 << 21), "is larger than"),
}


@pytest.mark.parametrize(("content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_config_unreadable_file_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path, content)
    reason = refusal(path)
    assert reason.startswith(str(path))
    assert words in reason


def test_config_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml does not exist; give the path of a config file."


def test_config_folder_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} is a folder, but must be a file."


BAD_VALUES = {
    "scaling.ranks=-1": "scaling.ranks is -1 (an integer), but must be at least 1",
    "scaling.ranks=0": "scaling.ranks is 0 (an integer), but must be at least 1",
    "scaling.ranks=100000": "scaling.ranks is 100000 (an integer), but must be at most 4096",
    "scaling.ranks=two": "scaling.ranks is 'two' (text), but must be an integer",
    "scaling.ranks=2.5": "scaling.ranks is 2.5 (a number), but must be an integer",
    "scaling.ranks=true": "scaling.ranks is True (true or false), but must be an integer",
    "scaling.ranks=": "scaling.ranks is empty (null), but must be an integer",
    "scaling.rank=2": "did you mean ranks? Allowed in scaling: ranks, min_ranks, max_ranks, cpus_per_rank",
    "scaling.use_gpu=yes": "scaling.use_gpu is 'yes' (text), but must be one of 'auto', True or False",
    "scaling.cpus_per_rank=0": "scaling.cpus_per_rank is 0 (an integer), but must be greater than 0",
    "scaling.cpus_per_rank=.inf": "scaling.cpus_per_rank is inf, but must be a finite number",
    "scaling.min_ranks=3": "scaling: ranks is 2, but must be from min_ranks 3 to max_ranks 2",
    "scaling.max_ranks=1": "scaling: ranks is 2, but must be from min_ranks 2 to max_ranks 1",
    "scaling.min_ranks=0": "scaling.min_ranks is 0 (an integer), but must be at least 1",
    "scaling.max_ranks=4097": "scaling.max_ranks is 4097 (an integer), but must be at most 4096",
    "scaling.placement=PACK": "scaling.placement is 'PACK' (text), but must be one of 'pack' or 'spread'",
    "scaling={strict: true, min_ranks: 1}": "scaling: strict is true, which needs a fixed number of ranks",
    "scaling.labels={zone: 'in('}": "scaling.labels.zone is 'in(' (text), but must be a label's value, '!value'",
    "scaling.accelerator_type=H 100": "scaling.accelerator_type is 'H 100' (text), but must be a type of accelerator",
    "scaling.resources_per_rank={GPU: 2}": "resources_per_rank.GPU cannot be set: use cpus_per_rank, use_gpu",
    "scaling.resources_per_rank={tape: 0}": "scaling.resources_per_rank.tape is 0 (an integer), but must be greater",
    "scaling=3": "scaling is 3 (an integer), but must be a mapping of keys to values",
    "ranks=2": "ranks is not a known key; did you mean scaling.ranks?",
    "modle={}": "modle is not a known key; did you mean model? Allowed: name, seed",
    "name=Big Run": "name is 'Big Run' (text), but must be 1 to 64 of a-z, 0-9, '_' and '-'",
    "name=../up": "name is '../up' (text), but must be 1 to 64",
    'name="a\\n"': "but must be 1 to 64",
    "name=1e-4": "name is 0.0001 (a number), but must be text",
    "seed=-1": "seed is -1 (an integer), but must be at least 0",
    "seed=4294967296": "but must be less than 4294967296",
    "workload=gpt2": "workload is 'gpt2' (text), but must be a mapping",
    "workload={}": "workload.kind is missing; allowed: 'gpt2', 'script'",
    "workload.kind=bert": "workload.kind is 'bert' (text), but must be one of 'gpt2', 'script'",
    "workload.args=[]": "Allowed in workload: kind.",
    "workload={kind: script}": "workload.path is missing",
    "workload={kind: script, path: a.py}": "leave out data and model",
    "workload={kind: script, path: a.py, args: [1]}": "workload.args.0 is 1 (an integer), but must be text",
    "model=": "workload.kind is gpt2, which also needs model",
    "model.n_head=3": "model: n_embd is 8, but must be a multiple of n_head, which is 3",
    "model.dropout=1": "model.dropout is 1 (an integer), but must be less than 1",
    "data.source=web": "data.source is 'web' (text), but must be one of 'stdlib' or 'wikitext2'",
    "deepspeed.zero_optimization.offload_optimizer={device: nvme}": "ZeRO-Infinity: state in files cannot be copied",
    "data.path=x": "path is only for source wikitext2",
    "data.vocab_size=256": "but must be at least 257",
    "training=[]": "training is [] (a list), but must be a mapping",
    "training.learning_rate=fast": "training.learning_rate is 'fast' (text), but must be a number",
    "training.learning_rate=.nan": "training.learning_rate is nan, but must be a finite number",
    "training.some.list=[1, .inf]": "training.some.list.1 is inf, but must be a finite number",
    "training.max_steps=0": "training.max_steps is 0 (an integer), but must be at least 1",
    "training.output_dir=/x": "training.output_dir cannot be set: the run's folder is chosen",
    "deepspeed={}": "deepspeed.zero_optimization is missing",
    "deepspeed=[]": "deepspeed is [] (a list), but must be a mapping",
    "deepspeed.zero_optimization.stage=4": "deepspeed.zero_optimization.stage is 4 (an integer), but must be at most 3",
    "deepspeed.zero_optimization.stage=auto": "stage is 'auto' (text), but must be an integer",
    "deepspeed=none.json": "none.json, which does not exist",
    "deepspeed=run.yaml": "run.yaml, which is not JSON",
    "deepspeed={1: 2}": "deepspeed.1 has the key 1 (an integer), but keys must be text",
    "checkpoint.every_steps=-5": "checkpoint.every_steps is -5 (an integer), but must be at least 0",
    "checkpoint.every_steps=often": "checkpoint.every_steps is 'often' (text), but must be an integer",
    "checkpoint.keep_last=0": "checkpoint.keep_last is 0 (an integer), but must be at least 1",
    "checkpoint.keep_every_steps=-1": "checkpoint.keep_every_steps is -1 (an integer), but must be at least 0",
    "checkpoint.keep_best=-1": "checkpoint.keep_best is -1 (an integer), but must be at least 0",
    "checkpoint.best_mode=lowest": "checkpoint.best_mode is 'lowest' (text), but must be one of 'min' or 'max'",
    "checkpoint.keep=3": "checkpoint.keep is not a known key",
    "digest.every_steps=-1": "digest.every_steps is -1 (an integer), but must be at least 0",
    "digest.every_step=5": "digest.every_step is not a known key; did you mean every_steps?",
    "every_steps=5": "every_steps is not a known key; did you mean checkpoint.every_steps?",
    "recovery.hang_after_s=1": "recovery.hang_after_s is 1 (an integer), but must be at least 2",
    "recovery.user_code_s=3": "recovery.user_code_s is 3 (an integer), but must be at least 30",
    "recovery.hang_after_s=.inf": "recovery.hang_after_s is inf, but must be a finite number",
    "recovery.start_timeout_s=0": "recovery.start_timeout_s is 0 (an integer), but must be at least 1",
    "recovery.hang_after=8": "did you mean hang_after_s?",
    "hang_after_s=8": "hang_after_s is not a known key; did you mean recovery.hang_after_s?",
    "pause.offload=maybe": "pause.offload is 'maybe' (text), but must be true or false",
    "offload=true": "offload is not a known key; did you mean pause.offload?",
    "recovery=fast": "recovery is 'fast' (text), but must be a mapping",
}


@pytest.mark.parametrize(("override", "words"), BAD_VALUES.items(), ids=BAD_VALUES)
def test_config_bad_value_is_refused_in_one_sentence(good: Path, override: str, words: str) -> None:
    reason = refusal(good, override)
    assert words in reason
    assert reason.startswith(f"{good}: ")
    assert reason.endswith(".")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("scaling.ranks", "is not of the form dotted.key=value"),
        ("=3", "is not of the form dotted.key=value"),
        ("scaling..ranks=3", "is not of the form dotted.key=value"),
        ("name.first=3", "name is 'small' (text), not a mapping"),
        ("seed=[1", "is not usable YAML"),
    ],
)
def test_config_bad_override_is_refused_by_its_text(good: Path, override: str, words: str) -> None:
    reason = refusal(good, override)
    assert repr(override) in reason
    assert words in reason


def test_config_several_problems_are_all_listed_one_a_line(good: Path) -> None:
    lines = refusal(good, "scaling.ranks=-1", "training.seed=3", "data.sauce=x", "seed=.nan").splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{good}: ") for line in lines)


@pytest.mark.parametrize("key", sorted(OWN_TRAINING_KEYS))
def test_config_training_key_of_its_own_is_refused_with_a_reason(good: Path, key: str) -> None:
    assert OWN_TRAINING_KEYS[key] in refusal(good, f"training.{key}=1")


def test_config_script_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "name: mine\nseed: 1\nworkload: {kind: script, path: gone.py}\n")
    assert refusal(path) == f"{path}: workload.path is {tmp_path}/gone.py, but there is no such file."


def test_config_cannot_be_changed_after_loading(good: Path) -> None:
    config = load(good)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 8


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.lerning_rate=1", "training.lerning_rate is not a key of transformers.TrainingArguments"),
        ("training.lerning_rate=1", "did you mean learning_rate?"),
        ("training.lr_scheduler_type=linea", "takes one of linear, cosine"),
        ("training.bf16=7", "training.bf16 is 7 (an integer), but TrainingArguments takes bool"),
        ("training.logging_first_step=[1]", "training.logging_first_step is [1] (a list)"),
    ],
)
def test_training_keys_that_transformers_does_not_take_are_refused(good: Path, override: str, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_training_keys(load(good, [override]))
    assert words in refused.value.reason


def test_training_keys_of_its_own_exist_in_transformers() -> None:
    from transformers import TrainingArguments

    assert set(OWN_TRAINING_KEYS) <= set(TrainingArguments.__dataclass_fields__)

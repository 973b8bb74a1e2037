"""Sections `sources` and `mixture` of a config: what is valid, and clear sentences for what is not."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.config_text import to_yaml
from control_plane.core.model.errors import Invalid
from ray_jobs.config.run_config import RunConfig, load

BASE: dict[str, Any] = {"name": "mixed", "seed": 1, "workload": {"kind": "script", "path": "train.py"}}
WEB = {"format": "jsonl", "path": "web/*.jsonl", "fields": {"text": "text", "label": "integer"}, "weight": 0.7}
LIVE = {"format": "arrays", "live": True, "fields": {"frame": {"type": "array", "dtype": "uint8", "shape": [8, 8]}}}
HOLDS = LIVE | {"held_out": 0.1}
WRITER = {"source": "f", "path": "train.py", "max_records": 10}


GPT2: dict[str, Any] = {
    "workload": {"kind": "gpt2"},
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 4},
    "data": {"source": "stdlib"},
    "deepspeed": {"zero_optimization": {"stage": 2}},
}


def written(folder: Path, **sections: Any) -> Path:
    (folder / "train.py").write_text("")
    (folder / "web").mkdir()
    (folder / "web" / "a.jsonl").write_text('{"text": "a", "label": 1}\n')
    (folder / "run.yaml").write_text(to_yaml(BASE | sections))
    return folder / "run.yaml"


def test_sources_are_read_and_their_paths_are_beside_the_config(tmp_path: Path) -> None:
    config = load(written(tmp_path, sources={"web": WEB, "fresh": LIVE}, mixture={"temperature": 2.0}))
    assert config.sources["web"].path == str(tmp_path / "web" / "*.jsonl")
    assert config.sources["fresh"].fields["frame"].shape == (8, 8)
    assert config.mixture.temperature == 2.0
    assert RunConfig.from_yaml(config.to_yaml()) == config
    (tmp_path / "none").mkdir()
    assert load(written(tmp_path / "none")).sources == {}


def test_generators_are_read_with_their_files_beside_the_config(tmp_path: Path) -> None:
    sections = {"sources": {"f": HOLDS}, "generators": {"g": WRITER | {"helps": ["f"], "every_steps": 5}}}
    config = load(written(tmp_path, **sections))
    assert config.generators["g"].path == str(tmp_path / "train.py")
    assert (config.generators["g"].helps, config.generators["g"].function) == (("f",), "generate")
    assert RunConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"sources": {"../web": WEB}}, "sources.../web"),
        ({"sources": {"web": WEB | {"format": "csv"}}}, "sources.web.format is 'csv' .*, but must be one of 'jsonl'"),
        ({"sources": {"web": WEB | {"path": "none/*"}}}, "sources.web.path is .*none/., but no file matches it"),
        ({"sources": {"web": WEB | {"weight": -1}}}, "sources.web.weight is -1 .*, but must be at least 0"),
        ({"sources": {"web": WEB | {"wieght": 1}}}, "did you mean weight"),
        ({"sources": {"web": WEB | {"fields": {}}}}, "sources.web: a source of format jsonl needs 'fields'"),
        ({"sources": {"web": WEB | {"fields": {"a": "string"}}}}, "sources.web.fields.a.type is 'string'"),
        ({"sources": {"web": {"format": "text"}}}, "sources.web: give 'path', or 'live: true'"),
        ({"sources": {"f": LIVE}, **GPT2}, "records of sources.f have no field 'text'"),
        ({"sources": {"f": LIVE}, "generators": {"g": WRITER}}, "generators need a source with 'held_out'"),
        ({"sources": {"f": HOLDS}, "generators": {"g": WRITER | {"recrods": 1}}}, "did you mean records"),
        (
            {"sources": {"f": HOLDS}, "generators": {"g": WRITER | {"path": "no.py"}}},
            "no.py, but there is no such file",
        ),
        ({"sources": {"f": HOLDS}, "generators": {"g": WRITER | {"prompt": "x"}}}, "generators.g: give either 'path'"),
        ({"mixture": {"temperature": 0}}, "mixture.temperature is 0"),
        ({"mixture": {"unit": "lines"}}, "mixture.unit is 'lines' .*, but must be one of 'document' or 'packed'"),
        ({"mixture": {"unit": "packed"}}, "packed is how documents of 'sources' are drawn, and this config has none"),
        ({"mixture": {"schedule": [{"step": 0, "weights": {"web": 1.0}}]}}, "mixture.schedule.0.step is 0"),
        ({"mixture": {"schedule": [{"step": 1, "weight": {}}]}}, "mixture.schedule.0.weight is not a known key"),
        (
            {"sources": {"web": WEB}, "mixture": {"schedule": [{"step": 9, "weights": {"wbe": 1.0}}]}},
            "there is no source wbe in 'sources'",
        ),
        (
            {"sources": {"web": WEB}, "mixture": {"schedule": [{"step": 9, "weights": {"web": 1.0}}] * 2}},
            "the steps of schedule must ascend",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(tmp_path: Path, sections: Any, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        load(written(tmp_path, **sections))

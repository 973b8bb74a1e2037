"""Typed config of a run: reading, overrides and validation.

    config = load("configs/gpt2-local.yaml", overrides=["scaling.ranks=4", "training.learning_rate=1e-4"])
    (run_dir / "config.yaml").write_text(config.to_yaml())      # self-contained; `from_yaml` reads it back

Importable without torch, ray and transformers: the command line validates a config before it starts anything.
Validation errors are raised as one `Invalid`, with a line for each.
"""

import difflib
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from control_plane import config_text
from control_plane.config_text import shown
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.data import MAX_SOURCES, FieldSchema, SourceName, SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents.agent import (
    MIXTURE_POLICIES,
    AgentSettings,
    MixingSettings,
    reason_against_policy,
)
from control_plane.core.model.intents.grants import ArgumentGrant, Grants, KnobGrant
from control_plane.core.model.limits import reason_against_mixing
from control_plane.core.model.reflexes import Reflex, Reflexes
from control_plane.core.rules.agent.generating import (
    MAX_GENERATORS,
    GeneratorName,
    GeneratorSettings,
    reason_against_generators,
)
from ray_jobs.config.complaints import WANTED, unusable_values
from ray_jobs.config.config_files import ConfigFiles, FilesBeside
from ray_jobs.config.deepspeed_features import unsupported
from ray_jobs.config.environment import check_variables
from ray_jobs.config.runtime_env import RuntimeEnvSettings, check_bundle, is_local
from ray_jobs.config.sections import (
    CheckpointSettings,
    DataSettings,
    DeepSpeedSettings,
    DigestSettings,
    Gpt2Workload,
    LimitSettings,
    MixtureSettings,
    ModelSettings,
    PauseSettings,
    RecoverySettings,
    ScalingSettings,
    ScheduledWeights,
    ScriptWorkload,
    SecretVariable,
    Section,
    TrainingSettings,
)
from ray_jobs.config.training_keys import OWN_TRAINING_KEYS

Raw = dict[str, Any]


class RunConfig(Section):
    """Config of a run. As `load` returns it, it is self-contained: it refers to no other config file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    seed: int = Field(ge=0, lt=2**32)
    scaling: ScalingSettings = ScalingSettings()
    workload: Annotated[Gpt2Workload | ScriptWorkload, Field(discriminator="kind")]
    model: ModelSettings | None = None
    data: DataSettings | None = None
    # Sources that training samples are drawn from, by name; see `core.model.data`.
    sources: dict[SourceName, SourceSettings] = Field(default={}, max_length=MAX_SOURCES)
    mixture: MixtureSettings = MixtureSettings()
    training: TrainingSettings = {}
    deepspeed: DeepSpeedSettings | None = None
    checkpoint: CheckpointSettings = CheckpointSettings()
    digest: DigestSettings = DigestSettings()
    recovery: RecoverySettings = RecoverySettings()
    pause: PauseSettings = PauseSettings()
    health: HealthSettings = HealthSettings()
    limits: dict[str, LimitSettings] = {}
    reflexes: Reflexes = {}
    # Starts the run's agent with the run. Which model it asks, and what that may cost, is set on the gateway.
    agent: AgentSettings | None = None
    generators: dict[GeneratorName, GeneratorSettings] = Field(default={}, max_length=MAX_GENERATORS)
    env: dict[str, str | SecretVariable] = {}
    runtime_env: RuntimeEnvSettings = RuntimeEnvSettings()
    # SHA-256 of the code bundle; set by Steerway. Relative paths are then paths inside of it.
    bundle: str | None = None

    @model_validator(mode="after")
    def _variables_may_be_set(self) -> Self:
        check_variables(self.env)
        return self

    @model_validator(mode="after")
    def _bundle_holds_the_paths(self) -> Self:
        if self.bundle is not None:
            named = [source.path for source in self.sources.values()] + [one.path for one in self.generators.values()]
            paths = (getattr(self.workload, "path", None), self.data and self.data.path, *named)
            check_bundle(self.bundle, [path for path in paths if path], self.runtime_env)
        return self

    @model_validator(mode="after")
    def _sections_fit_the_workload(self) -> Self:
        given = {key for key in ("model", "data", "deepspeed") if getattr(self, key) is not None}
        if self.workload.kind == "gpt2" and given != {"model", "data", "deepspeed"}:
            missing = " and ".join(sorted({"model", "data", "deepspeed"} - given))
            raise ValueError(f"workload.kind is gpt2, which also needs {missing}")
        if self.workload.kind == "gpt2" and self.data is not None and self.data.source is None:
            raise ValueError("workload.kind is gpt2, which also needs data.source: stdlib or wikitext2")
        for name, source in self.sources.items() if self.workload.kind == "gpt2" else ():
            field = source.schema_of_records.get("text")
            if field is None or field.type != "text":
                raise ValueError(
                    f"workload.kind is gpt2, but records of sources.{name} have no field 'text' of type text"
                )
        if self.data is not None and self.data.is_of_a_script:
            given -= {"data"}
        if self.workload.kind == "script" and given & {"model", "data"}:
            extra = " and ".join(sorted(given & {"model", "data"}))
            raise ValueError(f"workload.kind is script, which builds its own model and data: leave out {extra}")
        return self

    @model_validator(mode="after")
    def _agent_has_a_policy(self) -> Self:
        if self.agent is None:
            return self
        policy = self.agent.policy
        if reason := reason_against_policy(self.agent) or reason_against_mixing(self.limits, policy):
            raise ValueError(f"agent.policy: {reason}")
        if policy in MIXTURE_POLICIES and not self.sources:
            raise ValueError(f"agent.policy: {policy} sets the weights of 'sources', and this config has none")
        return self

    @model_validator(mode="after")
    def _mixture_is_of_its_sources(self) -> Self:
        if self.mixture.unit == "packed" and not self.sources:
            raise ValueError("mixture.unit: packed is how documents of 'sources' are drawn, and this config has none")
        if self.mixture.unit == "packed" and self.workload.kind == "script":
            raise ValueError("mixture.unit: a script packs its documents by steerway.mixture(tokenize, pack=...)")
        unknown = {name for entry in self.mixture.schedule for name in entry.weights} - self.sources.keys()
        if unknown:
            raise ValueError(f"mixture.schedule: there is no source {min(unknown)} in 'sources'")
        if self.mixture.schedule and self.agent is not None and self.agent.policy in MIXTURE_POLICIES:
            raise ValueError(f"mixture.schedule: the agent's policy {self.agent.policy} sets the weights")
        return self

    @model_validator(mode="after")
    def _generators_have_sources(self) -> Self:
        if reason := reason_against_generators(self.generators, self.sources):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _deepspeed_can_be_kept(self) -> Self:
        if self.deepspeed is not None and (reasons := unsupported(self.deepspeed)):
            raise ValueError("; ".join(f"deepspeed.{reason}" for reason in reasons))
        return self

    def to_yaml(self) -> str:
        """Return the whole config as YAML that `from_yaml` turns into an equal config."""
        return config_text.to_yaml(self.model_dump(mode="json"))

    @classmethod
    def from_yaml(cls, text: str, source: str = "the run's config") -> "RunConfig":
        """Parse the output of `to_yaml`; reads no other file. Raises `Invalid`, whose message names `source`."""
        return _validated(_mapping(text, source), source)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, apply `dotted.key=value` overrides, and make it self-contained.

    Relative paths, also in overrides, are relative to the file's folder; a DeepSpeed file is inlined.
    Raises `Invalid`, with one line for each error.
    """
    path = Path(path)
    source, folder = str(path), path.expanduser().absolute().parent
    return parse(config_text.read_text(path.expanduser(), source), source, overrides, FilesBeside(folder))


def parse(
    text: str,
    source: str,
    overrides: Sequence[str],
    files: ConfigFiles,
    bundle: str | None = None,
    script: str | None = None,
) -> RunConfig:
    """Parse a config's text, apply `dotted.key=value` overrides, and make it self-contained.

    With a code bundle, relative paths are inside of it and stay relative; `script` is one, in place of `workload.path`.
    Raises `Invalid`, with one line for each error.
    """
    raw = _mapping(text, source)
    for override in overrides:
        _override(raw, override, files)
    if script is not None:
        workload = raw.get("workload")
        if not isinstance(workload, dict) or workload.get("kind") != "script":
            raise Invalid(f"{source}: a script was sent, but workload.kind is not 'script'.")
        workload["path"] = script
    _inline_deepspeed(raw, files, f"{source}: deepspeed")
    _place_paths(raw, files)
    if raw.get("bundle") is not None:
        raise Invalid(f"{source}: bundle cannot be set: it is the hash of the code that is sent with a config.")
    raw |= {"bundle": bundle} if bundle is not None else {}
    config = _validated(raw, source)
    if bundle is None and config.workload.kind == "script" and not Path(config.workload.path).is_file():
        raise Invalid(f"{source}: workload.path is {config.workload.path}, but there is no such file.")
    for name, settings in config.sources.items():
        is_here = settings.path is not None and (bundle is None or Path(settings.path).is_absolute())
        if is_here and not glob(str(settings.path), recursive=True):
            raise Invalid(f"{source}: sources.{name}.path is {settings.path}, but no file matches it.")
    for name, generator in config.generators.items():
        is_here = generator.path is not None and (bundle is None or Path(generator.path).is_absolute())
        if is_here and not Path(str(generator.path)).is_file():
            raise Invalid(f"{source}: generators.{name}.path is {generator.path}, but there is no such file.")
    return config


def with_overrides(config: RunConfig, overrides: Sequence[str], files: ConfigFiles | None = None) -> RunConfig:
    """Return a resolved config with `dotted.key=value` overrides; paths in them are relative to the current folder.

    In a config with a code bundle they are relative to the bundle, and stay so.
    Raises `Invalid`, with one line for each error.
    """
    files = files or FilesBeside(Path.cwd())
    raw: Raw = config.model_dump(mode="json")
    for override in overrides:
        _override(raw, override, files)
    _inline_deepspeed(raw, files, f"{config.name}: deepspeed")
    if raw.get("bundle") != config.bundle:
        raise Invalid(f"{config.name}: bundle cannot be set: it is the hash of the code that is sent with a config.")
    if config.bundle is None:
        _place_paths(raw, files)
    return _validated(raw, config.name)


# --- Reading ---


def _mapping(text: str, source: str) -> Raw:
    raw = config_text.from_yaml(text, source)
    if raw is None:
        raise Invalid(f"{source} is empty, but must be a mapping with the keys {', '.join(RunConfig.model_fields)}.")
    if not isinstance(raw, dict):
        raise Invalid(f"{source} is {shown(raw)}, but must be a mapping of keys to values.")
    return raw


def _override(raw: Raw, override: str, files: ConfigFiles) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise Invalid(f"The override {override!r} is not of the form dotted.key=value.")
    value = config_text.from_yaml(text, f"The value of the override {override!r}")
    if len(parts) > 1 and parts[0] == "deepspeed":
        _inline_deepspeed(raw, files, f"The override {override!r}: deepspeed")
    group = raw
    for depth, part in enumerate(parts[:-1], start=1):
        if group.get(part) is None:
            group[part] = {}
        group = group[part]
        if not isinstance(group, dict):
            above = ".".join(parts[:depth])
            raise Invalid(f"The override {override!r} cannot be applied: {above} is {shown(group)}, not a mapping.")
    group[parts[-1]] = value


def _inline_deepspeed(raw: Raw, files: ConfigFiles, source: str) -> None:
    name = raw.get("deepspeed")
    if isinstance(name, str):
        raw["deepspeed"] = config_text.from_json(files.text(name, source), f"{source} names {name}, which")


def _place_paths(raw: Raw, files: ConfigFiles) -> None:
    for name in ("data", "workload"):
        section = raw.get(name)
        if isinstance(section, dict) and isinstance(section.get("path"), str) and section["path"]:
            section["path"] = files.place(section["path"], f"{name}.path")
    for group in ("sources", "generators"):
        named = raw.get(group)
        for name, each in named.items() if isinstance(named, dict) else ():
            if isinstance(each, dict) and isinstance(each.get("path"), str) and each["path"]:
                each["path"] = files.place(each["path"], f"{group}.{name}.path")
    runtime_env = raw.get("runtime_env")
    modules = runtime_env.get("py_modules") if isinstance(runtime_env, dict) else None
    if isinstance(runtime_env, dict) and isinstance(modules, list):
        runtime_env["py_modules"] = [
            files.place(one, "runtime_env.py_modules") if isinstance(one, str) and one and is_local(one) else one
            for one in modules
        ]


# --- Validation errors ---


def _validated(raw: Raw, source: str) -> RunConfig:
    problems = dict(unusable_values(raw, ""))
    training = raw.get("training")
    for key in training if isinstance(training, dict) else ():
        if key in OWN_TRAINING_KEYS:
            problems[f"training.{key}"] = f"training.{key} cannot be set: {OWN_TRAINING_KEYS[key]}"
    config = None
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            location = _location(detail["loc"])
            problems.setdefault(".".join(location), _complaint(detail, location))
    if problems or config is None:
        raise Invalid("\n".join(f"{source}: {problem}." for problem in problems.values()))
    return config


def _location(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the path of a key in the file: pydantic puts the workload's kind after `workload`, as if it were a key."""
    parts = tuple(str(part) for part in loc)
    return parts[:1] + parts[2:] if parts[:1] == ("workload",) and len(parts) > 1 else parts


def _complaint(detail: Any, location: tuple[str, ...]) -> str:
    key, kind, context = ".".join(location), detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(location, detail["loc"])
    if kind == "missing":
        return f"{key} is missing"
    if kind == "union_tag_not_found":
        return f"{key}.kind is missing; allowed: 'gpt2', 'script'"
    if kind == "union_tag_invalid":
        return f"{key}.kind is {shown(context['tag'])}, but must be one of {context['expected_tags']}"
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    wanted = WANTED.get(kind, lambda _: detail["msg"])(context)
    return f"{key} is {shown(detail['input'])}, but must be {wanted}"


_SECTIONS: dict[str, type[BaseModel]] = {
    "": RunConfig,
    "scaling": ScalingSettings,
    "model": ModelSettings,
    "data": DataSettings,
    "mixture": MixtureSettings,
    "agent": AgentSettings,
    "agent.grants": Grants,
    "agent.mixing": MixingSettings,
    # Before "checkpoint": a stray `every_steps` is more likely meant for that.
    "digest": DigestSettings,
    "checkpoint": CheckpointSettings,
    "recovery": RecoverySettings,
    "pause": PauseSettings,
    "runtime_env": RuntimeEnvSettings,
    "health": HealthSettings,
    **{
        f"health.{name}": type(field.default)
        for name, field in HealthSettings.model_fields.items()
        if isinstance(field.default, BaseModel)
    },
}
_WORKLOADS: dict[str, type[Section]] = {"gpt2": Gpt2Workload, "script": ScriptWorkload}


def _section_at(location: tuple[str, ...], loc: tuple[int | str, ...]) -> type[BaseModel]:
    if location[:1] == ("reflexes",):
        return Reflex
    if location[:2] == ("agent", "grants") and len(location) > 2:
        return KnobGrant if location[2] == "knobs" else ArgumentGrant  # the names stand between
    if location[:1] == ("sources",):
        return SourceSettings if len(location) == 2 else FieldSchema  # the names stand between
    if location[:2] == ("mixture", "schedule"):
        return ScheduledWeights
    if location[:1] == ("generators",):
        return GeneratorSettings  # the name stands between
    if location[:1] == ("limits",):
        return LimitSettings  # the name of the knob stands between
    return _WORKLOADS[str(loc[1])] if location == ("workload",) else _SECTIONS[".".join(location)]


def _unknown_key(location: tuple[str, ...], loc: tuple[str, ...]) -> str:
    section, key = ".".join(location[:-1]), location[-1]
    allowed = list(_section_at(location[:-1], loc).model_fields)
    elsewhere = {field: f"{name}.{field}" for name, its in _SECTIONS.items() if name for field in its.model_fields}
    nearest = [elsewhere[key]] if key in elsewhere else difflib.get_close_matches(key, allowed, n=1)
    nearest += [elsewhere[near] for near in difflib.get_close_matches(key, elsewhere, n=1)]
    hint = f"did you mean {nearest[0]}? Allowed" if nearest else "allowed"
    place = f" in {section}" if section else ""
    return f"{'.'.join(location)} is not a known key; {hint}{place}: {', '.join(allowed)}"

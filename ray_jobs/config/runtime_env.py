"""Section `runtime_env` of a config: Python packages and modules that Ray gives to the ranks before they start."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import Field, field_validator

from control_plane.core.model.characters import OBEYED
from ray_jobs.config.sections import Section

MAX_PACKAGES = 100
MAX_MODULES = 16
MAX_TEXT_CHARS = 400

OURS = frozenset({"ray", "steerway"})
"""Packages of which all processes of a cluster need one version: Ray refuses to mix its own, and Steerway does, too."""

REMOTE = ("https", "s3", "gs")
PACKED = (".zip", ".whl")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class RuntimeEnvSettings(Section):
    """Packages and modules that Ray installs for the ranks and what the script starts with Ray, not for the driver.

    pip: requirements as pip takes them, without options. py_modules: folders of Python packages, which are sent with
    the script's code, or addresses of .zip or .whl files. Environment variables belong in the section `env`.
    """

    pip: list[str] = Field(default=[], max_length=MAX_PACKAGES)
    py_modules: list[str] = Field(default=[], max_length=MAX_MODULES)

    @field_validator("pip")
    @classmethod
    def _are_requirements(cls, given: list[str]) -> list[str]:
        for text in given:
            if reason := _reason_against_requirement(text):
                raise ValueError(f"{text[:80]!r} {reason}")
        return given

    @field_validator("py_modules")
    @classmethod
    def _are_modules(cls, given: list[str]) -> list[str]:
        for text in given:
            if reason := _reason_against_module(text):
                raise ValueError(f"{text[:80]!r} {reason}")
        return given


def check_bundle(bundle: str, paths: Iterable[str], runtime_env: RuntimeEnvSettings) -> None:
    """Raise `ValueError` for a malformed hash of a code bundle, or a path of the config that leads out of it."""
    if not _SHA256.fullmatch(bundle):
        raise ValueError("bundle must be the SHA-256 of a code bundle, 64 hexadecimal digits")
    for path in (*paths, *(module for module in runtime_env.py_modules if is_local(module))):
        if ".." in PurePosixPath(path).parts:
            raise ValueError(f"{path!r} leads out of the code bundle")


def is_local(module: str) -> bool:
    """Return whether an entry of `py_modules` is a folder, not an address."""
    return not _SCHEME.match(module)


def _reason_against_requirement(text: str) -> str | None:
    if len(text) > MAX_TEXT_CHARS or OBEYED.search(text):
        return f"is longer than {MAX_TEXT_CHARS} characters, or has control characters"
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return "is not a requirement such as einops==0.8.2; options and files are not accepted"
    if canonicalize_name(requirement.name) in OURS:
        return "cannot be chosen by a run: every node has the cluster's own version"
    if requirement.url is not None:
        return _reason_against_address(requirement.url, (*PACKED, ".tar.gz"))
    return None


def _reason_against_module(text: str) -> str | None:
    if not text or len(text) > MAX_TEXT_CHARS or OBEYED.search(text):
        return f"is empty, longer than {MAX_TEXT_CHARS} characters, or has control characters"
    return None if is_local(text) else _reason_against_address(text, PACKED)


def _reason_against_address(text: str, endings: tuple[str, ...]) -> str | None:
    try:
        parts = urlsplit(text)
    except ValueError:
        return "is not an address"
    if parts.scheme not in REMOTE or not parts.netloc:
        return f"is not an address of {', '.join(REMOTE[:-1])} or {REMOTE[-1]}"
    if "@" in parts.netloc or parts.query:
        return "may hold a password, and a config is stored and shown in plain text"
    if not parts.path.endswith(endings):
        return f"does not end with {', '.join(endings[:-1])} or {endings[-1]}"
    return None

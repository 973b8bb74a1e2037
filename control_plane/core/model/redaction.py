"""Redaction of secrets: by key name, behind a command-line flag, by shape, and by known value.

Pure. A journal is hash-chained and exported, so it keeps a secret for ever: texts are redacted before they become
records, and a config before it is exported. In doubt something is a secret; but training settings that only sound like
one (`max_new_tokens`, `pad_token`, `sort_key`) stay.

Not covered: a secret of no known shape, behind no telling name, and in no environment variable.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

T = TypeVar("T")

HIDDEN = "***"
"""Replaces a secret inside a text."""

MIN_KNOWN_CHARS = 8
"""Shorter values of environment variables occur in ordinary words and are not redacted."""

TEXTS = frozenset({"reason", "note", "label", "description", "sentence"})
"""Fields of records and reports with free text of an exception, a script or a person; the others hold names."""

_JOINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WORD = re.compile(r"[^a-z0-9]+")

_NAMED = re.compile(
    r"(?:^|_)(?:"
    r"[a-z0-9]*(?:password|passwd|passphrase|passcode|secret|credential)s?"
    r"|dsn|jwt|cookies?|webhooks?|creds?|connection_string|conn_str|access_keys?"
    r"|o?auth|authorization|authentication|bearer"
    r")(?:_|$)"
    r"|(?:^|_)(?:pin|pwd|otp|totp)$"
    r"|(?:^|_)(?:db|user|smtp|sql|mysql|pg|postgres|redis|ftp|http|proxy|login|admin|root|ssh|mail)_?pass$"
    r"|(?:git|gh|github|gitlab|azure)_pat$"
)
_DESCRIBES = re.compile(
    r"path|file|dir|folder|mode|type|method|kind|url|uri|scheme|provider|timeout|enabled|length|sock|name|names"
)
"""Last words of keys that describe a secret without holding it."""

_PLAIN_TOKENS = re.compile(
    r"pad|eos|bos|unk|mask|sep|cls|special|stop|start|end|new|max|min|num|n|no|image|video|audio|prompt|forced|"
    r"suppress|begin|added|extra|additional|input|output|total|train|eval|target|source|per|of|prefix|suffix|"
    r"fill|word|sub|pre|multi|bad|ignore|ignored|boi|eoi|think|tool|next|last|first|every|by"
)
"""Words before `token` that make it a vocabulary entry or a count of tokens."""

_PLAIN_KEYS = re.compile(
    r"sort|group|text|label|input|output|target|source|column|image|audio|ignore|include|exclude|primary|"
    r"foreign|cache|dataset|data|feature|metric|prompt|response|question|answer|batch|id|public|row|name|dict|"
    r"map|hash|index"
)
"""Words before `key` that make it a lookup key."""

_OWNED_KEYS = re.compile(
    r"^(?:api|access|private|secret|auth|signing|encryption|master|account|ssh|wandb|openai|anthropic|aws|azure|hf)+keys?$"
)

_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}"
    r"|sk-[A-Za-z0-9_-]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[\w-]{30,}|npm_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r")"
    r"|(?<![\w-])eyJ[\w-]{6,}+\.[\w-]{6,}+(?:\.[\w-]*+)?"
    r"|-----BEGIN[A-Z ]*PRIVATE KEY-----.*?(?:-----END[A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_BEARER = re.compile(r"\b(Bearer\s+)[^\s'\",;)\]}]{4,}", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"(\bauthorization['\"]?\s*[:=]\s*['\"]?)(?:\w+\s+)?[^\s'\",;)\]}]+", re.IGNORECASE)
_IN_URL = re.compile(r"://[^\s/'\"]*@")
_ASSIGNED = re.compile(r"(?<![\w.-])(?P<name>-*+[A-Za-z_][\w.-]*+)(?P<sign>['\"]?\s*[:=]\s*)")
_FLAGGED = re.compile(r"(?<!\S)(?P<name>--?[A-Za-z][\w.-]*)(?P<sign>\s+)(?!-)")
_VALUE = re.compile(r"(?P<quote>['\"])(?P<quoted>[^'\"]+)(?P=quote)|(?P<plain>[^\s'\"&,;)\]}]+)")
_A_WORD = re.compile(r"[A-Za-z]?[a-z]*[.,:]?")
_OPTION = re.compile(r"(?P<name>-{0,2}[A-Za-z_][\w.-]*)=(?P<value>.+)", re.DOTALL)


@lru_cache(maxsize=4096)
def names_secret(key: str) -> bool:
    """Return whether a key names a secret: `hf_token`, `apiKey`, `AWS_ACCESS_KEY_ID`, `--db-password`."""
    words = _NO_WORD.sub("_", _JOINS.sub("_", key).lower()).strip("_").split("_")
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if words[0] == "keep" or _DESCRIBES.fullmatch(last):
        return False
    singular = last.removesuffix("s")
    if singular.endswith("token"):
        return not _PLAIN_TOKENS.fullmatch(singular.removesuffix("token") or before)
    if singular == "key" and before:
        return not _PLAIN_KEYS.fullmatch(before)
    return bool(_OWNED_KEYS.match(last) or _NAMED.search("_".join(words)))


def conceals(key: str, value: Any) -> bool:
    """Return whether a scalar below this key may be a secret. Booleans, empty values and `tokens: 4096` are not."""
    if value is None or isinstance(value, bool) or value == "" or not names_secret(key):
        return False
    return not (key.lower().endswith("tokens") and _is_number(value))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def concealed_arguments(arguments: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """Yield (index, prefix) of arguments that hold a secret: `--hf-token X`; `--pin=` of `--pin=X` is the prefix."""
    flag = ""
    for number, argument in enumerate(arguments):
        if not isinstance(argument, str):
            if conceals(flag, argument):
                yield number, ""
            flag = ""
            continue
        option = _OPTION.fullmatch(argument)
        if option is not None and conceals(_last_part(option["name"]), option["value"]):
            yield number, option["name"] + "="
        elif flag and not argument.startswith("--") and conceals(flag, argument):
            yield number, ""
        flag = _last_part(argument) if argument.startswith("-") and option is None else ""


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def secrets_in(settings: Any, key: str = "") -> Iterator[str]:
    """Yield the values of a config that may be secrets. `key`: the key below which `settings` lies."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from secrets_in(value, key if key and names_secret(key) else str(name))
    elif isinstance(settings, list | tuple):
        for number, before in concealed_arguments(settings):
            yield str(settings[number]).removeprefix(before)
        for value in settings:
            yield from secrets_in(value, key)
    elif isinstance(settings, str | int | float) and conceals(key, settings):
        yield str(settings)


class Redaction:
    """Redactor for texts: secrets of known shape, behind a telling name, and the values of `known`."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        # The longest first: one secret may be the beginning of another.
        long = {value for value in known if len(value) >= MIN_KNOWN_CHARS}
        lines = {line for value in long for line in value.splitlines() if len(line) >= 2 * MIN_KNOWN_CHARS}
        quoted = {quote(value, safe="") for value in long}
        values = sorted(long | lines | quoted, key=lambda value: (-len(value), value))
        self._known = re.compile("|".join(map(re.escape, values))) if values else None

    @classmethod
    def of(cls, environ: Mapping[str, str], known: Iterable[str] = ()) -> "Redaction":
        """Return a redactor that also knows the environment's variables with a secret's name. `PWD` is a folder."""
        named = (value for name, value in environ.items() if name not in ("PWD", "OLDPWD") and names_secret(name))
        return cls([*named, *known])

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _IN_URL.sub(f"://{HIDDEN}@", text)
        text = _SHAPES.sub(HIDDEN, text)
        text = _BEARER.sub(rf"\g<1>{HIDDEN}", text)
        text = _AUTHORIZATION.sub(rf"\g<1>{HIDDEN}", text)
        return _hidden_behind(_FLAGGED, _hidden_behind(_ASSIGNED, text))

    def value(self, value: Any, key: str = "") -> Any:
        """Return a JSON value without secrets: texts below a key that names one are replaced.

        Numbers and nested values stay: a script may name a knob `aux_key`, and it must remain usable.
        """
        if isinstance(value, Mapping):
            return {name: self.value(each, str(name)) for name, each in value.items()}
        if isinstance(value, list | tuple):
            changed = [self.value(each, key) for each in value]
            for number, before in concealed_arguments(value):
                changed[number] = before + HIDDEN
            return type(value)(changed)
        if isinstance(value, str) and conceals(key, value):
            return HIDDEN
        return self.text(value) if isinstance(value, str) else self.words(value)

    def words(self, words: T) -> T:
        """Return a message (a record, a report) without secrets in its `TEXTS` and readbacks.

        Names of runs, branches, checkpoints and ranks stay. Without a secret the same object is returned.
        """
        names = _field_names(words)
        changed = {name: new for name in names if (new := self._field(name, old := getattr(words, name))) is not old}
        if not changed:
            return words
        typed: Any = words
        copy: T = dataclasses.replace(typed, **changed) if is_dataclass(words) else typed.model_copy(update=changed)
        return copy

    def _field(self, name: str, value: Any) -> Any:
        if isinstance(value, str):
            if name not in TEXTS:
                return value
            new = self.text(value)
            return value if new == value else new
        if isinstance(value, Mapping):
            read = self.value(value)
            return value if read == value else read
        if isinstance(value, tuple) and value and not isinstance(value[0], str):
            each = tuple(self._field(name, one) for one in value)
            return value if all(new is old for new, old in zip(each, value, strict=True)) else each
        return self.words(value)


def _hidden_behind(names: re.Pattern[str], text: str) -> str:
    """Return the text without values behind a secret's name. A plain word after a colon or a blank is kept as prose."""
    kept, done, match = list[str](), 0, names.search(text)
    while match is not None:
        at = match.end()
        value = _VALUE.match(text, at) if names_secret(_last_part(match["name"])) else None
        if value is not None:
            is_prose = "=" not in match["sign"] and _A_WORD.fullmatch(value[0]) is not None
            if not is_prose and conceals(_last_part(match["name"]), value["quoted"] or value["plain"]):
                mark = value["quote"] or ""
                kept += [text[done:at], mark + HIDDEN + mark]
                done = at = value.end()
        match = names.search(text, at)
    return "".join([*kept, text[done:]])


def _field_names(words: object) -> Iterable[str]:
    if is_dataclass(words):
        return [each.name for each in dataclasses.fields(words)]
    return getattr(type(words), "model_fields", ())

"""Random requests for the gateway, from a grammar and by mutation. Seeded."""

import json
import random
from dataclasses import dataclass
from typing import Any

from tests.core.examples import EVERY_INTENT
from tests.gateway.rig import HOST, RUN, TOKENS

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "BREW")
UUIDS = [f"00000000-0000-0000-0000-{n:012d}" for n in range(40)]
RUNS = [RUN] * 12 + [
    "fork-1",
    "..",
    ".",
    "",
    "%2e%2e",
    "%2F",
    "Run",
    "r" * 65,
    "%00",
    "%ff%fe",
    "run%201",
    "\U0001f98a",
]
TEXTS = [
    "",
    "0",
    "a" * 80,
    "a" * 600,
    "\x00",
    "\x1b]0;x\x07",
    "\u202e",
    "\ud83d",
    "\ufeff",
    "1e-4",
    "NaN",
    "\u0661",
    "*",
    "[",
    "[!a",
]
TEXTS += [
    "{lr}",
    "%s%n",
    "../../etc/passwd",
    "c1",
    "main",
    "lr",
    "decay",
    "step-11-g1",
    "a:b@c",
    "<b>",
    "${HOME}",
    UUIDS[1],
]
NUMBERS = [
    0,
    -0.0,
    1,
    -1,
    2**31,
    2**53,
    2**63,
    -(2**63) - 1,
    10**308,
    10**400,
    1e-320,
    1.7e308,
    float("nan"),
    float("inf"),
]
OTHERS = [None, True, False, [], {}, [[]], ["a"] * 9, [1e-4, True], {"kind": "pause"}, {"a": {"b": {}}}]
NAMES = [
    "intent",
    "kind",
    "value",
    "factor",
    "group",
    "reason",
    "uuid",
    "run",
    "checkpoint",
    "branch",
    "first",
    "changes",
]
NAMES += ["author", "role", "arguments", "knob", "__class__", "a" * 300, "\u202e", "\ud83d", "", "not_before_step"]
QUERY_VALUES = [
    "0",
    "1",
    "-1",
    "1.5",
    "1e3",
    "NaN",
    "inf",
    "1e999",
    "",
    "%00",
    "%ff",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "\u0661",
    "+1",
    "%201",
]
QUERY_VALUES += [
    "true",
    "null",
    "step",
    "loss",
    "driver",
    "rank-0",
    "evil",
    "..%2Fdriver",
    "a" * 500,
    RUN,
    f"{RUN}:main",
    f"{RUN}@4",
]
QUERY_VALUES += [f"{RUN}@step:4", f"{RUN}@{'9' * 40}", f"{RUN}:", ":", "@", "a:b:c", f"{RUN}:main@3@4", "fork-1@c1"]
QUERY_NAMES = ["after", "limit", "name", "source", "lines", "of", "token", "x", "after[]", "%00", "%ff"]
TYPES = ["application/json"] * 30 + [
    "text/plain",
    "application/json; charset=utf-16",
    "multipart/form-data; boundary=x",
    "",
    "\xff",
]
OTHER_HEADERS = [
    "accept",
    "range",
    "if-none-match",
    "x-http-method-override",
    "cookie",
    "upgrade",
    "expect",
    "accept-encoding",
]
OTHER_HEADERS += [
    "x-forwarded-host",
    "x-forwarded-for",
    "forwarded",
    "origin",
    "referer",
    "x-request-id",
    "last-event-id",
]
OTHER_VALUES = [
    "",
    "*",
    "bytes=0-1,9-2",
    "DELETE",
    "websocket",
    "100-continue",
    "a" * 9000,
    "\xff\xfe",
    "null",
    "::1",
    "\x00",
]
RAW_BODIES = [
    b"",
    b"null",
    b"[]",
    b"0",
    b'"x"',
    b"{",
    b"}",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"NaN",
    b"-Infinity",
    b"<xml/>",
    b"a=b&c=d",
    b"[" * 5_000,
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b'{"intent":' * 2_000 + b"1" + b"}" * 2_000,
    b"9" * 5_000,
    b"{}" * 100,
    b'{"intent":{"kind":"set_learning_rate","value":1e999}}',
    b'{"intent":{"kind":"pause","kind":"stop"}}',
    b'{"intent":{"kind":"pause"},"\\u0069ntent":{"kind":"stop"}}',
    b'{"uuid":' + b"9" * 4_301 + b"}",
    b" " * 250_000 + b"{}",
    b'{"intent":{"kind":"pause"}}\x00',
    b" " * 300_000,
    '{"intent":{"kind":"pause"}}'.encode("utf-16"),
    b'{"intent":{"kind":"freeze","parameters":"' + b"*a" * 100 + b'"}}',
    b'{"intent":{"kind":"set_knobs","changes":[' + b",".join([b'{"knob":"a","value":1}'] * 5_000) + b"]}}",
]


LAUNCHES: list[dict[str, Any]] = [
    {"config": "name: x", "files": {"zero2.json": "{}"}, "overrides": ["a=1"], "secrets": {"HF_TOKEN": "x"}},
    {"config": "name: x", "bundle": "0" * 64, "script": "src/train.py", "env": ["HF_TOKEN"], "priority": 3},
    {"back": {"kind": "rollback", "checkpoint": "c", "first": [{"kind": "set_learning_rate", "value": 1e-4}]}},
    {"back": {"kind": "adopt_checkpoint", "run": "run-2", "branch": "b"}, "trust": True},
    {"checkpoint": "c", "firsts": [[], [{"kind": "set_learning_rate", "factor": 2}]]},
    {"until_step": 3, "wait_for_nodes": True},
]
"""Bodies of the routes that begin and continue runs."""


@dataclass(frozen=True)
class Asked:
    """One request. `ends`: whether its body ever does; None: the client leaves in the middle of it."""

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    pieces: list[bytes]
    ends: bool | None = True

    def __str__(self) -> str:
        shown = [(name, value[:60]) for name, value in self.headers if name != b"authorization"]
        body = b"".join(self.pieces)[:200]
        return f"{self.method} {self.path[:120]}?{self.query[:120]} {shown} {body!r} ends={self.ends}"


@dataclass
class Grammar:
    """What may be asked of these routes, by this chance."""

    chance: random.Random
    templates: list[tuple[str, list[str]]]

    def request(self) -> Asked:
        """The next one."""
        template, methods = self.chance.choice(self.templates)
        method = self.chance.choice(methods if self.chance.random() < 0.9 else METHODS)
        path = template.replace("{run}", self.chance.choice(RUNS))
        path = path.replace("{uuid}", self.chance.choice([*UUIDS[:6], "x", "", "0" * 36, "%00", "\U0001f98a"]))
        path += self.rarely(0.02, ["/", "//", "/..", "%00", "/x", ";a=b"], "")
        headers = self.headers(method)
        pieces, ends = [b""], True
        if method in ("POST", "PUT", "PATCH") or self.chance.random() < 0.02:
            body = self.body()
            headers += self.about(body)
            pieces = [body[at : at + 4_000] for at in range(0, len(body), 4_000)] or [b""]
            ends = self.rarely(0.01, [None, False], True)
        return Asked(method, path, self.query(), headers, pieces, ends)

    def rarely(self, how: float, these: list[Any], otherwise: Any) -> Any:
        """One of these, with this probability."""
        return self.chance.choice(these) if self.chance.random() < how else otherwise

    def headers(self, method: str) -> list[tuple[bytes, bytes]]:
        """Who asks, under which name of this host, and whatever else."""
        said = [("host", self.rarely(0.02, ["evil.example", "", f"{HOST}:x:y", "[", "\xff"], HOST))]
        who = self.chance.choice([*TOKENS, "operator", "operator", "admin", "nobody", "bad"])
        if who == "bad":
            wrong = [
                "canary-wrong",
                "canary-" * 500,
                TOKENS["operator"][:-1],
                TOKENS["admin"] + "x",
                "canary-\xff\x00",
                "",
            ]
            said.append(
                (
                    "authorization",
                    self.rarely(0.2, ["Basic ", "", "Bearer", "bearer  "], "Bearer ") + self.chance.choice(wrong),
                )
            )
        elif who != "nobody":
            said.append(("authorization", f"Bearer {TOKENS[who]}"))  # type: ignore[index]
        if self.chance.random() < 0.1:
            said.append((self.chance.choice(OTHER_HEADERS), self.chance.choice(OTHER_VALUES)))
        said += self.rarely(0.02, [said[-1:], [("authorization", "Bearer canary-second")], [("host", HOST)]], [])
        return [(name.encode(), value.encode("latin-1")) for name, value in said]

    def about(self, body: bytes) -> list[tuple[bytes, bytes]]:
        """What the headers say of this body, which need not be so."""
        wrong = ["-1", "x", "1e3", "9" * 12, "9" * 5_000, "0", "5", "", "\xb2"]
        said = [("content-type", self.chance.choice(TYPES))]
        said += self.rarely(
            0.1, [[("transfer-encoding", "chunked")]], [("content-length", self.rarely(0.03, wrong, str(len(body))))]
        )
        keys = [UUIDS[1], f'"{UUIDS[2]}"', "x", "", "\xff", "a" * 5_000, f"urn:uuid:{UUIDS[3]}"]
        said += self.rarely(0.15, [[("idempotency-key", key)] for key in keys], [])
        return [(name.encode(), value.encode("latin-1")) for name, value in said]

    def query(self) -> str:
        """None, or some of what routes read, or of what none does. A wait is short, unless it is none."""
        if self.chance.random() < 0.5:
            return self.rarely(0.05, ["%", "&&&", "=", "a" * 9_000, "after=0" * 50], "")
        said = [
            (self.chance.choice(QUERY_NAMES), self.chance.choice(QUERY_VALUES))
            for _ in range(self.chance.randrange(1, 5))
        ]
        said += self.rarely(0.1, [[("wait_s", value)] for value in ["0.01", "0", "-1", "nan", "1e999", "x"]], [])
        said += self.rarely(0.03, [[said[0]] * 70], [])
        return "&".join(f"{name}={value}" for name, value in said)

    def body(self) -> bytes:
        """A command, mostly a mutant of one, or any bytes."""
        if self.chance.random() < 0.12:
            return self.rarely(0.3, [self.chance.randbytes(self.chance.randrange(60))], self.chance.choice(RAW_BODIES))
        said: Any = {"intent": json.loads(json.dumps(self.chance.choice(EVERY_INTENT)))}
        said = self.rarely(0.3, json.loads(json.dumps(LAUNCHES)), said)
        optional = {
            "reason": TEXTS,
            "uuid": UUIDS,
            "not_before_step": NUMBERS,
            "not_after_step": NUMBERS,
            "based_on_seq": [0, 1, 4, 900],
        }
        said |= {name: self.chance.choice(values) for name, values in optional.items() if self.chance.random() < 0.07}
        for _ in range(self.chance.choice([0, 0, 0, 1, 1, 2, 4])):
            said = self.mutant(said)
        text = bytearray(json.dumps(said, ensure_ascii=self.chance.random() < 0.8).encode("utf-8", "surrogatepass"))
        if self.chance.random() < 0.08:
            for _ in range(self.chance.randrange(1, 4)):
                text[self.chance.randrange(len(text))] = self.chance.randrange(256)
        return bytes(text)

    def mutant(self, value: Any) -> Any:
        """The same, but for one place."""
        if isinstance(value, dict) and value and self.chance.random() < 0.8:
            name = self.chance.choice(list(value))
            rest = {key: each for key, each in value.items() if key != name}
            changed = {**value, name: self.mutant(value[name])}
            extra = {**value, self.chance.choice(NAMES): self.any_value()}
            return self.chance.choice(
                [changed, changed, changed, changed, rest, extra, {**rest, self.chance.choice(NAMES): value[name]}]
            )
        if isinstance(value, list) and value and self.chance.random() < 0.8:
            at = self.chance.randrange(len(value))
            return self.rarely(
                0.3, [value * 2, value * 40, value[:at]], [*value[:at], self.mutant(value[at]), *value[at + 1 :]]
            )
        if isinstance(value, str) and self.chance.random() < 0.5:
            return self.chance.choice(
                [value + "\x00", value.upper(), value * 50, f" {value}", value + "\u202e", value[:-1], [value]]
            )
        return self.any_value()

    def any_value(self) -> Any:
        """Any value."""
        return self.chance.choice(self.chance.choice([TEXTS, NUMBERS, OTHERS]))

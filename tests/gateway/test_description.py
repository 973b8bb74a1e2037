"""The OpenAPI description against the app: every answer to known and to random requests is as it is described."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from jsonschema import Draft202012Validator

from control_plane.api.messages import Report
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.records import CheckpointCommitted
from control_plane.gateway.app import MAX_BODY_BYTES
from control_plane.gateway.problems import MEDIA_TYPE
from tests.core import examples
from tests.gateway.conftest import Rig
from tests.gateway.rig import API, RUN, TOKENS, DeadHandle, settle

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
CREDENTIALS = (None, "nobody", *TOKENS.values())
PAUSE = {"intent": {"kind": "pause"}}
PROBLEMS = {401, 403, 404, 405, 409, 413, 421, 422, 429, 503}


class Described:
    """What the description says of an answer. `seen` counts the answers that it was asked about, by status."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.text = rig, rig.get("/openapi.json").json()
        self.seen: Counter[int] = Counter()
        self.not_finite = 0

    def ask(self, method: str, path: str, token: str | None = TOKENS["operator"], **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self.rig.web.request(method, path, headers=headers | options.pop("headers", {}), **options)
        self.check(method, path, answer)
        return answer

    def check(self, method: str, path: str, answer: Any) -> None:
        self.seen[answer.status_code] += 1
        if method == "HEAD":
            return
        described = self.response(method, path, answer.status_code)
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type in described["content"], (method, path, answer.status_code)
        schema = described["content"][media_type].get("schema", {})
        body = answer.json()
        errors = list(self.validator(schema).iter_errors(body))
        assert not errors, (method, path, answer.status_code, errors[0].message, list(errors[0].absolute_path))
        self.not_finite += answer.text.count('"NaN"') + answer.text.count('Infinity"')
        if answer.status_code >= 400:
            assert (media_type, body["status"]) == (MEDIA_TYPE, answer.status_code)
        for header in described.get("headers", {}):
            assert header in answer.headers, (method, path, answer.status_code, header)

    def response(self, method: str, path: str, status: int) -> Any:
        """The response of the operation; of another method or address, what is said of that status anywhere."""
        operation = self.operation(method, path.partition("?")[0])
        if operation is None:
            assert status >= 400
            (found,) = [
                each
                for each in self.text["components"]["responses"].values()
                if any(each is self.resolved(op["responses"].get(str(status))) for op in self.operations())
            ]
            return found
        assert str(status) in operation["responses"], (method, path, status)
        return self.resolved(operation["responses"][str(status)])

    def operations(self) -> Iterator[dict[str, Any]]:
        for methods in self.text["paths"].values():
            yield from methods.values()

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        for template, methods in self.text["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
                found: dict[str, Any] | None = methods.get(method.lower())
                return found
        return None

    def resolved(self, found: Any) -> Any:
        if found is None or "$ref" not in found:
            return found
        at = self.text
        for part in found["$ref"].removeprefix("#/").split("/"):
            at = at[part]
        return at

    def validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        return Draft202012Validator({"allOf": [schema], "components": self.text["components"]})


@pytest.fixture
def described(rig: Rig) -> Described:
    """The description of an app whose run has commands, checkpoints and measurements that are no numbers."""
    for intent in (each for each in examples.EVERY_INTENT if each["kind"] not in ("stop", "rollback")):
        rig.post(f"/runs/{RUN}/commands", json={"intent": intent, "reason": "for the test"})
    for view in rig.get(f"/runs/{RUN}").json()["commands"]:
        if view["status"] == "accepted":
            rig.call(settle, rig.server, view["command"]["uuid"], 10, {"lr": [float("nan"), 1e-4]})
    saved = CheckpointCommitted(checkpoint="c1", step=10, generation=1, path="checkpoints/c1", metrics={"loss": 2.5})
    rig.call(rig.server.report, Report(generation=1, checkpoints=(saved,)))
    return Described(rig)


def test_every_schema_is_one_and_every_reference_leads_somewhere(described: Described) -> None:
    text = json.dumps(described.text)
    for schema in described.text["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in set(re.findall(r'"\$ref": "([^"]+)"', text)):
        assert described.resolved({"$ref": reference}), reference
    assert "HTTPValidationError" not in text


def test_every_operation_names_its_problems_and_who_may_ask(described: Described) -> None:
    assert described.text["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert described.text["security"] == [{"bearer": []}]
    for path, methods in described.text["paths"].items():
        for operation in methods.values():
            is_open = path == f"{API}/health"
            assert operation.get("security") == ([] if is_open else None)
            assert is_open or {"401", "403"} <= operation["responses"].keys()
    post = described.text["paths"][f"{API}/runs/{{run}}/commands"]["post"]
    assert {str(status) for status in PROBLEMS} <= post["responses"].keys()


def test_the_websocket_is_described_in_a_sentence(described: Described) -> None:
    told = described.text["info"]["description"]
    assert f"{API}/runs/RUN/stream?after=SEQ" in told
    assert all(code in told for code in ("1000", "4401", "4403", "4404", "4422", "4429", "1013"))


def test_a_measured_number_may_be_text_and_a_bound_may_not(described: Described) -> None:
    schemas = described.text["components"]["schemas"]
    assert schemas["Point"]["properties"]["value"]["anyOf"][1]["enum"] == ["NaN", "Infinity", "-Infinity"]
    assert "NaN" not in json.dumps([schemas["SetLearningRate"], schemas["Limit"], schemas["CommandRequest"]])


def test_every_known_answer_is_as_described(described: Described) -> None:
    ask, run = described.ask, f"{API}/runs/{RUN}"
    uuid = str(uuid4())
    for path in ("", "/journal", "/metrics", "/tree", "/logs"):
        ask("GET", run + path)
        ask("GET", f"{API}/runs/run-2{path}")
        ask("GET", f"{API}/runs/..%5C{path}")
        ask("GET", run + path, None)
        ask("GET", run + path, headers={"Host": "evil.example"})
        ask("GET", run + path, content=b"{}")
    for path in ("/health", "/openapi.json", "/runs", f"/compare?of={RUN}&of={RUN}@3", "/nothing"):
        ask("GET", API + path)
    ask("GET", f"{API}/compare?of={RUN}")
    ask("GET", f"{run}/journal?limit=0&after=x")
    ask("POST", f"{run}/commands", json=PAUSE, token=TOKENS["viewer"])
    ask("POST", f"{run}/commands", json=PAUSE | {"uuid": uuid})
    ask("GET", f"{run}/commands/{uuid}")
    ask("POST", f"{run}/commands", json={"intent": {"kind": "evaluate"}, "uuid": uuid})
    ask("POST", f"{run}/commands", json={"intent": {"kind": "pause"}, "extra": 1})
    ask("POST", f"{run}/commands", content=b" " * (MAX_BODY_BYTES + 1))
    ask("POST", f"{run}/commands", content=b"{")
    for _ in range(200):
        if ask("POST", f"{run}/commands", json={"intent": {"kind": "evaluate"}}).status_code == 429:
            break
    described.rig.runs.handles["dead"] = DeadHandle(Unavailable("away"))  # type: ignore[assignment]
    described.rig.runs.handles["broken"] = DeadHandle(RuntimeError("a bug"))  # type: ignore[assignment]
    ask("GET", f"{API}/runs/dead")
    ask("GET", f"{API}/runs/broken")
    for method in METHODS:
        ask(method, run)
    assert described.seen.keys() >= PROBLEMS | {200, 202, 500}
    assert described.not_finite > 5


def test_every_random_answer_is_as_described(described: Described) -> None:
    chance = random.Random(0)
    values = {
        "run": [RUN, RUN, RUN, "run-2", "..", "%00", "a" * 300, "%2e%2e%2ftokens"],
        "source": ["web", "WEB", "..", "a" * 300],
        "sha256": ["a" * 64, "A" * 64, "x", ""],
        "uuid": [str(uuid4()), "x", ""] + [each["command"]["uuid"] for each in _commands(described)],
    }
    queries = ["", "after=0", "after=-1", "after=9e9", "limit=1", "limit=x", "wait_s=nan", "wait_s=-1", "name=loss",
               "name=", "source=driver", "source=../x", "lines=0", f"of={RUN}", f"of={RUN}&of={RUN}:main", "of=&of=",
               f"of={RUN}@c1&of={RUN}@99999999999999999999", "a=b"]  # fmt: skip
    bodies = [None, b"", b"{", b"[]", b"\xff", b'{"intent": {}}', b'{"intent": {"kind": "stop", "kind": "pause"}}',
              b'{"intent": {"kind": "set_learning_rate", "value": 1e999}}', b"[" * 10_000]  # fmt: skip
    bodies += [json.dumps({"intent": each}).encode() for each in examples.EVERY_INTENT]
    for _ in range(1500):
        template, methods = chance.choice(list(described.text["paths"].items()))
        path = re.sub(r"\{(\w+)\}", lambda match: chance.choice(values[match[1]]), template)
        method = chance.choice([*methods, *methods, *methods, *METHODS]).upper()
        body = chance.choice(bodies) if method == "POST" else None
        query = "&".join(chance.sample(queries, 2))
        described.ask(method, f"{path}?{query}", chance.choice(CREDENTIALS), content=body)
    assert described.seen.keys() >= {200, 401, 403, 404, 405, 422}


def _commands(described: Described) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = described.rig.get(f"/runs/{RUN}").json()["commands"]
    return found

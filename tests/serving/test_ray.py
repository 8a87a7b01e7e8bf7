"""The example on a real Ray: two replicas behind one address give the same, and one that dies is not missed."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from served import pixels_of
from tiny_model import save_tiny_checkpoint

import rhea

pytest.importorskip("ray.serve", reason="no Ray here: pip install -e '.[ray]'")

PATIENCE = 600.0
"""Seconds that a test waits for what must come: Ray starts a dozen processes, and other tests run beside this one."""
LONG = {"prompt": "red", "size": "320x320"}
KEY = "secret"
BUSY = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
"""Where many tests share a core, Ray must not take its own proxy for dead while that is still being started."""


class Cluster:
    """``examples/ray_serve.py`` as people run it, in a temporary folder of its own."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.said = folder / "said"
        command = [sys.executable, str(Path(__file__).parents[2] / "examples" / "ray_serve.py")]
        command += ["--checkpoint", str(checkpoint), "--replicas", "2", "--port", "0"]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command,
                env=os.environ | BUSY | {"RHEA_API_KEYS": KEY, "RAY_TMPDIR": str(folder)},
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        self._started = psutil.Process(self.process.pid)

    def serves(self) -> bool:
        """Wait until requests are taken; False if Ray gave up."""
        found = until(lambda: self.process.poll() is not None or self._address(), "it says where it is")
        if not isinstance(found, re.Match):
            return False
        self.url = found[0]
        return True

    def end(self) -> None:
        """End it and make sure that nothing is left."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        for process in psutil.process_iter():  # where Ray gave up, it may have left some without a parent
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_TMPDIR") == str(self.said.parent):
                    process.kill()

    def _address(self) -> re.Match[str] | None:
        return re.search(r"(?<=is served 2 times at )http://127\.0\.0\.1:\d+", self.said.read_text())

    def processes(self, what: str = "") -> list[psutil.Process]:
        """All that it has started, of a kind."""
        with contextlib.suppress(psutil.Error):
            return [each for each in self._started.children(recursive=True) if what in _command(each)]
        return []

    def engine(self, replica: psutil.Process) -> psutil.Process:
        return next(each for each in replica.children() if "rhea.serving.worker" in _command(each))

    def worked(self, replica: psutil.Process) -> float:
        """Seconds of work of its engine so far."""
        return sum(self.engine(replica).cpu_times()[:2])

    def client(self, **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=KEY, timeout=PATIENCE, **{"max_retries": 0, **settings})


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def until(condition: Any, what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE:g} seconds: {what}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", max_seq_len=2048)


@pytest.fixture(scope="module")
def cluster(tiny: Path) -> Iterator[Cluster]:
    for _ in range(3):  # Ray gives its own processes 30 seconds, which a crowded machine may not have
        with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # short, for sockets
            cluster = Cluster(tiny, Path(folder))
            try:
                if cluster.serves():
                    yield cluster
                    return
                said = cluster.said.read_text()
            finally:
                cluster.end()
    pytest.fail(said)


def draw(client: openai.OpenAI) -> tuple[str, bytes]:
    """Draw a picture; return who drew it, and its pixels."""
    answer = client.images.with_raw_response.generate(prompt="red", extra_body={"seed": 1})
    made = answer.parse().data
    assert made is not None
    return answer.headers["x-rhea-replica"], pixels_of(made[0].b64_json).tobytes()


def two_replicas(client: openai.OpenAI) -> dict[str, bytes]:
    """Draw until two have drawn; return what each drew last."""
    seen: dict[str, bytes] = {}

    def two() -> bool:
        seen.update([draw(client)])
        return len(seen) == 2

    until(two, "two replicas have drawn")
    return seen


def test_both_replicas_draw_what_the_model_draws(cluster: Cluster, tiny: Path) -> None:
    expected = rhea.load(tiny).generate("red", seed=1)[0].pixels.tobytes()
    with cluster.client() as client:
        assert set(two_replicas(client).values()) == {expected}


def test_an_answer_comes_in_pieces(cluster: Cluster) -> None:
    with cluster.client() as client:
        asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "How many?"}], "seed": 1}
        whole = client.chat.completions.create(**asked).choices[0].message.content
        chunks = list(client.chat.completions.create(**asked, stream=True))
        pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
        assert len(pieces) > 1
        assert "".join(pieces) == whole


def test_a_client_that_leaves_is_noticed_behind_the_proxy(cluster: Cluster) -> None:
    with httpx.Client(base_url=cluster.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE) as client:

        def counted(replica: str) -> tuple[float, float]:
            """Return the requests in a replica's engine, and the pictures that it has finished."""
            told = until(
                lambda: (told := client.get("/metrics")).headers["x-rhea-replica"] == replica and told, replica
            )
            found = [
                re.search(rf"^rhea_engine_{name} (.+)$", told.text, re.MULTILINE) for name in ("requests", "grids")
            ]
            requests, grids = (float(each[1]) for each in found if each)
            return requests, grids

        with cluster.client() as known:
            finished = {replica: counted(replica)[1] for replica in two_replicas(known)}
        asked = LONG | {"stream": True, "partial_images": 3}
        with client.stream("POST", "/v1/images/generations", json=asked) as answer:
            replica = answer.headers["x-rhea-replica"]
            assert "partial_image" in next(answer.iter_lines())  # the picture is far from done
        until(lambda: counted(replica)[0] == 0, "the engine has nothing to do")
        assert counted(replica)[1] == finished[replica]


def test_the_door_is_the_same(cluster: Cluster) -> None:
    with pytest.raises(openai.AuthenticationError):
        draw(openai.OpenAI(base_url=cluster.url + "/v1", api_key="guessed", max_retries=0))
    with cluster.client() as client, pytest.raises(openai.NotFoundError) as refused:
        client.videos.create(prompt="red")
    assert refused.value.code == "films_off"
    connection = http.client.HTTPConnection(cluster.url.removeprefix("http://"), timeout=PATIENCE)
    connection.putrequest("POST", "/v1/images/generations")
    connection.putheader("Authorization", f"Bearer {KEY}")
    connection.putheader("Content-Length", str(2**30))
    connection.endheaders()
    assert connection.getresponse().status == 413  # before a byte of it was sent
    connection.close()


def test_a_replica_whose_engine_stays_down_is_replaced(cluster: Cluster, tiny: Path) -> None:
    with cluster.client(max_retries=20) as client:
        before = set(two_replicas(client))
        replicas = {each: cluster.worked(each) for each in cluster.processes("ServeReplica")}
        events = client.images.generate(**LONG, stream=True, partial_images=3)  # type: ignore[call-overload]
        assert next(events).partial_image_index == 0
        busy = max(replicas, key=lambda each: cluster.worked(each) - replicas[each])
        hidden = tiny.rename(tiny.with_name("hidden"))  # its engine can't start again
        cluster.engine(busy).kill()
        with pytest.raises(openai.APIError) as died:
            list(events)
        assert died.value.code == "engine_down"
        until(lambda: not busy.is_running(), "Ray has ended the replica")
        hidden.rename(tiny)
        assert set(two_replicas(client)) - before


def test_a_replica_that_dies_is_not_missed(cluster: Cluster) -> None:
    cluster.processes("ServeReplica")[0].kill()
    with cluster.client(max_retries=20) as client:
        for _ in range(4):
            draw(client)


def test_sigterm_lets_it_finish_and_leaves_nothing_behind(cluster: Cluster) -> None:
    with cluster.client() as client:
        events = client.images.generate(prompt="red", size="128x128", stream=True, partial_images=3)  # type: ignore[call-overload]
        assert next(events).partial_image_index == 0
        all_of_it = cluster.processes()
        cluster.process.send_signal(signal.SIGTERM)
        assert [event.type for event in events][-1] == "image_generation.completed"
    assert cluster.process.wait(PATIENCE) == 0
    until(lambda: not any(each.is_running() for each in all_of_it), "all processes are gone")

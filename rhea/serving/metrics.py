"""What is counted for operators, in Prometheus' words and a registry of each app's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_MOST_SIZES = 32
"""Sizes of pictures told apart, and of films; clients choose them freely, and every further one counts as "other"."""


class Metrics:
    """The counters of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("rhea_requests", "Answered requests", ["endpoint", "status"], registry=self.registry)
        self.refusals = Counter("rhea_refusals", "Refused requests by reason", ["reason"], registry=self.registry)
        self.cancellations = Counter("rhea_cancellations", "Clients that left early", registry=self.registry)
        self.open = Gauge("rhea_open_requests", "Requests in the server", registry=self.registry)
        self.first_partial = Histogram(
            "rhea_first_partial_seconds", "Until a partial picture", registry=self.registry, buckets=_SECONDS
        )
        self.first_text = Histogram(
            "rhea_first_text_seconds", "Until the first piece of an answer", registry=self.registry, buckets=_SECONDS
        )
        self._image = Histogram(
            "rhea_image_seconds", "Per picture, by size", ["size"], registry=self.registry, buckets=_SECONDS
        )
        self.films = Counter("rhea_films", "Ended film jobs by outcome", ["outcome"], registry=self.registry)
        self.films_waiting = Gauge("rhea_films_waiting", "Film jobs that wait for their turn", registry=self.registry)
        self.films_running = Gauge("rhea_films_running", "Film jobs that are worked on", registry=self.registry)
        for outcome in ("finished", "failed", "cancelled"):
            self.films.labels(outcome)  # 0 until there is one
        self._film = Histogram(
            "rhea_film_seconds",
            "Per film from its turn to its file, by size and frames",
            ["size", "frames"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._ready = Gauge("rhea_engine_ready", "Whether the engine takes requests", registry=self.registry)
        self._per_forward = Gauge(
            "rhea_engine_tokens_per_forward", "Tokens written in a forward of the model", registry=self.registry
        )
        self._engine: dict[str, Gauge] = {}
        self._seen: dict[Histogram, set[tuple[str, ...]]] = {self._image: set(), self._film: set()}

    def image(self, shape: tuple[int, ...], seconds: float) -> None:
        """Count a finished picture [H, W, 3]."""
        height, width, _ = shape
        self._observe(self._image, (f"{width}x{height}",), seconds)

    def film(self, shape: tuple[int, ...], seconds: float) -> None:
        """Count a finished film [T, H, W, 3]."""
        frames, height, width, _ = shape
        self._observe(self._film, (f"{width}x{height}", str(frames)), seconds)
        self.films.labels("finished").inc()

    def _observe(self, histogram: Histogram, labels: tuple[str, ...], seconds: float) -> None:
        seen = self._seen[histogram]
        if labels not in seen and len(seen) >= _MOST_SIZES:
            labels = ("other",) * len(labels)
        else:
            seen.add(labels)
        histogram.labels(*labels).observe(seconds)

    def render(self, counters: dict[str, float], ready: bool) -> bytes:
        """Return all counters and those of the engine, as text."""
        self._ready.set(ready)
        for name, value in counters.items():
            if name not in self._engine:
                said = f"Engine: {name.replace('_', ' ')}"
                self._engine[name] = Gauge(f"rhea_engine_{name}", said, registry=self.registry)
            self._engine[name].set(value)
        if counters.get("forwards"):
            self._per_forward.set(counters["tokens_written"] / counters["forwards"])
        return generate_latest(self.registry)

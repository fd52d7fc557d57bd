"""Where a surrogate comes from."""

import dataclasses

VERSION = "0.1.0"


@dataclasses.dataclass(frozen=True, eq=False)
class Provenance:
    """Where a surrogate comes from. It travels along and tells no two surrogates apart.

    Attributes:
      circuit: what was probed, in words.
      checksum: of a `Circuit`'s shape and angles; `None` of anything else.
      device: what answered.
      shots: how often it measured each setting; `None` if it answered exactly.
      probed_at: when, in UTC (ISO 8601).
      versions: of qsgd_jax and PennyLane.
    """

    circuit: str = "?"
    checksum: int | None = None
    device: str = "?"
    shots: int | None = None
    probed_at: str | None = None
    versions: tuple[tuple[str, str], ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Provenance)

    def __hash__(self) -> int:
        return 0

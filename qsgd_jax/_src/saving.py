"""Values as JSON files, and back."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from qsgd_jax._src.provenance import Provenance

_VERSION = 1


def write(path: str | os.PathLike[str], kind: str, content: dict[str, Any]) -> None:
    """Write a file that `read` knows by its kind."""
    whole = {"format": f"qsgd_jax.{kind}", "version": _VERSION, **content}
    Path(path).write_text(json.dumps(whole, indent=1) + "\n")


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The content of a file of this kind.

    Raises:
      ValueError: if it is something else, or of another version.
    """
    try:
        content = json.loads(Path(path).read_text())
        found = content.pop("format"), content.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{path} holds no {kind}; allowed is what save wrote.") from None
    allowed = f"qsgd_jax.{kind}", _VERSION
    if found != allowed:
        raise ValueError(f"{path} holds {found}; allowed is {allowed}.")
    return content


def to_content(surrogate: Any) -> dict[str, Any]:
    """The fields of a surrogate for JSON; coefficients outside its support are left out."""
    fields = {x.name: getattr(surrogate, x.name) for x in dataclasses.fields(surrogate)}
    table, support, errors = (
        fields[name] for name in ("coefficients", "support", "standard_errors")
    )
    return {
        "outputs": len(table),
        **fields,
        "coefficients": table.ravel()[slice(None) if support is None else list(support)].tolist(),
        "origin": fields["origin"].tolist(),
        "standard_errors": None if errors is None else errors.ravel().tolist(),
        "provenance": dataclasses.asdict(fields["provenance"]),
    }


def from_content(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a surrogate, back.

    Raises:
      KeyError, TypeError, IndexError, ValueError: if it is something else.
    """
    degree, support = tuple(content["degree"]), content["support"]
    table = np.zeros((content["outputs"], *(2 * r + 1 for r in degree)))
    places = list(range(table.size) if support is None else support)
    table.ravel()[places] = np.reshape(content["coefficients"], len(places))
    errors, provenance = content["standard_errors"], content["provenance"]
    versions = tuple(map(tuple, provenance["versions"]))
    others = {name: content[name] for name in content.keys() - {"outputs", "support"}}
    return others | {
        "coefficients": table,
        "origin": np.array(content["origin"], np.float64),
        "standard_errors": errors and np.reshape(errors, table.shape),
        "degree": degree,
        "period": tuple(content["period"]),
        "provenance": Provenance(**provenance | {"versions": versions}),
    }

"""A surrogate's fields as JSON, and back."""

import dataclasses
import json
from typing import Any

import numpy as np

from qsgd_jax._src.provenance import Provenance

_FORMAT, _VERSION = "qsgd_jax.Surrogate", 1


def to_json(fields: dict[str, Any]) -> str:
    """The fields of a surrogate as text; coefficients outside its support are left out."""
    table, support, errors = (
        fields[name] for name in ("coefficients", "support", "standard_errors")
    )
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "outputs": len(table),
        **fields,
        "coefficients": table.ravel()[slice(None) if support is None else list(support)].tolist(),
        "origin": fields["origin"].tolist(),
        "standard_errors": None if errors is None else errors.ravel().tolist(),
        "provenance": dataclasses.asdict(fields["provenance"]),
    }
    return json.dumps(content, indent=1) + "\n"


def from_json(text: str, place: str) -> dict[str, Any]:
    """The fields from the text that was found in a place.

    Raises:
      ValueError: if it is something else, or of another version.
    """
    try:
        content = json.loads(text)
        found = content.pop("format"), content.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{place} holds no surrogate; allowed is what save wrote.") from None
    if found != (_FORMAT, _VERSION):
        raise ValueError(f"{place} holds {found}; allowed is {(_FORMAT, _VERSION)}.")
    try:
        degree, support = tuple(content["degree"]), content.pop("support")
        table = np.zeros((content.pop("outputs"), *(2 * r + 1 for r in degree)))
        places = list(range(table.size) if support is None else support)
        table.ravel()[places] = np.reshape(content["coefficients"], len(places))
        errors, provenance = content["standard_errors"], content["provenance"]
        versions = tuple(map(tuple, provenance["versions"]))
        return content | {
            "coefficients": table,
            "origin": np.array(content["origin"], np.float64),
            "standard_errors": errors and np.reshape(errors, table.shape),
            "degree": degree,
            "period": tuple(content["period"]),
            "provenance": Provenance(**provenance | {"versions": versions}),
        }
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{place} holds a surrogate that cannot be read: {error}.") from error

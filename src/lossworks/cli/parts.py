"""What programs get of the catalog's parts."""

from typing import Any

from lossworks.catalog import Entry, claims, papers

__all__ = ["described"]


def described(entry: Entry) -> dict[str, Any]:
    """The part in plain values, with its papers and what was measured of their claims, as ``--json`` prints it."""
    return {
        "name": entry.name,
        "role": entry.role,
        "path": entry.path,
        "summary": entry.summary,
        "helps": list(entry.helps),
        "warns": list(entry.warns),
        "papers": [_paper(key) for key in entry.papers],
    }


def _paper(key: str) -> dict[str, Any]:
    paper = papers()[key]
    claim = claims().get(key)
    measured = None if claim is None else {"shown": claim.shown, "measured": claim.measured, "rule": claim.rule}
    return {"key": key, "cite": paper.cite(), "claim": paper.claim, "note": paper.note, "measured": measured}

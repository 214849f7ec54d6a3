"""``lossworks claims``: which of the papers' claims were shown when they were measured."""

import dataclasses

from lossworks import catalog
from lossworks.cli.options import AsJson, Quiet
from lossworks.cli.screen import out, plain, print_json

__all__ = ["claims"]


def claims(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """List the papers' claims that were measured, say whether each was shown, and where the experiments are."""
    if as_json:
        print_json([dataclasses.asdict(claim) for claim in catalog.claims().values()])
    elif quiet:
        for key, claim in catalog.claims().items():
            out.print(f"{key}: {claim.verdict}")
    else:
        out.print(plain(catalog.claims_text()))

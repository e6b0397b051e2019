"""The verb on the cache of tokenised rows."""

from typing import Annotated

import typer

from lorafit.cli.app import app


@app.command()
def cache(
    delete: Annotated[list[str] | None, typer.Option(
        metavar="KEY", show_default=False,
        help="Delete the entry whose key begins like that. Repeatable.")] = None,
    delete_all: Annotated[bool, typer.Option("--delete-all", help="Delete every entry.")] = False,
    unused_days: Annotated[float | None, typer.Option(
        min=0, show_default=False,
        help="Delete what was not used for so many days.")] = None,
) -> None:
    """List the cache of tokenised rows, or delete from it.

    Entries are keyed by the content of everything they were made from, so they are never stale;
    deleting one only costs the time to make it again. The cache is in $LORAFIT_CACHE, or in
    ~/.cache/lorafit.
    """
    from lorafit.cli.verbs import cache as verbs

    verbs.cache(delete or [], delete_all, unused_days)

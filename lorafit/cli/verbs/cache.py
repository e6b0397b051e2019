"""What the verb on the cache does."""

from lorafit.cli import show
from lorafit.errors import UserError


def cache(prefixes: list[str], delete_all: bool, unused_days: float | None) -> None:
    from lorafit.cache_dir import cache_directory
    from lorafit.data import cache as rows

    known = rows.entries()
    chosen = known if delete_all else []
    for prefix in prefixes:
        found = [entry for entry in known if entry.key.startswith(prefix)]
        if len(found) != 1:
            what = "no entry begins" if not found else f"{len(found)} entries begin"
            raise UserError(f"{what} with {prefix!r}", "--delete", "list them: lorafit cache")
        chosen = [*chosen, *found]
    if unused_days is not None:
        chosen = [*chosen, *rows.unused_for(unused_days)]
    if delete_all or prefixes or unused_days is not None:
        unique = list({entry.key: entry for entry in chosen}.values())
        rows.delete(unique)
        show.cache_deleted(unique)
    else:
        show.cache(str(cache_directory()), known)

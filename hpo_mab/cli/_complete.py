"""What the shell offers after Tab."""

from __future__ import annotations

import typer


def definitions() -> list[str]:
    """Names of the definitions that come with the package."""
    from hpo_mab.search import builtin_names

    return list(builtin_names())


def data_sets() -> list[str]:
    """Names of data sets."""
    from hpo_mab.data import available

    return list(available())


def networks() -> list[str]:
    """Names of networks."""
    from hpo_mab.models import available

    return list(available())


def batch_samplers() -> list[str]:
    """Kinds of batch samplers."""
    from hpo_mab.samplers import available

    return ["auto", *available()]


def pruners() -> list[str]:
    """Kinds of pruners."""
    from hpo_mab.search._components import pruner_kinds

    return list(pruner_kinds())


def devices() -> list[str]:
    """Kinds of devices."""
    return ["auto", "cpu", "cuda", "mps"]


def study_names(ctx: typer.Context) -> list[str]:
    """Names of the studies in the storage that the line names, or the usual one."""
    from hpo_mab._errors import HpoMabError
    from hpo_mab.storage import DEFAULT_URL, Storage
    from hpo_mab.storage import study_names as stored

    given = ctx.params.get("storage") or DEFAULT_URL
    urls = [given] if isinstance(given, str) else given
    found: list[str] = []
    for url in urls:
        try:
            found += stored(Storage(url, create=False))
        except HpoMabError:
            continue
    return found

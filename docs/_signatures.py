"""Show the common arguments of samplers in their signatures, in place of ``**common``."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROW = re.compile(r"^ *\*\*common:.*\n(?: {8,}.*\n)*", re.MULTILINE)


class CommonArguments(griffe.Extension):
    """Adds the arguments that a sampler passes to `BatchSampler`."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Complete the signatures and the tables of arguments of a loaded package."""
        if "samplers" not in pkg.modules:
            return
        base = pkg["samplers._base.BatchSampler"]
        common = [one for one in base["__init__"].parameters if one.kind.value == "keyword-only"]
        rows = re.search(r"^ *batch_size:.*?(?=\n\n)", base.docstring.value, re.M | re.S)
        for module in pkg["samplers"].modules.values():
            for cls in module.classes.values():
                if not cls.is_alias:
                    _complete(cls, common, rows[0] + "\n")


def _complete(cls: griffe.Class, common: list[griffe.Parameter], rows: str) -> None:
    if cls.docstring is not None:
        cls.docstring.value = _ROW.sub(rows, cls.docstring.value)
    init = cls.members.get("__init__")
    if init is not None and "common" in init.parameters:
        own = [one for one in init.parameters if one.name != "common"]
        first = [one for one in own if one.kind.value != "keyword-only"]
        options = [one for one in own if one.kind.value == "keyword-only"]
        init.parameters = griffe.Parameters(*first, *common, *options)

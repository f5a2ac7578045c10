# One word for each thing a developer does; `make check` is what CI runs.
.PHONY: check lint types test

check: lint types test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	pytest

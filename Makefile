# One word for each thing a developer does; `make check` is what CI runs.
.PHONY: check lint types test faults audit

check: lint types test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	pytest

# Sixty workers killed over three hundred trials, on SQLite and on PostgreSQL.
faults:
	python benchmarks/faults.py --trials 300 --kills 60
	python benchmarks/faults.py --trials 300 --kills 60 --workers 4 --postgres

# Known vulnerabilities of what is installed; asks a public database.
audit:
	pip-audit --skip-editable

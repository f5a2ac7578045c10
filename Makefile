# One word for each thing a developer does; `make check` is what CI runs.
.PHONY: check lint types test docs notebook-html faults audit

check: lint types test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	pytest

# The documentation, into site/; a broken link fails.
docs:
	mkdocs build --strict

# The first notebook, run on the comparison in hpo_mab.db (or one made for it), into build/.
notebook-html:
	HPO_MAB_STORAGE=$${HPO_MAB_STORAGE:-sqlite:///$(CURDIR)/hpo_mab.db} jupyter nbconvert \
		--execute --to html --output-dir build notebooks/explore.ipynb

# Sixty workers killed over three hundred trials, on SQLite and on PostgreSQL.
faults:
	python benchmarks/faults.py --trials 300 --kills 60
	python benchmarks/faults.py --trials 300 --kills 60 --workers 4 --postgres

# Known vulnerabilities of what is installed; asks a public database.
audit:
	pip-audit --skip-editable

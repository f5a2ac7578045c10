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
	HPO_MAB_STORAGE=$${HPO_MAB_STORAGE:-sqlite:///$(CURDIR)/hpo_mab.db} \
		python notebooks/to_html.py notebooks/explore.ipynb build/explore.html

# Sixty workers killed over three hundred trials, on SQLite and on PostgreSQL.
faults:
	python benchmarks/faults.py --trials 300 --kills 60
	python benchmarks/faults.py --trials 300 --kills 60 --workers 4 --postgres

# Known vulnerabilities of every package installed here but this one; asks a public database.
# --strict: pip-audit otherwise ends with status 0 when it could look up none of them. Local builds
# (+cpu, +cu128) are looked up as the release they are builds of. `make audit AUDIT=` looks up what
# it can.
AUDIT = --strict
audit:
	mkdir -p build
	python -m pip freeze --exclude-editable > build/installed.txt
	sed -e '/^hpo[_-]mab/d' -e 's/+[^=]*$$//' build/installed.txt > build/audited.txt
	pip-audit $(AUDIT) --no-deps --disable-pip --requirement build/audited.txt
	@echo "Looked up: $$(wc -l < build/audited.txt) packages."

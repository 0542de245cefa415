# what CONTRIBUTING.md calls by name; each line can be typed by hand
.PHONY: install lint test bench results

install:  ## the package, editable, with all that developing needs
	pip install -e ".[dev]"

lint:  ## style and types
	ruff check . && ruff format --check . && mypy

test:  ## everything, doctests included
	python -m pytest -n 2 --dist worksteal

bench:  ## the timings behind bench/results/
	python -m pytest bench/

results:  ## the records behind results/: every experiment, five seeds; hours on two cores, and needs the data
	nftk reproduce

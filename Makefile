# what CONTRIBUTING.md calls by name; each line can be typed by hand
.PHONY: install lint test bench results

install:  ## the package, editable, with all that developing needs
	pip install -e ".[dev]"

lint:  ## style and types
	ruff check . && ruff format --check . && mypy

test:  ## everything, doctests included
	python -m pytest

bench:  ## the timings behind bench/results/
	python -m pytest bench/

results:  ## the records behind results/: the paper's MNIST networks, three seeds; needs MNIST or a network for it
	for seed in 0 1 2; do for depth in 10 20; do \
		nftk train --data mnist --depth $$depth --width 256 --epochs 10 --baseline --seed $$seed \
			--out results/mnist-$${depth}x256-seed$$seed --overwrite || exit 1; \
	done; done

.PHONY: install check test kernels-report bench demo

install: ## everything a developer needs
	pip install -e '.[dev]'

check: ## format, lint, types
	ruff format --check .
	ruff check .
	mypy

test: ## what CI runs after `check`
	pytest

kernels-report: ## registers, spills, shared memory and tensor-core instructions of every Triton kernel; needs no GPU
	python -m mora_kernels.triton.report

bench: ## time the adapted projection on this machine
	pytest benchmarks/ --benchmark

demo: ## adapt the built-in CLIP on the built-in data
	mora demo

.PHONY: install check test kernels-report planted bench tables demo

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

planted: ## bugs planted into the kernels one by one, each of which the tests must catch (some ten minutes)
	python -m tests.planted

bench: ## time everything on this machine, beside what people use today
	pytest benchmarks/ --benchmark

tables: ## every table and plot of README and docs, from benchmarks/results
	python -m benchmarks.tables

demo: ## adapt the built-in CLIP on the built-in data
	mora demo

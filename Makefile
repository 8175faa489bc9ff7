.PHONY: install check test kernels-report planted bench tables demo docs links

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

docs: ## the site, from docs/, README and docstrings, into site/index.html; a warning is an error
	sphinx-build -W --keep-going -q -b html -c docs/site . site

links: ## every link to elsewhere that a page has, asked for: needs the network
	sphinx-build -q -b linkcheck -c docs/site . site/links

demo: ## adapt the built-in CLIP on the built-in data
	mora demo

# Two commands do all of their own set-up on a fresh Debian or Ubuntu machine: `make demo` and `make test`.
SHELL := /bin/sh
.DEFAULT_GOAL := help
# mke2fs and losetup live in sbin, which a user's PATH often lacks.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
BIN := .venv/bin
BOOTSTRAP = set -e; python=$$(tools/find-python); "$$python" tools/bootstrap.py

.PHONY: help demo test lint format bench lock clean
help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 16

demo: ## the whole story on this machine: pack, sign, publish, install, boot, commit, roll back (DEMO_ONCE=1 ends it)
	@$(BOOTSTRAP) demo
	@$(BIN)/twinlock demo $(if $(DEMO_ONCE),--once)

test: lint ## lint, then every test under branch coverage (TWINLOCK_LONG=1 adds the long variants)
	@tools/run-tests

lint: ## formatting, lint, types, who may import whom
	@$(BOOTSTRAP) test
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: ## rewrite the files as `make lint` and the tests want them, generated pages too
	@$(BOOTSTRAP) test
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/python tools/reference.py

bench: ## every benchmark beside its peers; NAME=x runs one of them
	@$(BOOTSTRAP) bench $(NAME)
	@$(BIN)/python -m bench $(NAME)

lock: ## solve requirements/*.txt anew from pyproject.toml (UPGRADE=1 takes newer versions)
	@set -e; python=$$(tools/find-python); "$$python" tools/lock.py

clean: ## remove what these commands made in this folder
	rm -rf .venv .tools .demo .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

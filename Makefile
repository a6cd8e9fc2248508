# make demo | serve | test | check | clean; everything happens in one virtual environment, $(VENV)
VENV ?= .venv
PYTHON ?= python3
# pins torch; CONSTRAINTS=your-file.txt chooses another build, such as one for CUDA
CONSTRAINTS ?= constraints.txt
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
SOURCES = proto model_store server client training bench examples tests docs docker

.PHONY: demo serve test check format generate dashboard docs image bench bench-quick clean

demo: $(VENV)/.server
	$(VENV)/bin/python examples/demo.py

serve: $(VENV)/.server
	$(VENV)/bin/offramp-server

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest

check: $(VENV)/.dev
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/mypy model_store/offramp_model server/offramp_server client/offramp_client training/offramp_training bench examples docs/images docs/reference docker
	$(VENV)/bin/buf lint
	$(VENV)/bin/python proto/generate.py --check
	$(VENV)/bin/python docker/grafana/build.py --check
	$(VENV)/bin/python docs/reference/generate.py --check
	$(VENV)/bin/zensical build --strict --config-file mkdocs.yml
	$(VENV)/bin/hadolint docker/server.Dockerfile docker/training.Dockerfile

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

generate: $(VENV)/.dev
	$(VENV)/bin/python proto/generate.py

dashboard: $(VENV)/.dev
	$(VENV)/bin/python docker/grafana/build.py

# the site, in site/; `python -m http.server --directory site` shows it with its search
docs: $(VENV)/.dev
	$(VENV)/bin/python docs/reference/generate.py
	$(VENV)/bin/zensical build --strict --config-file mkdocs.yml

# where no Docker engine runs: builds the server's image and runs it, as root on Debian with debootstrap and buildah
image:
	docker/verify.sh

# Offramp beside Triton, MLServer, LitServe and Ray Serve, whose environments it makes under .bench; on Linux
bench: $(VENV)/.bench
	$(VENV)/bin/python bench/run.py

bench-quick: $(VENV)/.bench
	$(VENV)/bin/python bench/run.py --quick

clean:
	rm -rf $(VENV) .bench site .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@echo "installing Offramp and what it needs into $(VENV) …"
	$(PIP_INSTALL) --editable '.[server]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@echo "installing Offramp with everything that its tests need into $(VENV) …"
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.server

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@echo "installing Offramp with what its benchmark needs into $(VENV) …"
	$(PIP_INSTALL) --editable '.[bench]'
	@touch $@ $(VENV)/.server

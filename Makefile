# On a fresh machine with Python 3.11-3.13 and make: `make demo` trains a decoder, `make test` runs the tests.

PYTHON ?= python3
VENV   ?= .venv
PY     ?= $(VENV)/bin/python
RUN    ?= runs/demo
NOTEBOOK ?=
SIZE   ?= small
# The CPU build of torch. With a GPU: make demo CUDA=1 (several GB).
CPU_INDEX = https://download.pytorch.org/whl/cpu
TORCH     = $(shell grep '^torch==' constraints.txt)
PIP       = $(PY) -m pip --disable-pip-version-check

.PHONY: demo test test-slow test-binder test-cluster bench lab serve docs rendered pictures lint lock
.PHONY: install install-dev clean

demo: $(VENV)/.installed        ## train POYO on the simulated recording and compare it with ridge
	$(PY) -m workbench train demo --run $(RUN)

test: $(VENV)/.installed-dev    ## lint, and every test that is neither slow nor needs a GPU or a network
	$(PY) -m ruff check .
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev   ## the tests marked slow (minutes each)
	$(PY) -m pytest -m slow

test-binder: $(VENV)/.installed-dev ## what Binder installs, in an environment of its own (minutes; downloads)
	$(PY) -m pytest -m slow -s tests/test_binder.py

test-cluster: $(VENV)/.installed-cluster    ## a Ray cluster of two nodes on this machine (installs Ray; minutes)
	$(PY) -m pytest -m cluster -s tests/training

bench: $(VENV)/.installed-dev   ## side by side with other libraries; prints ratios
	$(PY) -m benchmarks

lab: $(VENV)/.installed         ## the notebooks
	$(PY) -m jupyterlab notebooks

serve: $(VENV)/.installed       ## the dashboards
	$(PY) -m workbench serve

docs: $(VENV)/.installed-dev    ## the pages of the API, docs/html/index.html
	$(PY) -m docs

rendered: $(VENV)/.installed    ## notebooks with their outputs, in rendered/: all, or NOTEBOOK=00; small, or SIZE=full
	$(PY) docs/rendered.py $(NOTEBOOK) --size $(SIZE)

pictures: $(VENV)/.installed-dev    ## the README's pictures anew, in docs/pictures/ (minutes; needs a Chromium)
	$(PY) docs/pictures.py

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .

lock: $(VENV)/.installed-dev    ## pin anew what pyproject.toml asks for
	$(PY) -m pip install --quiet uv
	{ sed -n 1p constraints.txt; $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--no-annotate --no-header --extra dev --extra cluster --index-strategy unsafe-best-match --extra-index-url $(CPU_INDEX) \
		pyproject.toml | sed 's/+cpu//'; } > constraints.new
	mv constraints.new constraints.txt

# torch comes first: what depends on it would bring the build with CUDA.
install:                        ## into the Python of $(PY): also what Binder runs
ifdef CUDA
	$(PIP) install $(TORCH)
else
	$(PIP) install --no-deps --retries 1 --extra-index-url $(CPU_INDEX) $(TORCH)
endif
	$(PIP) install --constraint constraints.txt --editable '.$(EXTRAS)'

install-dev:
	$(MAKE) install EXTRAS='[dev]'

$(VENV)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else 'Python 3.11, 3.12 or 3.13 is needed, not ' + sys.version.split()[0] + '; try make PYTHON=python3.12')"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(MAKE) install
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(MAKE) install-dev
	touch $@

$(VENV)/.installed-cluster: $(VENV)/.installed-dev
	$(PIP) install --constraint constraints.txt --editable '.[cluster]'
	touch $@

clean:
	rm -rf $(VENV) runs docs/html rendered

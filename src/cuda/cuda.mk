# src/cuda/cuda.mk - the CUDA backend: an object of its own, which `--backend cuda` loads.
#
# Built where nvcc is; without it everything else is.  CUDA_HOME says where, CUDA_ARCHS for what.
# Each kernel is there as machine code and as PTX, uncompressed: tests/cusim reads the PTX.

CUDA_HOME  ?= /usr/local/cuda
CUDA_ARCHS ?= 80 90a 100a 120
NVCC       := $(wildcard $(CUDA_HOME)/bin/nvcc)
CUDA       := $(if $(SAN),,$(NVCC))
CUDA_CC     = $(if $(findstring ccache,$(shell command -v $(CC))),ccache) $(NVCC)

CUDA_CODE   = $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=[compute_$(a),sm_$(a)])
# Nothing fuses a multiply and an add unless the source says so: kernels that must agree do.
CUDA_FLAGS  = -std=c++17 -O3 -fmad=false -Isrc -compress-mode none -Xcompiler -fPIC $(CUDA_CODE)
CUDA_FLAGS += -Xptxas -warn-spills,-warn-lmem-usage -MMD -MP

CUDA_C    = $(patsubst %.c,$(B)/%.o,$(sort $(wildcard src/cuda/*.c)))
CUDA_CU   = $(patsubst %.cu,$(B)/%.cu.o,$(sort $(wildcard src/cuda/*.cu)))
CUDA_LIBS = -L$(CUDA_HOME)/lib64 -lcudart -lstdc++

PROGRAMS += $(if $(CUDA),$(B)/rankserve-cuda.so)

# What it uses of the program itself, the program exports.
$(B)/rankserve-cuda.so: $(CUDA_C) $(CUDA_CU)
	$(Q)$(CC) -shared $(LDFLAGS) -Wl,-z,now -o $@ $^ $(CUDA_LIBS)
$(B)/src/cuda/%.o: src/cuda/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -fPIC -isystem $(CUDA_HOME)/include -c -o $@ $<
$(B)/src/cuda/%.cu.o: src/cuda/%.cu
	@mkdir -p $(@D)
	$(Q)$(CUDA_CC) $(CUDA_FLAGS) -c -o $@ $<

# Tests: linked with the backend; run with a GPU, or with build/cusim in LD_LIBRARY_PATH.
CUDA_TESTS = $(patsubst tests/cuda/%.c,$(B)/cuda/%,$(sort $(wildcard tests/cuda/*_test.c)))
CUDA_TESTS += $(B)/cuda/roofline
cuda-tests: $(CUDA_TESTS)
$(CUDA_TESTS): $(B)/cuda/%: $(B)/tests/cuda/%.o $(B)/tests/cuda/peek.o $(CUDA_C) $(CUDA_CU) \
		$(COMMON) $(MODEL) $(KV) $(ENGINE)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(CUDA_LIBS) $(MODEL_LIBS) $(COMMON_LIBS)
$(B)/tests/cuda/%.o: CFLAGS += -Itests/unit -isystem $(CUDA_HOME)/include

# Registers, spills, shared memory, rules for the PTX, counters from emulation; needs no GPU.
CUDA_COUNTERS = $(B)/cuda/counters.json
$(CUDA_COUNTERS): $(B)/cuda/backend_test | cusim
	$(Q)CUSIM_STATS=$@.new CUSIM_CHECK=0 LD_LIBRARY_PATH=$(CUSIM) $< > /dev/null
	$(Q)mv $@.new $@
cuda-gates: $(CUDA_CU) $(CUDA_COUNTERS)
	$(Q)CUDA_HOME=$(CUDA_HOME) python3 tests/cuda/gates.py $(if $(WRITE),--write) $^
# The kernels' bounds on known GPUs, calculated from counts in emulation (minutes).
cuda-roofline: $(B)/cuda/roofline | cusim
	$(Q)python3 tests/cuda/roofline.py $(B) > $(B)/cuda/roofline.md
	$(Q)mv $(B)/cuda/roofline.md perf/results/cuda-roofline.md
# For machines with GPUs: the same tests on the real libraries, with times; a report to paste.
gpu-check: all cuda-tests
	@CUDA_HOME=$(CUDA_HOME) tests/cuda/gpu_check.sh $(B)
.PHONY: cuda-tests cuda-gates cuda-roofline gpu-check

# tests/cusim/cusim.mk - the CUDA libraries that run on the CPU (tests/cusim/README.md).
#
# make cusim         build/cusim/libcusim.so, and links to it under the real libraries' names
# make cusim-check   its own tests: every fault it knows is planted, and must be found

NVCC       ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA_HOME  ?= $(patsubst %/bin/nvcc,%,$(NVCC))

CUSIM       = $(B)/cusim
CUSIM_OBJS  = $(patsubst %.c,$(B)/%.o,$(sort $(wildcard tests/cusim/*.c)))
CUSIM_NAMES = libcudart.so.13 libcublas.so.13 libcublasLt.so.13 libnccl.so.2
CUSIM_LINKS = $(CUSIM_NAMES:%=$(CUSIM)/%) $(addprefix $(CUSIM)/,$(basename $(CUSIM_NAMES)))

CUSIM_CPU  := $(if $(findstring avx2,$(shell grep -m 1 flags /proc/cpuinfo)),-mavx2 -mfma -mf16c)
CUSIM_LTO   = $(if $(findstring clang,$(CC)),,-flto=auto)

$(CUSIM_OBJS): CFLAGS += -O3 $(CUSIM_CPU) -fPIC -fno-math-errno -fno-trapping-math \
                         -ftls-model=initial-exec $(CUSIM_LTO) -Wno-pass-failed -isystem $(CUDA_HOME)/include
$(CUSIM)/libcusim.so: $(CUSIM_OBJS) tests/cusim/cusim.map
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -O3 $(CUSIM_CPU) $(CUSIM_LTO) -shared -Wl,-soname,libcusim.so -Wl,--version-script=tests/cusim/cusim.map \
	    -o $@ $(CUSIM_OBJS) -lm
$(CUSIM_LINKS): $(CUSIM)/libcusim.so
	$(Q)ln -sf libcusim.so $@

ifneq ($(NVCC),)
cusim: $(CUSIM_LINKS)
else
cusim:
	@echo "no nvcc: cusim is not built"
endif
.PHONY: cusim

# Its tests: kernels as nvcc gives them to a GPU, linked with NVIDIA's names, run over cusim.
CHECK       = $(CUSIM)/check
CHECK_OBJS  = $(patsubst tests/cusim/%.c,$(CUSIM)/%.o,$(wildcard tests/cusim/check/*.c)) \
              $(CHECK)/faults.cu.o $(CHECK)/numbers.cu.o
CHECK_PTX   = $(foreach a,80 90a 100a,-gencode arch=compute_$(a),code=compute_$(a))
$(CHECK)/%.o: tests/cusim/check/%.c tests/cusim/check/check.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -isystem $(CUDA_HOME)/include -c -o $@ $<
$(CHECK)/%.cu.o: tests/cusim/check/%.cu
	@mkdir -p $(@D)
	$(Q)$(NVCC) -O2 -std=c++17 -compress-mode none $(CHECK_PTX) -c -o $@ $<
$(CHECK)/unknown.so: tests/cusim/check/unknown.cu
	@mkdir -p $(@D)
	$(Q)$(NVCC) -compress-mode none -gencode arch=compute_80,code=compute_80 -shared \
	    -Xcompiler -fPIC -cudart none -o $@ $<
$(CHECK)/compressed.so: tests/cusim/check/numbers.cu
	@mkdir -p $(@D)
	$(Q)$(NVCC) -compress-mode size -gencode arch=compute_80,code=compute_80 -shared \
	    -Xcompiler -fPIC -cudart none -o $@ $<
$(CHECK)/check: $(CHECK_OBJS) $(CUSIM_LINKS)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(CHECK_OBJS) -L$(CUSIM) -lcusim -Wl,-rpath,'$$ORIGIN/..' \
	    -lstdc++ -lm
ifneq ($(NVCC),)
cusim-tests: $(CHECK)/check $(CHECK)/unknown.so $(CHECK)/compressed.so
cusim-check: cusim-tests
	$(Q)$(CHECK)/check
else
cusim-tests:
cusim-check:
	@echo "no nvcc: cusim is not tested"
endif
.PHONY: cusim-check cusim-tests

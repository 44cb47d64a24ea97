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

$(CUSIM_OBJS): CFLAGS += -O3 -mavx2 -mfma -mf16c -fPIC -fno-math-errno -fno-trapping-math \
                         -isystem $(CUDA_HOME)/include
$(CUSIM)/libcusim.so: $(CUSIM_OBJS) tests/cusim/cusim.map
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -shared -Wl,-soname,libcusim.so -Wl,--version-script=tests/cusim/cusim.map \
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

# make              everything this machine can build, into build/
# make serve        from nothing to a running service on 127.0.0.1:8000 (Ctrl-C drains)
# make check        from nothing to tested; the last line counts
# make check-long   the full counts, sweeps and sanitizer builds
# make bench        our figures, as a table and JSON
# make tidy         the rules this repository holds itself to
# make cuda-gates   the kernels' registers, spills and PTX; make gpu-check where there are GPUs
# make deps         install missing packages (apt; sudo when not root)
#
# Knobs: V=1 shows commands | CC=clang | WERROR=1 | SAN=address,undefined | OPT=-O0
#        B=build/other | MPICC=... M=build/other (what MPICC makes; the rest stays in B)

CC      = gcc
MPICC   = mpicc
OPT     = -O2
B       = build$(if $(SAN),/san-$(subst $(comma),-,$(SAN)))
M       = $(B)
comma   = ,
# A line says what is made, V=1 how, -s nothing.
SILENT  = $(findstring s,$(firstword -$(MAKEFLAGS)))
Q       = $(if $(V),,@$(if $(SILENT),,printf '  %s\n' $@;))

CFLAGS  = -std=c11 -g $(OPT) -Isrc -MMD -MP -D_GNU_SOURCE -pthread -ffp-contract=off
CFLAGS += -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wpointer-arith
CFLAGS += -Wno-missing-field-initializers -fno-strict-aliasing -fstack-protector-strong
CFLAGS += $(if $(WERROR),-Werror)
CFLAGS += $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
LDFLAGS = -pthread $(if $(SAN),-fsanitize=$(SAN))

# Kernels: one object per instruction set, chosen at run time; nothing else gets these flags.
AVX2    = -mavx2 -mfma -mf16c
AVX512  = $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni

objs    = $(patsubst %.c,$(B)/%.o,$(sort $(shell find src/$(1) -name '*.c' ! -path '*/main_*')))
COMMON  = $(call objs,common)
MODEL   = $(call objs,model)
WIRE    = $(call objs,wire)
VIEW    = $(filter $(B)/src/kv/shared_view%,$(call objs,kv))
KV      = $(filter-out $(VIEW),$(call objs,kv))
SCHED   = $(call objs,sched)
ENGINE  = $(call objs,engine)
MPI     = $(patsubst $(B)/%,$(M)/%,$(call objs,mpi))
GATEWAY = $(call objs,gateway)
CTL     = $(call objs,ctl)

COMMON_LIBS  = -lyaml -lm
MODEL_LIBS   = -lpcre2-8 -ljansson
GATEWAY_LIBS = -lmicrohttpd -ljansson
VIEW_LIBS    = -lhiredis -lssl -lcrypto
CTL_LIBS     = -ljansson -lcurl -lcrypto

PROGRAMS = $(M)/rankserve $(B)/rankserve-gateway $(B)/rankservectl
.PHONY: all
all:
include src/cuda/cuda.mk
all: $(PROGRAMS)

$(M)/rankserve: $(COMMON) $(WIRE) $(MODEL) $(KV) $(VIEW) $(SCHED) $(ENGINE) $(MPI)
	$(Q)$(MPICC) $(LDFLAGS) -rdynamic -o $@ $^ $(VIEW_LIBS) $(MODEL_LIBS) $(COMMON_LIBS)
$(B)/rankserve-gateway: $(COMMON) $(WIRE) $(MODEL) $(KV) $(VIEW) $(GATEWAY)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(GATEWAY_LIBS) $(VIEW_LIBS) $(MODEL_LIBS) $(COMMON_LIBS)
$(B)/rankservectl: $(COMMON) $(WIRE) $(MODEL) $(KV) $(SCHED) $(CTL)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(CTL_LIBS) $(MODEL_LIBS) $(COMMON_LIBS)

$(M)/src/mpi/%.o: src/mpi/%.c
	@mkdir -p $(@D)
	$(Q)$(MPICC) $(CFLAGS) -c -o $@ $<
# The CRDs are inside rankservectl.
$(B)/src/ctl/schema_text.o: $(wildcard k8s-mpi-operator/base/crds/*.yaml k8s-mpi-operator/schemas/*)
$(B)/%_avx2.o: %_avx2.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(AVX2) -c -o $@ $<
$(B)/%_avx512.o: %_avx512.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(AVX512) -c -o $@ $<
$(B)/%_avx512_bf16.o: %_avx512_bf16.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(AVX512) -mavx512bf16 -c -o $@ $<
$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -c -o $@ $<

# Unit tests: tests/unit/FOLDER_name_test.c links what FOLDER may include, and nothing more.
UNIT_common  = $(COMMON)
UNIT_wire    = $(COMMON) $(WIRE)
UNIT_model   = $(COMMON) $(MODEL)
UNIT_kv      = $(COMMON) $(KV) $(VIEW)
UNIT_sched   = $(COMMON) $(KV) $(SCHED)
UNIT_engine  = $(COMMON) $(MODEL) $(KV) $(ENGINE)
# What of src/mpi needs no MPI.
UNIT_mpi     = $(COMMON) $(WIRE) $(KV) $(addprefix $(B)/src/mpi/,blocks.o link_meter.o lane_book.o outbox.o)
UNIT_gateway = $(COMMON) $(WIRE) $(MODEL) $(KV) $(VIEW) $(filter-out %/gateway/main.o,$(GATEWAY))
UNIT_ctl     = $(COMMON) $(WIRE) $(MODEL) $(KV) $(SCHED) $(filter-out %/ctl/main.o,$(CTL))
UNIT_TESTS   = $(patsubst tests/unit/%.c,$(B)/unit/%,$(sort $(wildcard tests/unit/*_test.c)))
unit_folder  = $(firstword $(subst _, ,$(1)))

.SECONDEXPANSION:
$(B)/unit/%: $(B)/tests/unit/%.o $$(UNIT_$$(call unit_folder,$$*))
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(GATEWAY_LIBS) $(VIEW_LIBS) $(CTL_LIBS) $(MODEL_LIBS) $(COMMON_LIBS)

unit: $(UNIT_TESTS)

# Measuring programs: perf/NAME.c links what a backend needs; peak_* are loops for each CPU.
PERF = $(patsubst perf/%.c,$(B)/%,$(filter-out %_avx2.c %_avx512.c,$(wildcard perf/*.c)))
$(PERF): $(B)/%: $(B)/perf/%.o $(B)/perf/peak_avx2.o $(B)/perf/peak_avx512.o $(UNIT_engine)
	$(CC) $(LDFLAGS) -o $@ $^ $(MODEL_LIBS) $(COMMON_LIBS)
$(B)/sched_bench: $(SCHED)
$(B)/perf/%.o: CFLAGS += -Iperf

include tests/cusim/cusim.mk

deps:
	@tests/deps.sh run
serve: deps
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@$(B)/rankservectl up
check:
	@tests/deps.sh test
	@$(MAKE) --no-print-directory -j$$(nproc) all unit cusim-tests $(if $(CUDA),cusim cuda-tests)
	@tests/run.sh
check-long:
	@tests/deps.sh long
	@$(MAKE) --no-print-directory -j$$(nproc) all unit cusim-tests
	@tests/run.sh --long
bench: deps
	@$(MAKE) --no-print-directory all perf
	@python3 perf/bench.py $(BENCH)
perf: $(PERF)
tidy:
	@tests/tidy.sh
clean:
	rm -rf build

.PHONY: all unit deps serve check check-long tidy clean bench perf
.SECONDARY:
-include $(shell find $(sort $(B) $(M)) -name '*.d' 2>/dev/null)

#!/bin/sh
# tests/tidy.sh - the rules that this repository holds itself to; says which line breaks which.
# What can be read off the text is in tidy.awk; here is what needs the tools.
# shellcheck disable=SC2086,SC2044  # paths here hold no spaces
cd "$(dirname "$0")/.." || exit 1
failed=0

files=$(find src tests -name '*.[ch]' -o -name '*.cu' -o -name '*.sh' -o -name '*.awk' \
        -o -name '*.py' | sort)
LC_ALL=C.UTF-8 awk -f tests/tidy.awk $files || failed=1

# The scheduler is a pure function: no clock, heap, file, thread, log or MPI in its objects.
impure='^(clock|time$|gettimeofday|nanosleep|u?sleep|malloc|calloc|realloc|free$|mem_|buf_'
impure="$impure|f?open|f?read\$|f?write\$|f?printf\$|puts\$|socket|epoll|poll\$|pthread_|MPI_"
impure="$impure|log_line|rand|getenv)"
for object in build/src/sched/*.o; do
    [ -e "$object" ] || continue
    used=$(nm -u "$object" | awk '{ print $2 }' | grep -E "$impure")
    [ -z "$used" ] || { echo "$object: the scheduler may not use" $used; failed=1; }
done

# Built objects hold no CUDA and no MPI outside their folders.
for object in $(find build/src -name '*.o' ! -path '*/mpi/*' ! -path '*/cuda/*' 2> /dev/null); do
    used=$(nm -u "$object" | awk '$2 ~ /^(MPI_|cuda|cublas|nccl)/ { print $2 }')
    [ -z "$used" ] || { echo "$object: may not use" $used; failed=1; }
done

[ "$failed" = 0 ] && echo "tidy"
exit "$failed"

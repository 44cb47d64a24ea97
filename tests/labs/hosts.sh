#!/bin/bash
# tests/labs/hosts.sh - several hosts on this one: network namespaces on a bridge of their own, each
# with its own host name, /etc/hosts and /dev/shm.  Needs root and iproute2.
#   hosts.sh up DIR N             makes h0 .. h(N-1); DIR holds their names
#   hosts.sh exec DIR HOST CMD..  runs CMD there; DIR/etc/NAME replaces /etc/NAME where it exists
#   hosts.sh kill DIR HOST        ends everything there
#   hosts.sh down DIR             ends everything, and removes them
set -eu
command=$1 dir=$2
shift 2
net=${HOSTS_LAB_NET:-10.77.0}

up() {
    local i n=$1 name
    name=rk$$                             # several labs at a time
    mkdir -p "$dir/etc"
    echo "$name" > "$dir/name"
    ip netns add "$name-sw"
    ip -n "$name-sw" link add br0 type bridge
    ip -n "$name-sw" link set br0 up
    echo 127.0.0.1 localhost > "$dir/etc/hosts"
    for ((i = 0; i < n; i++)); do
        echo "$net.$((10 + i)) h$i" >> "$dir/etc/hosts"
        ip netns add "$name-h$i"
        ip link add v0 netns "$name-h$i" type veth peer name "p$i" netns "$name-sw"
        ip -n "$name-sw" link set "p$i" master br0
        ip -n "$name-sw" link set "p$i" up
        ip -n "$name-h$i" link set lo up
        ip -n "$name-h$i" addr add "$net.$((10 + i))/24" dev v0
        ip -n "$name-h$i" link set v0 up
    done
}

# nsenter, not `ip netns exec`, which mounts /sys anew.
enter() {
    local host=$1 name
    name=$(cat "$dir/name")
    shift
    # shellcheck disable=SC2016
    exec nsenter --net="/run/netns/$name-$host" unshare --uts --mount --propagation private \
        sh -c 'hostname "$1"; mount -t tmpfs -o mode=1777 tmpfs /dev/shm
               for file in $(cd "$2/etc" && find . -type f); do
                   mount --bind "$2/etc/$file" "/etc/$file"
               done
               shift 2; exec "$@"' sh "$host" "$dir" "$@"
}

end() {
    local name pids
    name=$(cat "$dir/name")
    pids=$(ip netns pids "$name-$1")
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -9 $pids 2> /dev/null || true
}

case $command in
    up) up "$1" ;;
    exec) enter "$@" ;;
    kill) end "$1" ;;
    down)
        for space in $(ip netns list | awk '{ print $1 }' | grep "^$(cat "$dir/name")-"); do
            end "${space#*-}"
            ip netns del "$space"
        done
        ;;
    *) echo "hosts.sh up|exec|kill|down DIR ..." >&2; exit 1 ;;
esac

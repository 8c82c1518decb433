# shellcheck shell=bash
# Sourced by every script of this folder: cache layout, messages, locks, the container engine, cluster names.

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${DYNAMO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dynamo-kubernetes}
KUBE=$CACHE/kube
BIN=$KUBE/bin # symlink to the current set of tools

BASE_IMAGE=dynamo-base:debian12

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

# need COMMAND PACKAGE: the command must exist.
need() { command -v "$1" >/dev/null || die "needs the command '$1'; install it (Debian: apt-get install $2)"; }

# step "what" COMMAND...: runs it, with its output shown only when it fails, and says how long it took.
step() {
    local what=$1 began=$SECONDS log status
    shift
    log=$(mktemp)
    # Not `|| status=$?`: that would switch errexit off inside.
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if ((status)); then
        tail -n 40 "$log" >&2
        rm -f "$log"
        die "did not succeed: '$what' (status $status after $((SECONDS - began)) s); the last of its output is above"
    fi
    rm -f "$log"
    say "$what ($((SECONDS - began)) s)"
}

# In the foreground, so that Ctrl-C reaches what runs under it.
timeout() { command timeout --foreground "$@"; }

# lock NAME SECONDS: one holder per name and user; released when this process ends.
lock() {
    need flock util-linux
    mkdir -p "$KUBE"
    exec {LOCK_FD}>"$KUBE/$1.lock"
    flock -n "$LOCK_FD" && return
    say "another process holds $KUBE/$1.lock, waiting for it (at most $2 s)"
    flock -w "$2" "$LOCK_FD" || die "waited $2 s for $KUBE/$1.lock; see who holds it with 'fuser -v $KUBE/$1.lock'"
}

digest() { sha256sum | cut -c1-16; }

# The key of the tools: their exact dependencies, how they are built, and the architecture.
tools_key() { cat "$HERE"/tools/*/go.mod "$HERE"/tools/*/go.sum "$HERE/build-tools" <(uname -sm) | digest; }

# ---- Packages and privileges

# packages COMMAND=PACKAGE...: installs the packages of those commands that are missing, where that can be done.
packages() {
    local pair missing=()
    for pair in "$@"; do command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}"); done
    ((${#missing[@]})) || return 0
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
        die "needs the Debian packages ${missing[*]}; install them, or run this as root on Debian, or start a Docker engine that can pull images"
    step "installed ${missing[*]}" apt_install "${missing[@]}"
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    timeout 600 apt-get install -y --no-install-recommends "$@" && return
    timeout 300 apt-get update
    timeout 600 apt-get install -y --no-install-recommends "$@"
}

# Containers with every capability cannot be started by a process that lacks one: CAP_SYS_RESOURCE (24) is the one that
# sandboxes take away.
lacks_sys_resource() {
    local bounding
    bounding=$(awk '/^CapBnd/ {print $2}' /proc/self/status)
    ((((0x$bounding >> 24) & 1) == 0))
}

# ---- The container engine

ENGINE_RUN=/run/dynamo-kind # socket, pid, scratch of the private engine
ENGINE_SOCKET=$ENGINE_RUN/docker.sock

# The pid of the private engine, if it lives.
engine_pid() {
    local pid
    pid=$(cat "$ENGINE_RUN/dockerd.pid" 2>/dev/null) || return 1
    [[ $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == *dockerd*"$ENGINE_SOCKET"* ]] && echo "$pid"
}

engine_answers() { [[ -n $(timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null) ]]; }

# engine_find: points `docker` (and with it kind) to the private engine if there is one, else to the user's. False: none answers.
engine_find() {
    local folder
    # The distribution's client before others: the engine is of the same version.
    for folder in /usr/bin "$(dirname "$(command -v docker || echo /usr/bin/docker)")"; do
        [[ -x $folder/docker ]] && PATH=$folder:$PATH && break
    done
    command -v docker >/dev/null || return 1
    if engine_pid >/dev/null; then
        export DOCKER_HOST=unix://$ENGINE_SOCKET
        unset DOCKER_CONTEXT
    fi
    engine_answers
}

engine_need() { engine_find || die "no container engine answers; start one, or run $HERE/engine start as root"; }

# ---- Clusters

NAME_LABEL=io.x-k8s.kind.cluster

kubeconfig() { echo "$KUBE/$1.kubeconfig"; }
k() { "$BIN/kubectl" --kubeconfig "$KUBECONFIG" --request-timeout=10s "$@"; }

# cluster NAME: the scripts that follow work on this one.
cluster() {
    [[ $1 =~ ^[a-z0-9][a-z0-9-]*$ ]] || die "'$1' is no cluster name: lower case letters, digits and dashes"
    KUBECONFIG=$(kubeconfig "$1")
    export KUBECONFIG
}
cluster_need() {
    engine_need
    cluster "$1"
    [[ -s $KUBECONFIG && -n $(nodes "$1") ]] || die "no cluster '$1' here; make it with $HERE/up $1"
}

nodes() { docker ps -a --filter "label=$NAME_LABEL=$1" --format '{{.Names}}' | sort; }

# One line for each k8s node: name, address, range of its pods, zone (or -).
topology() {
    k get nodes -o go-template='{{range .items}}{{.metadata.name}}{{range .status.addresses}}{{if eq .type "InternalIP"}} {{.address}}{{end}}{{end}} {{or .spec.podCIDR "-"}} {{or (index .metadata.labels "topology.kubernetes.io/zone") "-"}}{{"\n"}}{{end}}'
}

# eventually SECONDS "what" COMMAND...: until it succeeds.
eventually() {
    local limit=$1 what=$2 began=$SECONDS
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS - began < limit)) || die "waited $limit s until $what; tried: $*"
        sleep 0.5
    done
}

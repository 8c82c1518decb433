# shellcheck shell=bash
# Sourced by every script of this folder: places, messages, and processes that never outlive their script.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${DYNAMO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dynamo-kubernetes}
# Outside the checkout: compiling RocksDB takes minutes, and a fresh clone should not pay for them again.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
# shellcheck disable=SC2034 # for the scripts
PROGRAMS=$CARGO_TARGET_DIR/release
# shellcheck disable=SC2034 # for the scripts
KIND=$ROOT/e2e/kind
cd "$ROOT"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

# minutes SECONDS: as 1:05.
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# How the script was called: its leading comment.
usage() { sed -n '2,/^[^#]/{/^# shellcheck/!s/^# \{0,1\}//p}' "$0"; }

# The workspace's version.
version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml; }

# Takes over the shared target directory for this checkout. Cargo judges by the age of files, not by where they are: what another
# checkout has built since would pass for built from here. So its own crates are built anew when the checkout is another one.
claim_target() {
    local owner=$CARGO_TARGET_DIR/checkout
    [[ -d $CARGO_TARGET_DIR/release && $(cat "$owner" 2>/dev/null) != "$ROOT" ]] && cargo clean --quiet --release --workspace
    mkdir -p "$CARGO_TARGET_DIR"
    echo "$ROOT" >"$owner"
}

# A run of its own for every command that takes long, so that a signal to this script reaches all of it at once; bash alone would
# wait for the command to end first. stdin is closed: such a group must not read from the terminal.
GROUP=
run_group() {
    local status=0
    set -m
    "$@" </dev/null &
    GROUP=$!
    set +m
    wait "$GROUP" || status=$?
    GROUP=
    return "$status"
}

# end_group [SECONDS]: ends what run_group has running, if anything; what has not gone after so long, by force.
end_group() {
    local group=$GROUP limit=${1:-5} began=$SECONDS
    [[ -n $group ]] || return 0
    GROUP=
    kill -TERM -- "-$group" 2>/dev/null || return 0
    while kill -0 -- "-$group" 2>/dev/null; do
        ((SECONDS - began < limit)) || {
            kill -KILL -- "-$group" 2>/dev/null || true
            return 0
        }
        sleep 0.1
    done
}

# Scripts with more to clean up replace the first of these.
trap 'end_group 5' EXIT
# A signal may come twice, to the group and from the parent: the second must not end the clean-up of the first.
trap 'trap "" INT TERM HUP; exit 130' INT
trap 'trap "" INT TERM HUP; exit 143' TERM HUP

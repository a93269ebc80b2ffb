# What the foreign clients need; sourced by run and kill_twenty. Nothing is left in the tree but node/node_modules.

INTEROP="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$INTEROP/../../.ci/lib.sh"
BUILT="${CARGO_TARGET_DIR:-$ROOT/target}/interop"
export PYTHONDONTWRITEBYTECODE=1

# is_current NAME FILE…: whether the part NAME was made from exactly these files.
is_current() {
    local stamp="$BUILT/$1.stamp"
    shift
    [ -f "$stamp" ] && [ "$(cat "$@" | sha256sum)" = "$(cat "$stamp")" ]
}

# made NAME FILE…: remembers it.
made() {
    local stamp="$BUILT/$1.stamp"
    shift
    cat "$@" | sha256sum >"$stamp"
}

# The virtual environment and the stubs of the contract.
setup_python() {
    mkdir -p "$BUILT"
    if ! have python3 || ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt_packages python3 python3-venv || return 1
    fi
    if ! is_current venv "$INTEROP/python/requirements.txt"; then
        rm -rf "$BUILT/venv"
        python3 -m venv "$BUILT/venv" || return 1
        "$BUILT/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
            --requirement "$INTEROP/python/requirements.txt" || return 1
        made venv "$INTEROP/python/requirements.txt"
    fi
    local contract=("$ROOT"/proto/stafett/v1/*.proto)
    if ! is_current stubs "$INTEROP/python/requirements.txt" "${contract[@]}"; then
        rm -rf "$BUILT/stubs"
        mkdir -p "$BUILT/stubs"
        "$BUILT/venv/bin/python" -m grpc_tools.protoc --proto_path="$ROOT/proto" \
            --python_out="$BUILT/stubs" --grpc_python_out="$BUILT/stubs" "${contract[@]}" || return 1
        made stubs "$INTEROP/python/requirements.txt" "${contract[@]}"
    fi
    export PYTHONPATH="$BUILT/stubs:$INTEROP"
}

setup_mosquitto() {
    setup_python || return 1
    if ! have mosquitto_pub || ! have mosquitto_sub; then
        apt_packages mosquitto-clients || return 1
    fi
    have openssl || apt_packages openssl || return 1
}

setup_bridge() {
    setup_mosquitto || return 1
    have mosquitto || apt_packages mosquitto || return 1
}

# Root, and the permission to mount in a namespace of one's own.
setup_mounts() {
    setup_python || return 1
    unshare --mount --propagation private sh -c 'mount -t tmpfs -o size=1m none /mnt' 2>/dev/null || {
        echo "nothing can be mounted: root is needed" >&2
        return 1
    }
}

setup_node() {
    mkdir -p "$BUILT"
    have node || apt_packages nodejs || return 1
    have npm || apt_packages npm || return 1
    have openssl || apt_packages openssl || return 1
    if ! is_current node "$INTEROP/node/package-lock.json" || [ ! -d "$INTEROP/node/node_modules" ]; then
        (cd "$INTEROP/node" && npm ci --silent --ignore-scripts --no-audit --no-fund) || return 1
        made node "$INTEROP/node/package-lock.json"
    fi
}

# setup_examples LANGUAGE…: what their examples are built with, by the names of their sections in examples/README.md, and the
# lamp's; builds them.
setup_examples() {
    setup_python || return 1
    have git || apt_packages git || return 1
    local language
    for language in "$@"; do
        "setup_examples_$language" || {
            echo "what the examples in $language are built with cannot be had; --without $language leaves them out" >&2
            return 1
        }
    done
    "$BUILT/venv/bin/python" -m harness.examples "$@" Device
}

setup_examples_Python() { have python3; }

setup_examples_TypeScript() {
    have node || apt_packages nodejs || return 1
    have npm || apt_packages npm || return 1
}

# Go, gRPC and the plugins of protoc as Debian has them: there is no module proxy in CI.
setup_examples_Go() {
    apt_packages golang-go golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev golang-google-protobuf-dev \
        protobuf-compiler protoc-gen-go protoc-gen-go-grpc
}

setup_examples_Rust() { have cargo; }

# A browser, and what tells it which authority to trust.
setup_browser() {
    setup_node || return 1
    have chromium || apt_packages chromium || return 1
    have certutil || apt_packages libnss3-tools || return 1
}

# The program to test: BINARY where it is given, else the newest of the two builds; built when there is none.
find_binary() {
    if [ -z "${BINARY:-}" ]; then
        local target="${CARGO_TARGET_DIR:-$ROOT/target}"
        local built
        built="$(ls -t "$target/release/stafett" "$target/debug/stafett" 2>/dev/null | head -n 1 || true)"
        if [ -z "$built" ]; then
            (cd "$ROOT" && cargo build --locked --bin stafett)
            built="$target/debug/stafett"
        fi
        BINARY="$built"
    fi
    [ -x "$BINARY" ] || {
        echo "no program at $BINARY" >&2
        return 2
    }
    STAFETT_BINARY="$(realpath "$BINARY")"
    export STAFETT_BINARY
}

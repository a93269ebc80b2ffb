# Shared by the steps of .ci/run; sourced, not run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
SECTION_BEGAN=0
SECTION_NAME=""

# say TEXT: a line that stands out from a step's own output.
say() { printf '\n=== %s\n' "$*"; }

# section NAME COMMAND [ARG…]: runs a step, says how long it took; stops the run if it fails.
section() {
    SECTION_NAME="$1"
    SECTION_BEGAN=$SECONDS
    shift
    say "$SECTION_NAME"
    "$@"
    printf '    %s: done in %s s\n' "$SECTION_NAME" "$((SECONDS - SECTION_BEGAN))"
    SECTION_NAME=""
}

# Says where a failed run stopped.
report_end() {
    local code=$?
    if [ "$code" -ne 0 ]; then
        say "FAILED${SECTION_NAME:+ in: $SECTION_NAME} (exit $code, after $SECONDS s)"
    fi
}

# have COMMAND: whether it can be run.
have() { command -v "$1" >/dev/null 2>&1; }

# apt_packages NAME…: installs those that are missing; needs root only then.
apt_packages() {
    local missing=()
    local package
    for package in "$@"; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    if [ "${#missing[@]}" -eq 0 ]; then
        return 0
    fi
    echo "installing: ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

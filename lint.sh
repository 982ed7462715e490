#!/bin/sh
#
# Every check that runs no code of ours. All of them run, whatever the first ones find.

set -u
cd "$(dirname "$0")" || exit

bin=.venv/bin
status=0

check() {
    "$@" || {
        status=1
        echo "lint: failed: $*" >&2
    }
}

# Shell programs, by their first line: hooks have no suffix.
shell_files() {
    find . \( -name .venv -o -name .git -o -path ./build -o -name '.*_cache' \) -prune -o -type f \
        -exec awk 'FNR == 1 && /^#!.*[\/ ](sh|bash|dash)( |$)/ { print FILENAME } { nextfile }' {} +
}

check "$bin/ruff" check --quiet --output-format concise
check "$bin/ruff" format --check --quiet --output-format concise
check "$bin/mypy" --no-error-summary
for file in tests/conftest.py tests/*/conftest.py; do # one by one: all have the same name
    MYPYPATH=tests:tests/bases:tests/cli:tests/boot check "$bin/mypy" --no-error-summary "$file"
done
check "$bin/lint-imports" --no-logo
shell_files | sort | xargs -d '\n' shellcheck || status=1

exit $status

#!/usr/bin/env bash
# Runs every test with the race detector. A test that is skipped without being expected to fails the run: its line
# "--- SKIP" must match one of the patterns below, each with its reason.
set -euo pipefail
cd "$(dirname "$0")/.."

expected_skips='Test(Nerdctl|Podman|Docker) ' # too long to get for every run: make test-runtimes does

log=$(mktemp)
trap 'rm -f "$log"' EXIT
set +e
go test -race -v -count 1 -timeout 30m ./... 2>&1 | tee "$log" | grep -Ev '^\s*(=== (RUN|PAUSE|CONT|NAME)|--- PASS)|^(PASS|[?])'
status=${PIPESTATUS[0]}
set -e
skips=$(grep -E '^\s*--- SKIP' "$log" | grep -Ev "$expected_skips" || true)
passed=$(grep -cE '^\s*--- PASS' "$log" || true)
failed=$(grep -cE '^\s*--- FAIL' "$log" || true)
if [ -n "$skips" ]; then
	printf 'skipped, and not expected to be:\n%s\n' "$skips"
	status=1
fi
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$(grep -cE '^\s*--- SKIP' "$log" || true)"
exit "$status"

#!/usr/bin/env bash
# Runs every test with the race detector: a line for each package, the output of tests that failed, and a sum. A test that
# is skipped without being expected to fails the run: its name must match the pattern below, which has its reason.
set -euo pipefail
cd "$(dirname "$0")/.."

# Too long for every run: make test-runtimes and make test-policy do.
expected_skips=' Test(Nerdctl|Podman5?|Docker(WithDriver)?|Flanneld\w*|OraclesAgree|Cyclonus) '
# Kernels without modules have neither netem, VLANs nor bonds; make test-kernels does, and the part of it below.
expected_skips+='| Test(EtcdFarAway|NetworkChangesWhilePacketsOvertake|UnderlayLosesPackets|UnderlayOfVLANAndBond|\w*IPIP|FOU|TunnelsInTheWay|WireGuardOverAPoorUnderlay) '

log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
status=0
# The longest first, and two packages beside it: it waits more than it works.
go tool -modfile=tools.mod gotestsum --format pkgname --format-hide-empty-pkg --jsonfile-timing-events "$log/events" -- \
	-race -count 1 -timeout 30m -p "$(($(nproc) + 1))" ./integration ./... 2>&1 | tee "$log/output" || status=$?
count() { grep -c "$@" || true; }
sed -n 's/^=== FAIL: /failed: /p' "$log/output" # again: before this may be pages of why
if sed -n 's/^=== SKIP: /skipped, and not expected to be: /p' "$log/output" | grep -Ev "$expected_skips"; then status=1; fi
sed -n 's/.*"Output":"\(policies: .*\)\\n".*/\1/p' "$log/events"
printf '%d passed, %d failed, %d skipped\n' "$(count '"Action":"pass".*"Test":' "$log/events")" \
	"$(count '^=== FAIL: ' "$log/output")" "$(count '^=== SKIP: ' "$log/output")"
SUBSET=1 integration/kernels/test.sh || status=1
exit "$status"

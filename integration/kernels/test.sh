#!/usr/bin/env bash
# Runs the tests that touch the kernel on the kernels that people have: a line for each package, the output of tests that
# failed, a sum. Environment: KERNELS, versions by their beginning, of which apt's newest is taken; PKGS; RUN and
# SKIP, patterns for names of tests.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/integration/kernels
# Debian 12's and 13's. The first is from before 6.2, as Ubuntu 22.04's and RHEL 9's are.
read -ra kernels <<<"${KERNELS:-6.1 6.12}"
read -ra packages <<<"${PKGS:-./backend/...}"
expected_skips='^$'

integration/packages.sh qemu-system-x86_64=qemu-system-x86 cpio=cpio depmod=kmod xz=xz-utils
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
export CGO_ENABLED=0
go build -o "$bin/test2json" cmd/test2json
go test -c -o "$bin/" "${packages[@]}" >/dev/null # that some have no tests
go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' "${packages[@]}" >"$bin/list"

# In the guest: one CPU's worth of tests at a time, but for their waiting.
cat >"$bin/all" <<GUEST
while read -r package dir; do
	(cd "\$dir" && $bin/test2json -t -p "\$package" $bin/\$(basename "\$dir").test -test.v=test2json \\
		-test.parallel 2 -test.timeout 30m -test.run '${RUN:-.}' -test.skip '${SKIP:-^\$}') || failed=1
done <$bin/list
exit \${failed:-0}
GUEST

newest() {
	apt-cache pkgnames "linux-image-$1." | grep -E '^linux-image-[0-9.-]+(\+deb[0-9]+)?-amd64-unsigned$' | sort -V | tail -n 1
}

status=0
for kernel in "${kernels[@]}"; do
	package=$(newest "$kernel")
	[ -n "$package" ] || { echo "apt knows no linux-image-$kernel.*-amd64-unsigned: name another in KERNELS" >&2; exit 2; }
	version=${package#linux-image-} version=${version%-unsigned}
	echo "Linux $version"
	go tool -modfile=tools.mod gotestsum --format pkgname --format-hide-empty-pkg --raw-command -- \
		"$here/boot.sh" "$version" bash "$bin/all" 2>&1 | tee "$bin/output" || status=1
	if sed -n 's/^=== SKIP: /skipped, and not expected to be: /p' "$bin/output" | grep -Ev "$expected_skips"; then status=1; fi
done
exit "$status"

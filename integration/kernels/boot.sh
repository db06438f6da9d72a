#!/usr/bin/env bash
# boot.sh VERSION COMMAND…: runs a command as root on Debian's kernel of that version, in QEMU, and exits as the command
# does; with 125 where the kernel ends before it, and its last messages, and with 2 where the kernel cannot be had. The
# version may be a beginning, 6.1: of what is in bin/kernels the newest is taken, else the newest that Debian has. The
# guest sees this machine's files, and what it writes is gone afterwards; it has no network. Its output is the command's alone.
#
# One CPU, because QEMU 7.2 without KVM and with two now and then breaks a kernel that patches its own code.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
kernels=$(readlink -m "$here/../../bin/kernels")
wanted=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# apt with the machine's own sources, and with Debian 11's beside them: it has 5.10, which Debian 12 has no more.
also() {
	local apt=$kernels/apt
	mkdir -p "$apt/lists/partial" "$apt/sources"
	cp /etc/apt/sources.list /etc/apt/sources.list.d/* "$apt/sources/" 2>/dev/null || true
	echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bullseye-security main' \
		>"$apt/sources/bullseye.list"
	"$1" -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$apt/sources" -o Dir::State::Lists="$apt/lists" \
		-o Dir::Cache="$apt" -o APT::Sandbox::User=root "${@:2}"
}
own() { "$1" -o APT::Sandbox::User=root "${@:2}"; }

# The newest of some names that is a kernel of the version wanted.
newest() {
	sed -nE 's/^linux-image-([0-9.-]+(\+deb[0-9]+)?-amd64)(-unsigned)?$/\1/p' | grep -E "^${wanted//./\\.}([.-]|\$)" | sort -V | tail -n 1
}
find_there() { [ ! -d "$kernels" ] || ls "$kernels" | sed 's/^/linux-image-/' | newest; }

# Downloads the kernel's package into $work and sets version.
download() {
	local apt
	for apt in own also; do
		for update in false true; do
			if $update; then $apt apt-get update -qq >&2 || continue; fi
			version=$($apt apt-cache pkgnames "linux-image-$wanted" | grep -- '-unsigned$' | newest || true)
			[ -n "$version" ] || continue
			if (cd "$work" && $apt apt-get download -qq "linux-image-$version-unsigned" >&2); then return; fi
		done
	done
	return 1
}

# The package's files: below usr/, because /lib is a link there on this machine.
unpack() {
	tree=$kernels/$version
	local new=$tree.new.$$
	rm -rf "$new" && mkdir -p "$new"
	dpkg-deb -x "$work"/linux-image-*.deb "$new"
	[ -e "$new/usr/lib/modules" ] || { mkdir -p "$new/usr" && mv "$new/lib" "$new/usr/"; }
	rm -rf "$new/lib"
	find "$new/usr/lib/modules" -name '*.ko.xz' -exec xz -d {} + # what the guest would take long for
	depmod -b "$new/usr" "$version"
	mv -T "$new" "$tree" 2>/dev/null || rm -rf "$new" # another did the same meanwhile
}

archive() { (cd "$1" && find . | cpio -o -H newc --quiet); }

# What the guest begins with: busybox, the modules by which it finds this machine's files, and the command.
begin() {
	local root=$work/root module path
	mkdir -p "$root/modules"
	cp "$(command -v busybox)" "$here/init" "$root/"
	for module in virtio_pci virtio_console 9pnet_virtio 9p overlay; do
		modprobe --show-depends -d "$tree/usr" -S "$version" "$module"
	done | awk '/^insmod/ && !seen[$2]++ {print $2}' | while read -r path; do
		module=$(basename "${path%.xz}")
		case $path in *.xz) xz -dc "$path" ;; *) cat "$path" ;; esac >"$root/modules/$module"
		echo "$module" >>"$root/modules/order"
	done
	{
		export -p | grep -Ev ' (PWD|OLDPWD|SHLVL|TMPDIR|XDG_RUNTIME_DIR)='
		printf 'cd %q\n(%s)\n' "$PWD" "$(printf '%q ' "$@")"
		echo 'echo $? >/dev/vport0p2; sync; echo b >/proc/sysrq-trigger'
	} >"$root/command"
	archive "$root" | gzip -1 >"$work/initrd"
}

version=$(find_there || true)
if [ -n "$version" ]; then
	tree=$kernels/$version
else
	download 2>"$work/apt" || {
		echo "no kernel $wanted: apt cannot download a linux-image-$wanted*-amd64-unsigned: $(grep -m 1 '^E:' "$work/apt" || echo 'it knows none')" >&2
		exit 2
	}
	unpack
fi
begin "$@"
accelerator='-accel tcg -cpu max'
# Where it is not the processor that virtualizes, /dev/kvm runs no kernel that does not know of that.
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then accelerator='-accel kvm -cpu host'; fi
share() { echo "-virtfs local,path=$1,mount_tag=$2,security_model=none,multidevs=remap,readonly=on"; }
# norandmaps: QEMU keeps what it has translated of a program by its address, so that commands start in half the time.
# shellcheck disable=SC2046,SC2086
qemu-system-x86_64 $accelerator -m "${MEMORY:-3G}" -nodefaults -display none -no-reboot -serial "file:$work/messages" \
	-device virtio-serial -chardev stdio,id=out,signal=off -device virtconsole,chardev=out \
	-chardev "file,id=code,path=$work/code" -device virtserialport,chardev=code,nr=2 \
	$(share / machine) $(share "$tree/usr" kernel) \
	-kernel "$tree/boot/vmlinuz-$version" -initrd "$work/initrd" \
	-append "console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on no_timer_check norandmaps" </dev/null || true
if ! [ -s "$work/code" ]; then
	echo "Linux $version ended before the command:" >&2
	tail -n 30 "$work/messages" >&2
	exit 125
fi
exit "$(<"$work/code")"

#!/usr/bin/env bash
# boot.sh VERSION COMMAND…: runs a command as root on Debian's kernel of that version, in QEMU, and exits as the command
# does; with 125 where the kernel ends before it, and its last messages. The guest sees this machine's files, and what it
# writes is gone afterwards; it has no network. Its output is the command's alone.
#
# One CPU, because QEMU 7.2 without KVM and with two now and then breaks a kernel that patches its own code.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
version=$1
shift
tree=$(readlink -m "$here/../../bin/kernels/$version")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

download() { (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "linux-image-$version-unsigned" >&2); }

# The package's files: below usr/, because /lib is a link there on this machine.
unpack() {
	download || { apt-get update -qq && download; }
	rm -rf "$tree.new" && mkdir -p "$tree.new"
	dpkg-deb -x "$work"/linux-image-*.deb "$tree.new"
	[ -e "$tree.new/usr/lib/modules" ] || mv "$tree.new/lib" "$tree.new/usr/"
	rm -rf "$tree.new/lib"
	depmod -b "$tree.new/usr" "$version"
	mv -T "$tree.new" "$tree"
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

[ -d "$tree" ] || unpack
begin "$@"
accelerator='-accel tcg -cpu max'
# Where it is not the processor that virtualizes, /dev/kvm runs no kernel that does not know of that.
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then accelerator='-accel kvm -cpu host'; fi
share() { echo "-virtfs local,path=$1,mount_tag=$2,security_model=none,multidevs=remap,readonly=on"; }
# shellcheck disable=SC2046,SC2086
qemu-system-x86_64 $accelerator -m "${MEMORY:-3G}" -nodefaults -display none -no-reboot -serial "file:$work/messages" \
	-device virtio-serial -chardev stdio,id=out,signal=off -device virtconsole,chardev=out \
	-chardev "file,id=code,path=$work/code" -device virtserialport,chardev=code,nr=2 \
	$(share / machine) $(share "$tree/usr" kernel) \
	-kernel "$tree/boot/vmlinuz-$version" -initrd "$work/initrd" \
	-append 'console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on no_timer_check' </dev/null || true
if ! [ -s "$work/code" ]; then
	echo "Linux $version ended before the command:" >&2
	tail -n 30 "$work/messages" >&2
	exit 125
fi
exit "$(<"$work/code")"
